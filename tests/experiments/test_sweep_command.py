"""The command `jaxprune sweep`: it goes on where it was, and refuses bad options."""

import csv
import dataclasses
import functools
import json
import math

import pytest
from helpers import ROOT
from quick import quick_compiling  # noqa: F401
from sweep_cases import CLIPS, make
from training_runs import CLASSES, corpus
from training_runs import model as make_model

import jaxprune

SCRIPT = ROOT / "scripts" / "sweep.py"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


# The command line


@pytest.fixture
def run(run_script):
    """Runs the script in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


@pytest.fixture(scope="module")
def home(tmp_path_factory, dataset):
    """Two checkpoints, one of another geometry, and the corpus as a manifest."""
    home = tmp_path_factory.mktemp("home")
    for seed in (0, 1):
        jaxprune.save(home / str(seed) / "model", make(seed).model, card=make(seed).card)
    deep = make_model("ast", depth=3)
    jaxprune.save(home / "deep", deep, card=dataclasses.replace(make().card, model=deep.config))
    (home / "labels.txt").write_text("\n".join(CLASSES))
    entries = [
        {"path": record.path, "labels": [CLASSES[y] for y in record.labels], "split": "test"}
        for record in dataset.clips("test")
    ]
    (home / "sounds.json").write_text(json.dumps(entries))
    return home


def where(home) -> list:
    data = ["manifest", "--path", home / "sounds.json", "--labels", home / "labels.txt"]
    return [home / "0" / "model", *data, "--batch", 2, "--rounds", 2, "--evaluation-batch", 4]


def test_the_command_goes_on_where_it_was(run, home, tmp_path):
    options = ["--blocks", "0", "0,1", "--scores", "mean", "--out", tmp_path / "sweep"]
    code, table, notices = run(*where(home), *options, "--keep-rates", "0.5", "--max-drop", 100)
    assert code == 0, notices
    assert "measured now: 3 accuracies, 3 times" in notices
    files = ["sweep.csv", "sweep.json", "sweep.png", "sweep.svg"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == files
    before = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    more = [*options, "--keep-rates", "0.5", "0.7", "--also", home / "1" / "model"]
    code, table, notices = run(*where(home), *more)
    assert code == 0, notices
    assert "measured now: 7 accuracies, 2 times" in notices
    after = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    for part in ("quality", "seconds"):
        assert {key: after[part][key] for key in before[part]} == before[part]
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10
    assert {line["candidate"] for line in lines} == {"0", "1"}
    for line in lines:
        assert float(line["speed_up"]) == pytest.approx(float(line["gain"]) * float(line["macs_ratio"]))
    assert "Batch 2: fastest within 1 points is" in table
    assert ("does not pay" in table) == any(line["pays"] == "False" for line in lines)
    assert math.isclose(float(lines[0]["drop"]), 0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--blocks", "0,x"], "'0,x' and '0.9' are not blocks and keep rates"),
        (["--blocks", "5"], "block 5 cannot prune"),
        (["--blocks", "0,1", "--keep-rates", "0.5,0.6,0.7"], "do not fit the blocks 0,1"),
        (["--blocks", "0", "--keep-rates", "1.5"], "keep rate 1.5 is not allowed"),
        (["--blocks", "0", "--batch", "0"], "they must be at least 1"),
        (["--blocks", "0", "--max-drop", "-1"], "max drop is -1"),
        (["--blocks", "0", "--published", "ast-words"], "no published scores"),
        (["--blocks", "0", "--published", "audiomae-esc50"], "of audiomae with 23.11 GMACs, this is ast with 0.00"),
        (["--blocks", "0", "--published", "none"], "there is no recipe 'none'"),
        (["--blocks", "0", "--also", "DEEP"], "is not of the geometry"),
        (["--blocks", "0", "--also", "SAME"], "hold the same weights"),
    ],
)
def test_a_bad_option_is_one_sentence(run, home, tmp_path, options, why):
    places = {"DEEP": home / "deep", "SAME": home / "0" / "model"}
    options = [places.get(option, option) for option in options]
    code, text, err = run(*where(home), *options, "--out", tmp_path / "sweep")
    assert (code, text) == (2, "")
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()
