"""Validation of other methods than top-k: PyTorch's statement of each agrees with ours, and another choice does not."""

import functools
import json
import sys

import jax
import numpy as np
import pytest
import torch
from helpers import random_mel, small
from jaxprune.convert import torch_methods, torch_reference, validate
from jaxprune.convert.mapping import to_flax
from jaxprune.convert.random_checkpoint import random_state, write_ast_official
from jaxprune.convert.rungs import lowest_members, method_rung
from quick import quick_compiling  # noqa: F401

from jaxprune.cli.console import run
from jaxprune.models import jit_forward
from jaxprune.registry import LEARNED, reduced

MEL = random_mel(small("ast"), clips=3)
RATES = {1: 0.6, 3: 0.5}
METHODS = ("topk", "evit", "tome", "tome-plain", "hybrid", "pool", "grid", "loudest", "varied", LEARNED)


@functools.cache
def models(family: str):
    """One model in PyTorch and here, with predictors."""
    config = small(family, width=24, depth=4, predictors=tuple(RATES))
    state = random_state(config, seed=0)
    theirs = torch_reference.build(config)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    ours = to_flax(state, config)
    return theirs, ours, jit_forward(ours)


def rung(family: str, method: str, *, ours: str):
    """PyTorch's method compared with one of ours."""
    reference, model, forward = models(family)
    with torch.inference_mode(), jax.default_matmul_precision("highest"):
        theirs = torch_methods.run(reference, torch.tensor(MEL), method, reduced(model, method, RATES))
        output = forward(MEL, reduced(model, ours, RATES))
    return method_rung(theirs, output, method=method, keep_rate=0.6, tolerance=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["ast", "audiomae"])
def test_every_method_agrees_with_pytorch(family, method):
    found = rung(family, method, ours=method)
    assert found.passed
    assert found.overlap == 1


@pytest.mark.parametrize(("one", "other"), [("evit", "topk"), ("tome", "pool"), ("loudest", "varied")])
def test_another_choice_does_not_pass(one, other):
    found = rung("audiomae", one, ours=other)
    assert not found.passed
    assert found.remark == "3 clips chose otherwise"


def test_proportional_attention_is_another_method():
    found = rung("audiomae", "tome", ours="tome-plain")
    assert not found.passed


def test_the_order_of_tokens_does_not_matter():
    groups = np.array([[0, 1, 0, -1, 2]])
    assert lowest_members(groups).tolist() == lowest_members(np.where(groups < 0, -1, 2 - groups)).tolist()
    assert lowest_members(groups).tolist() == [[0, 1, 0, -1, 4]]


@pytest.mark.parametrize(("method", "code", "said"), [("tome", 0, "groups and logits"), ("random", 2, "cannot draw")])
def test_the_command_takes_a_method(tmp_path, monkeypatch, capsys, method, code, said):
    write_ast_official(tmp_path / "model.pth", small("ast", width=24, depth=4, classes=3), seed=1)
    options = ["--num-heads", "3", "--keep-rates", "0.6", "--blocks", "1", "3", "--method", method]
    monkeypatch.setattr(sys, "argv", ["validate", str(tmp_path / "model.pth"), *options])
    with pytest.raises(SystemExit) as stopped:
        run(validate.main)
    told = capsys.readouterr()
    assert (stopped.value.code or 0) == code
    assert said in told.out + told.err


@pytest.mark.parametrize(
    ("options", "rungs"),
    [
        (("--method", "tome-plain", "--savings", "0.2", "--r", "3"), ("saving 0.2", "r 3")),
        (("--method", "evit", "--keep-rates", "0.6", "--savings", "0.2", "--blocks", "1", "3"),
         (0.6, "saving 0.2 at blocks 1 3")),
        (("--savings", "0.2", "--blocks", "1"), ("saving 0.2 at blocks 1",)),
    ],
)  # fmt: skip
def test_the_command_takes_savings_and_r_as_well_as_keep_rates(tmp_path, capsys, options, rungs):
    write_ast_official(tmp_path / "model.pth", small("ast", width=24, depth=4, classes=3), seed=1)
    asked = [str(tmp_path / "model.pth"), "--num-heads", "3", "--out", str(tmp_path / "proof.json"), *options]
    with pytest.raises(SystemExit, match="0"):
        run(validate.main, arguments=asked)
    told = capsys.readouterr().out
    assert "reduction" in told
    found = [rung["keep_rate"] for rung in json.loads((tmp_path / "proof.json").read_text())["rungs"]]
    assert tuple(dict.fromkeys(rate for rate in found if rate != 1)) == rungs
    assert all(amount in told for amount in rungs if isinstance(amount, str))


def test_an_amount_that_the_method_has_not_is_refused(tmp_path, capsys):
    write_ast_official(tmp_path / "model.pth", small("ast", width=24, depth=4, classes=3), seed=1)
    with pytest.raises(SystemExit, match="2"):
        run(validate.main, arguments=[str(tmp_path / "model.pth"), "--num-heads", "3", "--method", "evit", "--r", "3"])
    assert "r counts tokens that merge, and evit has no r" in capsys.readouterr().err
