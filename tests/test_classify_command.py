"""The command `jaxprune classify`: its output, from anywhere, and its refusals."""

import dataclasses
import functools
import json
import re
import subprocess
import sys

import pytest
from classify_cases import FOLDER, bad_files, make
from helpers import ROOT
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.cli import options as options_of_commands

SCRIPT = ROOT / "scripts" / "classify.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, card = make("ast", depth=10)
    return jaxprune.save(tmp_path_factory.mktemp("checkpoints") / "ast", model, card=card)


# The command line


@pytest.fixture
def run(run_script):
    """Runs the script in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


def test_the_table_and_the_json_say_the_same_from_anywhere(run, checkpoint, tmp_path):
    options = [checkpoint, FOLDER / "drum_loop.mp3", FOLDER / "crow.wav", "--keep-rate", "0.5", "--top", "2"]
    code, table, _ = run(*options)
    assert code == 0
    command = [sys.executable, SCRIPT, *options, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts, notices = json.loads(done.stdout), done.stderr
    assert len(facts["windows"]) == 7  # 6.9 s in windows of 1.3 s, and the crow
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    for row, window in zip(cells, facts["windows"], strict=False):
        end = window["start"] + window["seconds"]
        labels = ", ".join(f"{guess['label']} ({guess['probability']:.3f})" for guess in window["top"])
        assert row == [window["path"], f"{window['start']:.2f}", f"{end:.2f}", labels]
        assert [len(patch_ids) for patch_ids in window["kept"].values()] == [32, 16, 8]
    cost = cells[-1]
    assert cost[0] == "0.5 at blocks 3 6 9"
    assert cost[1:3] == [f"{facts['gmacs']:.2f}", f"{facts['unpruned_gmacs']:.2f}"]
    assert cost[3] == f"{100 * facts['saving']:.1f} %"
    assert cost[6] == facts["device"]
    assert facts["milliseconds_per_window"] > 0
    assert facts["compile_seconds"] > 0
    assert facts["keep_rates"] == {"3": 0.5, "6": 0.5, "9": 0.5}
    # Random weights are flagged and what was done to the sound is said, beside the results and never inside the JSON.
    assert "random weights: the labels mean nothing" in table
    assert facts["random_weights"] is True
    assert "random weights" in notices
    assert "drum_loop.mp3: averaged 2 channels into one" in notices
    assert "drum_loop.mp3: resampled from 44100 Hz to 16000 Hz" in notices


def test_trained_weights_are_not_called_random_and_nameless_classes_get_numbers(run, tmp_path):
    model, card = make("ast", depth=2)
    card = dataclasses.replace(card, labels=(), source="audioset_0.4593.pth", trained=True)
    jaxprune.save(tmp_path / "x", model, card=card)
    code, out, err = run(tmp_path / "x", FOLDER / "crow.wav", "--blocks", "0", "1", "--rates", "0.8", "0.6")
    assert code == 0
    assert "random" not in out + err
    assert re.search(r"class \d \(0\.\d{3}\), class \d", out)
    assert "0.8 at block 0, 0.6 at block 1" in out


def test_pictures_are_written_and_bfloat16_is_a_choice(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(options_of_commands, "cpu_flags", lambda: [])
    picture = tmp_path / "new" / "kept.svg"
    options = ["--keep-rate", "0.5", "--picture", picture, "--most-pictured", "1", "--dtype", "bfloat16", "--json"]
    code, text, notices = run(checkpoint, FOLDER / "choir.flac", *options)
    assert code == 0
    assert "the picture shows the first 1 of 2 windows" in notices
    assert json.loads(text)["dtype"] == "bfloat16"
    assert "bfloat16 may be slower here than float32" in notices
    assert f"wrote {picture}" in notices
    assert "after block 9: 8 of 64" in picture.read_text()
    assert [path.name for path in picture.parent.iterdir()] == ["kept.svg"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("text", "is not recognised as sound"),
        ("empty", "is an empty file"),
        ("short", "lasts 10 ms, which is too short"),
        ("missing", "cannot be opened"),
    ],
)
def test_a_bad_file_is_one_sentence(run, checkpoint, tmp_path, name, why):
    bad = bad_files(tmp_path)[name]
    code, out, err = run(checkpoint, bad)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {bad}: {why}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("rate", "saved"), [("1", False), ("0.5", True)])
def test_a_shallow_model_prunes_at_those_of_the_default_blocks_that_it_has(run, tmp_path, rate, saved):
    model, card = make("ast", depth=4)
    jaxprune.save(tmp_path / "shallow", model, card=card)
    code, out, err = run(tmp_path / "shallow", FOLDER / "crow.wav", "--keep-rate", rate, "--json")
    facts = json.loads(out)
    assert (code, "error" in err) == (0, False)
    assert (list(facts["keep_rates"]), facts["saving"] > 0) == (["3"], saved)


def test_good_files_are_classified_and_bad_ones_named_with_exit_code_1(run, checkpoint, tmp_path):
    bad = bad_files(tmp_path)
    code, out, err = run(checkpoint, bad["text"], FOLDER / "crow.wav", bad["empty"], "--json")
    facts = json.loads(out)
    assert code == 1
    assert [window["path"] for window in facts["windows"]] == [str(FOLDER / "crow.wav")]
    assert list(facts["refused"]) == [str(bad["text"]), str(bad["empty"])]
    for name in ("text", "empty"):
        assert f"note: not classified: {bad[name]}: is " in err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keep-rate", "0"], "keep rate 0.0 is not allowed; it must be greater than 0 and at most 1"),
        (["--keep-rate", "1.2"], "keep rate 1.2 is not allowed; it must be greater than 0 and at most 1"),
        (["--blocks", "3", "10"], "block 10 cannot prune: the model's blocks are 0 to 9"),
        (["--blocks", "-1"], "block -1 cannot prune"),
        (["--blocks", "3", "3"], "name each once"),
        (["--rates", "0.5"], "1 --rates were given for 3 --blocks"),
        (["--rates", "0.5", "0.5", "0.5", "--keep-rate", "0.5"], "choose one of them"),
        (["--picture", "kept.bmp"], "kept.bmp: pictures are written as .png, .svg, .pdf, not as .bmp"),
        (["--picture", "kept"], "kept: pictures are written as .png, .svg, .pdf, not as a file without suffix"),
        (["--picture", "kept.png", "--most-pictured", "0"], "--most-pictured is 0; it must be at least 1"),
        (["--top", "0"], "top is 0; it must be at least 1"),
    ],
)
def test_a_bad_option_is_one_sentence(run, checkpoint, options, why):
    code, out, err = run(checkpoint, FOLDER / "crow.wav", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1


def test_what_is_not_a_checkpoint_is_one_sentence(run, checkpoint, tmp_path):
    (tmp_path / "card.json").write_text((checkpoint / "card.json").read_text())
    for path, why in [
        (tmp_path / "none", "there is no"),
        (FOLDER, "is not a jaxprune checkpoint"),
        (FOLDER / "crow.wav", "is not a jaxprune checkpoint"),
        (tmp_path, "are missing"),
    ]:
        code, out, err = run(path, FOLDER / "crow.wav")
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert why in err
        assert err.count("\n") == 1
