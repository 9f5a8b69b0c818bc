"""Learned pruning on the command line: `--method dynamic`, and what is said where it is not asked for."""

import functools
import json

import pytest
from classify_cases import FOLDER, make
from helpers import ROOT
from quick import quick_compiling  # noqa: F401

import jaxprune


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, card = make("audiomae", depth=4, predictors=(1, 2, 3))
    return jaxprune.save(tmp_path_factory.mktemp("checkpoints") / "learned", model, card=card)


@pytest.fixture
def classify(run_script):
    return functools.partial(run_script, ROOT / "scripts" / "classify.py")


def test_the_predictors_choose_and_the_numbers_are_shares_of_all(checkpoint, classify):
    blocks = ("--blocks", 1, 2, 3, "--keep-rate", 0.7, "--json")
    code, out, told = classify(checkpoint, FOLDER / "crow.wav", *blocks, "--method", "dynamic")
    assert code == 0
    facts = json.loads(out)
    assert [len(kept) for kept in facts["windows"][0]["kept"].values()] == [44, 31, 21]
    assert facts["method"] == "dynamic"
    model = jaxprune.load(checkpoint)
    assert facts["gmacs"] == jaxprune.macs(model, jaxprune.dynamic(model, 0.7)) / 1e9
    assert "does not ask them" not in told
    code, out, told = classify(checkpoint, FOLDER / "crow.wav", *blocks)
    assert "has learned predictors, and topk does not ask them (--method dynamic does)" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--blocks", 1, 2), "keep rates are for blocks [1, 2], but the predictors for [1, 2, 3]"),
        (("--blocks", 1, 2, 3, "--rates", 0.1, 0.1, 0.1), "keeps none of 64 patches; choose a larger one"),
    ],
)
def test_what_does_not_fit_is_one_sentence(checkpoint, classify, options, said):
    keep = () if "--rates" in options else ("--keep-rate", 0.7)
    code, out, told = classify(checkpoint, FOLDER / "crow.wav", "--method", "dynamic", *keep, *options)
    assert (code, out) == (2, "")
    assert said in " ".join(told.replace("│", " ").split())


def test_a_model_without_predictors_is_refused(classify, tmp_path):
    model, card = make("audiomae", depth=4)
    plain = jaxprune.save(tmp_path / "plain", model, card=card)
    code, _, told = classify(plain, FOLDER / "crow.wav", "--method", "dynamic", "--keep-rate", 0.7)
    assert code == 2
    assert "the model has no predictors, which learned pruning needs" in " ".join(told.replace("│", " ").split())
