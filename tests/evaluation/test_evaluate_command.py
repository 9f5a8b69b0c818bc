"""The command `jaxprune evaluate`: its table and JSON, and what it refuses in one sentence."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from evaluation.evaluate_cases import BLOCKS, LABELS, RATES, corpus, make, run_once
from helpers import ROOT
from quick import quick_compiling  # noqa: F401

import jaxprune

SCRIPT = ROOT / "scripts" / "evaluate.py"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chirps")


# The command line


@pytest.fixture
def run(run_script):
    """Runs the script in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The same model with names of classes, with others, and without."""
    model, card = make("ast")
    home = tmp_path_factory.mktemp("checkpoints")
    for name, labels in (("named", LABELS), ("other", tuple("abcdefg")), ("nameless", ())):
        jaxprune.save(home / name, model, card=dataclasses.replace(card, labels=labels))
    return home


@pytest.fixture(scope="module")
def manifest(folder):
    """Options that name a corpus as a manifest with nothing to train on."""
    (folder / "labels.txt").write_text("\n".join(LABELS))

    def options(**settings) -> list:
        dataset = corpus(folder, **settings)
        entries = [
            {"path": record.path, "labels": [LABELS[y] for y in record.labels], "split": "test"}
            for record in dataset.records
        ]
        (folder / "sounds.json").write_text(json.dumps(entries))
        return ["manifest", "--path", folder / "sounds.json", "--labels", folder / "labels.txt"]

    return options


@pytest.mark.parametrize(("several", "silent"), [(False, (4,)), (True, ())])
def test_the_table_and_the_json_say_the_same(run, checkpoints, manifest, folder, tmp_path, several, silent):
    out = tmp_path / "new" / "result.json"
    options = ["--keep-rates", *RATES, "--blocks", *BLOCKS, "--batch", 4, "--unusable", 0.5, "--out", out]
    where = manifest(several=several, silent=silent)
    code, table, notices = run(checkpoints / "named", *where, *options)
    assert code == 0, notices
    facts = json.loads(out.read_text())
    assert list(out.parent.iterdir()) == [out]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    metrics = ("mean_average_precision", "auc", "d_prime") if several else ("top1", "top5")
    for row, fact in zip(cells, facts["rates"], strict=True):
        shown = [f"{fact[name] * (1 if name == 'd_prime' else 100):.3f}" for name in metrics]
        cost = [f"{fact['keep_rate']:g}", f"{fact['gmacs']:.3f}", f"{100 * fact['saving']:.1f} %"]
        assert row == [*cost, *shown, str(fact["clips"])]
    assert {fact["clips"] for fact in facts["rates"]} == {facts["clips"]} == {13 - len(silent)}
    assert [Path(path).name for path in facts["unusable"]] == [f"{i:02d}.wav" for i in silent]
    assert ("1 clip could not be used" in table) == bool(silent)
    assert (facts["split"], facts["data"]["kind"], facts["data"]["path"]) == ("test", "Manifest", str(where[2]))
    dataset = corpus(folder, several=several, silent=silent)
    direct = run_once(*make("ast"), dataset)
    assert facts["rates"] == direct.to_json()["rates"]


def test_labels_are_compared_before_anything_is_computed(run, checkpoints, manifest, tmp_path):
    where = [*manifest(), "--blocks", *BLOCKS]
    out = tmp_path / "result.json"
    code, text, err = run(checkpoints / "other", *where, "--out", out)
    assert (code, text) == (2, "")
    assert err.startswith("error: sounds has other classes; in the checkpoint class 0 is 'a', not 'sound 0'")
    assert err.count("\n") == 1
    assert not out.exists()
    code, text, err = run(checkpoints / "nameless", *where, "--keep-rates", "0.5", "--dtype", "bfloat16", "--batch", 4)
    assert code == 0
    assert f"{checkpoints / 'nameless'} names no classes: its 7 are taken to be in the data set's order" in err
    assert "bfloat16" in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keep-rates", "1.2"], "keep rate 1.2 is not allowed"),
        (["--keep-rates", "0.5", "0.5"], "each once"),
        (["--blocks", "3"], "block 3 cannot prune: the model's blocks are 0 to 1"),
        (["--split", "validation"], "sounds has no validation clips; it has test 13"),
        (["--batch", "0"], "batch is 0; it must be at least 1"),
        (["--out", "/"], "/ is a directory; --out names a file"),
        (["--path", "none.json"], "none.json: cannot be read"),
    ],
)
def test_a_bad_option_is_one_sentence(run, checkpoints, manifest, options, why):
    blocks = [] if "--blocks" in options else ["--blocks", *BLOCKS]
    code, text, err = run(checkpoints / "named", *manifest(), *blocks, *options)
    assert (code, text) == (2, "")
    assert err.startswith("error: ")
    assert why in err
    assert err.count("\n") == 1


def test_what_is_not_a_checkpoint_is_one_sentence(run, manifest, tmp_path):
    code, text, err = run(tmp_path, *manifest())
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "is not a jaxprune checkpoint" in err


def test_savings_are_measured_beside_keep_rates(run, checkpoints, manifest, tmp_path):
    options = ["--method", "tome", "--keep-rates", 1, "--savings", 0.1, "--out", tmp_path / "found.json"]
    code, said, told = run(checkpoints / "named", *manifest(), *options)
    assert code == 0, told
    assert "saving 0.1" in said
    rows = json.loads((tmp_path / "found.json").read_text())["rates"]
    assert [(row["keep_rate"], row["asked"]) for row in rows] == [(None, "1"), (None, "saving 0.1")]
    assert rows[1]["saving"] == pytest.approx(0.1, abs=0.02)
