"""The command `jaxprune ablate`: it prints and saves what the library finds, and refuses bad options."""

import csv
import json

import pytest
from ablation_cases import CLIPS, FEW, make, run_once
from helpers import ROOT
from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, corpus
from training_runs import model as make_model

import jaxprune
from jaxprune.experiments.ablation import (
    range_settings,
    score_settings,
    summarize,
)

SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


# The command lines


@pytest.fixture
def run(run_script):
    """Runs a script in this process: `run(name, *arguments) -> (exit code, stdout, stderr)`."""
    return lambda name, *arguments: run_script(SCRIPTS / name, *arguments)


@pytest.fixture(scope="module")
def home(tmp_path_factory, dataset):
    """Two checkpoints, and the corpus as a manifest."""
    home = tmp_path_factory.mktemp("home")
    model, card = make()
    jaxprune.save(home / "first", model, card=card)
    other = make_model("ast")
    other.head.kernel[...] = -other.head.kernel[...]
    jaxprune.save(home / "second", other, card=card)
    (home / "labels.txt").write_text("\n".join(CLASSES))
    entries = [
        {"path": record.path, "labels": [CLASSES[y] for y in record.labels], "split": "test"}
        for record in dataset.clips("test")
    ]
    (home / "sounds.json").write_text(json.dumps(entries))
    return home


def where(home) -> list:
    return ["manifest", "--path", home / "sounds.json", "--labels", home / "labels.txt", "--batch", 4]


def test_the_command_prints_and_saves_what_the_library_finds(run, home, dataset, tmp_path):
    model, _ = make()
    options = ["--scores", "mean", "random", "--seeds", 0, 1, "--keep-rates", 0.5, "--blocks", 0]
    options += ["--bounds", -0.5, 0.0, 0.5, "--bootstrap.resamples", 50]
    command = [home / "first", *where(home), *options, "--also", home / "second", "--out", tmp_path / "new" / "out"]
    code, table, notices = run("ablate.py", *command)
    assert code == 0, notices
    facts = json.loads((tmp_path / "new" / "out" / "ablation.json").read_text())
    settings = score_settings(model, scores=["mean", "random"], rates=[{0: 0.5}], seeds=(0, 1))
    settings += range_settings(model, (-0.5, 0.0, 0.5), blocks=[0], seed=0)
    expected = summarize(model, run_once(dataset, settings), settings=settings, bootstrap=FEW)
    first, second = facts["checkpoints"].values()
    assert [row["metrics"] for row in first] == [row.metrics for row in expected]
    assert [row["emptied"] for row in first] == [row.emptied for row in expected]
    assert second[0]["drop"]["value"] == pytest.approx(
        first[0]["metrics"]["top1"] - second[0]["metrics"]["top1"], abs=1e-12
    )
    with (tmp_path / "new" / "out" / "ablation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["top1"]) for line in lines] == [row["metrics"]["top1"] for row in first + second]
    assert f"{100 * expected[1].metrics['top1']:.2f}" in table
    assert "over its seeds" in table
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["ablation.csv", "ablation.json"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keep-rates", "1.2", "--blocks", "0"], "keep rate 1.2 is not allowed"),
        (["--blocks", "3"], "block 3 cannot prune: the model's blocks are 0 to 1"),
        (["--bounds", "0.5", "0.1", "--blocks", "0"], "give at least two, rising"),
        (["--bounds", "0.1", "0.5", "--clusters-of", "nowhere"], "give one of them"),
        (["--clusters-of", "nowhere"], "nowhere is not an extraction"),
        (["--keep-rates", "1.0", "--blocks", "0"], "there is nothing to measure"),
        (["--split", "validation"], "has no validation clips"),
        (["--also", "nowhere"], "there is no nowhere; a jaxprune checkpoint is a directory"),
    ],
)
def test_a_bad_option_is_one_sentence(run, home, options, why):
    code, text, err = run("ablate.py", home / "first", *where(home), *options)
    assert (code, text) == (2, "")
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1


def test_the_slip_is_told_beside_the_right_way(run, home, dataset, tmp_path):
    model, _ = make()
    options = ["--keep-rates", 0.7, "--blocks", 0, 1, "--out", tmp_path / "slip.json"]
    code, table, notices = run("studies/released_ablation.py", home / "first", *where(home), *options)
    assert code == 0, notices
    facts = json.loads((tmp_path / "slip.json").read_text())
    settings = score_settings(model, scores=["mean", "std"], rates=[{0: 0.7, 1: 0.7}])
    right = summarize(model, run_once(dataset, settings), settings=settings, bootstrap=FEW)
    assert [row["right"]["value"] for row in facts["rows"]] == pytest.approx([row.metrics["top1"] for row in right[1:]])
    assert facts["unpruned"] == pytest.approx(right[0].metrics["top1"])
    assert [(row["right_patches"], row["released_tokens"]) for row in facts["rows"]] == [(17, 15)] * 2
    assert "wanted kept" in table
    code, text, err = run(
        "studies/released_ablation.py", home / "first", *where(home), "--keep-rates", 1.0, "--blocks", 0
    )
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "prune nothing" in err
