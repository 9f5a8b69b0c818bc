"""The whole of a run: starting weights, the script, what it leaves behind, errors in one sentence."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import ROOT
from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, FRAMES, corpus, model, recipe

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.cli.progress import show
from jaxprune.config import Card
from jaxprune.data.records import Dataset, Record
from jaxprune.training.finetune import finetune
from jaxprune.training.run import Beginning, Options, Outcome, slower_in_bfloat16
from jaxprune.training.run_directory import read_metrics
from jaxprune.training.settings import Loop, Precision, Start
from jaxprune.training.start import Sources, fitted, starting_model

SCRIPT = ROOT / "scripts" / "finetune.py"
EPOCHS, STEPS = 3, 2


def card(config, *, labels=()) -> Card:
    return Card(model=config, mean=-6.0, std=4.0, activation="softmax", labels=labels)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Own sounds in split folders."""
    folder = tmp_path_factory.mktemp("own")
    for i, clip in enumerate(corpus(folder / "flat", clips=28, tests=0).records):
        split = "train" if i < 16 else "validation" if i < 22 else "test"
        home = folder / "tones" / split / CLASSES[clip.labels[0]]
        home.mkdir(parents=True, exist_ok=True)
        Path(clip.path).rename(home / Path(clip.path).name)
    return folder / "tones"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A small model for other classes and a longer input."""
    made = model(classes=5, frames=128)
    return jaxprune.save(tmp_path_factory.mktemp("start") / "small", made, card=card(made.config))


def short(clips: Path, start: Path):
    return recipe(
        start=Start(family="audiomae", checkpoint=str(start)),
        data=dataclasses.replace(recipe().data, root=str(clips), classes=9),
        prune=dataclasses.replace(recipe().prune, shrink_start=0, shrink_epochs=0),
        loop=Loop(epochs=EPOCHS, batch=8),
    )


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_bfloat16_on_a_cpu_is_remarked_on(clips, start, tmp_path, compute):
    made = dataclasses.replace(short(clips, start), precision=Precision(compute=compute))
    events = finetune(made, tmp_path / "run", seed=7)
    begun = next(events)
    events.close()
    told = [note for note in begun.notes if "bfloat16 may be slower than in float32" in note]
    assert len(told) == (compute == "bfloat16")


def test_bfloat16_is_not_remarked_on_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert slower_in_bfloat16("bfloat16") == ()


def arguments(clips: Path, start: Path, out: Path) -> list[str]:
    """The same as options."""
    text = f"""audiomae-esc50 --data.dataset tones --data.root {clips} --data.frames {FRAMES} --data.mean -6
    --data.std 4 --data.classes 9 --start.checkpoint {start} --prune.blocks 0 1 --prune.keep-rate 0.5
    --prune.shrink-start 0
    --prune.shrink-epochs 0 --prune.update step --prune.buckets 2 --loop.epochs {EPOCHS} --loop.batch 8
    --schedule.warmup-epochs 1 --optimizer.base-lr 3e-2 --augment.roll 0 --augment.time-mask 24
    --precision.compute float32 --out {out} --seed 7"""
    return text.split()


def script(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, options)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return left.value.code


def test_one_class_a_clip_of_one_class_alone_is_refused(tmp_path):
    records = tuple(Record(path=str(tmp_path / name), labels=(0,), split="train") for name in "ab")
    dataset = Dataset(name="x", labels=("a",), records=records)
    asked = recipe()
    softmax, sigmoid = (
        dataclasses.replace(asked, loop=dataclasses.replace(asked.loop, loss=loss, label_smoothing=0))
        for loss in ("ce", "bce")
    )
    with pytest.raises(ValueError, match="x has one class, 'a', whose softmax is always 1: nothing to learn"):
        fitted(softmax, dataset)
    assert fitted(sigmoid, dataset)[0].data.classes == 1


def test_a_checkpoint_of_other_classes_and_length_gets_a_new_head_and_fitted_positions(start):
    found, notes = starting_model(short(Path(), start), ("a",) * 9, seed=0)
    old, new = leaves(jaxprune.load(start, frames=FRAMES)), leaves(found)
    assert old.keys() == new.keys()
    assert found.config.frames == FRAMES
    assert new["head.kernel"].shape == (48, 9)
    head = {"head.kernel", "head.bias", "head_norm.scale", "head_norm.bias"}
    for name in old.keys() - head:
        np.testing.assert_array_equal(old[name][...], new[name][...])
    assert [note.split(":")[0] for note in notes] == [
        "the position table was fitted from 128 frames to 64",
        "the head is new",
    ]


@pytest.mark.parametrize(("labels", "kept"), [(CLASSES, True), (CLASSES[::-1], False), ((), True)])
def test_the_head_stays_where_the_classes_are_the_same_in_order(tmp_path, labels, kept):
    made = model()
    jaxprune.save(tmp_path / "m", made, card=card(made.config, labels=labels))
    made_from = recipe(start=Start(family="audiomae", checkpoint=str(tmp_path / "m")))
    found, notes = starting_model(made_from, CLASSES, seed=3)
    assert bool((found.head.kernel[...] == made.head.kernel[...]).all()) is kept
    assert (len(notes) == 0) is kept


def test_a_start_of_another_family_or_without_a_checkpoint(tmp_path):
    made = model("ast")
    jaxprune.save(tmp_path / "m", made, card=card(made.config))
    with pytest.raises(ValueError, match="holds an ast; the recipe trains an audiomae"):
        starting_model(recipe(start=Start(family="audiomae", checkpoint=str(tmp_path / "m"))), CLASSES, seed=0)
    tiny = recipe(start=Start(family="ast", size="tiny"))
    found, notes = starting_model(tiny, CLASSES, seed=0)
    assert (found.config.width, found.config.classes, found.config.frames) == (192, 3, FRAMES)
    assert notes == ("the model starts from random weights",)


def test_a_stride_makes_overlapping_patches_and_must_be_that_of_the_checkpoint(tmp_path):
    overlapping = recipe(start=Start(family="ast", size="mini", stride=10))
    found, _ = starting_model(overlapping, CLASSES, seed=0)
    assert (found.config.width, found.config.heads, found.config.grid) == (128, 4, ((FRAMES - 16) // 10 + 1, 12))
    made = model("ast")
    jaxprune.save(tmp_path / "m", made, card=card(made.config))
    other = recipe(start=Start(family="ast", checkpoint=str(tmp_path / "m"), stride=10))
    with pytest.raises(ValueError, match="has patches every 16 frames and 16 mel bins, the recipe every 10"):
        starting_model(other, CLASSES, seed=0)
    same = recipe(start=Start(family="ast", checkpoint=str(tmp_path / "m"), stride=16))
    assert starting_model(same, CLASSES, seed=0)[0].config == made.config


def test_several_classes_a_clip_need_bce(tmp_path):
    dataset = corpus(tmp_path)
    first = dataclasses.replace(dataset.records[0], labels=(0, 2))
    mixed = dataclasses.replace(dataset, records=(first, *dataset.records[1:]))
    assert fitted(recipe(), dataset) == (recipe(), ())
    with pytest.raises(ValueError, match="the loss must be bce"):
        fitted(recipe(), mixed)


def test_the_script_trains_evaluates_and_leaves_a_model_to_classify_with(clips, start, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert script(monkeypatch, *arguments(clips, start, out)) == 0
    printed = capsys.readouterr()
    assert "top-1" in printed.out
    assert "the head is new" in printed.err
    result = json.loads((out / "result.json").read_text())
    lines = read_metrics(out / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 0), ("step", 1), ("evaluation", 2), ("step", 2), ("step", 3), ("evaluation", 4), ("step", 4),
        ("step", 5), ("evaluation", 6),
    ]  # fmt: skip
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    best = max(evaluations, key=lambda line: line["score"])  # the earliest of equals
    assert result["saved_step"] == result["best_step"] == best["step"]
    assert result["scores"]["validation"]["score"] == best["score"]
    assert (result["scores"]["validation"]["clips"], result["scores"]["test"]["clips"]) == (6, 6)
    assert result["recipe"]["data"]["classes"] == 3
    assert result["compilations"] == 1
    trained = jaxprune.load_card(out / "model")
    assert (set(trained.labels), trained.activation, trained.model.frames) == (set(CLASSES), "softmax", FRAMES)
    assert trained.trained

    classify = SCRIPT.parent / "classify.py"
    clip = next(clips.rglob("*.wav"))
    pruned = ["--json", "--blocks", "0", "1", "--keep-rate", "0.5"]
    monkeypatch.setattr(sys, "argv", [str(classify), str(out / "model"), str(clip), *pruned])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(classify), run_name="__main__")
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["windows"][0]["top"][0]["label"] in CLASSES

    assert not (out / "checkpoints").exists()
    before = (out / "result.json").stat().st_mtime_ns
    assert script(monkeypatch, *arguments(clips, start, out)) == 0
    again = capsys.readouterr()
    assert f"{out} holds this run, and it is finished: this is its result" in again.err
    tables = [[line for line in text.splitlines() if line.startswith("│")] for text in (printed.out, again.out)]
    assert tables[0] == tables[1] != []
    assert (out / "result.json").stat().st_mtime_ns == before
    assert script(monkeypatch, *arguments(clips, start, out), "--seed", 8) == 2
    said = f"error: {out} holds a finished run with other settings (seed is 7 there, 8 here); choose another output "
    assert capsys.readouterr().err == said + "directory\n"


class Killed(BaseException):
    """Stands in for SIGKILL."""


def killed(*_):
    raise Killed


def test_a_run_asked_to_stop_goes_on_with_the_same_command(clips, start, tmp_path, monkeypatch):
    """And is killed when it has just ended, before its checkpoints are removed."""
    made, events = short(clips, start), []
    for event in finetune(made, tmp_path / "a", seed=7, stop=lambda: len(events) >= 3):
        events.append(event)
    assert events[-1].result is None
    left = events[-1].step
    assert 0 < left < EPOCHS * STEPS
    again, ended = [], finetune(made, tmp_path / "a", seed=7)
    with monkeypatch.context() as killing:
        killing.setattr("jaxprune.training.run.clear", killed)
        with pytest.raises(Killed):
            again.extend(ended)
    assert again[0].step == left
    assert (tmp_path / "a" / "checkpoints" / "6").exists()
    kept = list(finetune(made, tmp_path / "a", seed=7, options=Options(keep_checkpoints=True)))
    assert (tmp_path / "a" / "checkpoints" / "6").exists()
    again = list(finetune(made, tmp_path / "a", seed=7))
    assert not (tmp_path / "a" / "checkpoints").exists()
    assert again[-1] == kept[-1]
    assert again[-1].result == json.loads((tmp_path / "a" / "result.json").read_text())
    whole = list(finetune(made, tmp_path / "b", seed=7))
    assert isinstance(again[0], Beginning)
    assert again[0].step == again[0].total_steps == EPOCHS * STEPS
    assert isinstance(again[-1], Outcome)
    drop = ("model", "compilations")
    one, other = ({k: v for k, v in events[-1].result.items() if k not in drop} for events in (again, whole))
    assert one == json.loads(json.dumps(other))
    a, b = (leaves(jaxprune.load(tmp_path / name / "model")) for name in "ab")
    for name in a:
        np.testing.assert_array_equal(a[name][...], b[name][...], err_msg=name)
    losses = [[line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in "ab"]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["ast-esc50"], "where esc50 lies was not said; give --data.root"),
        (["ast-esc50", "--data.root", "/nowhere"], "/nowhere/meta/esc50.csv: cannot be read"),
    ],
)
def test_errors_are_one_sentence(monkeypatch, capsys, options, said):
    assert script(monkeypatch, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_published_data_sets_are_found_by_name_and_own_data_by_what_lies_there(tmp_path):
    def kind(dataset: str, root: Path) -> str:
        data = dataclasses.replace(recipe().data, dataset=dataset, root=str(root))
        return type(Sources().of(recipe(data=data))).__name__

    (tmp_path / "list.csv").touch()
    found = [kind(name, tmp_path) for name in ("esc50", "speechcommands", "voxceleb1", "audioset", "mine")]
    assert found == ["ESC50", "SpeechCommands", "VoxCeleb1", "AudioSet", "Folder"]
    assert kind("mine", tmp_path / "list.csv") == "Manifest"


@pytest.mark.parametrize(("folds", "expected"), [((1, 2, 2), (2,)), ((None, None, None), ())])
def test_the_recipe_of_a_run_names_the_fold_that_it_tests_on(folds, expected):
    """So that a run is not resumed on another fold, having trained on that one's test clips."""
    records = tuple(
        Record(path=f"{i}.wav", labels=(i % 2,), split="test" if i else "train", fold=fold)
        for i, fold in enumerate(folds)
    )
    made, _ = fitted(recipe(), Dataset(name="x", labels=("a", "b"), records=records))
    assert made.data.folds == expected


def test_a_run_that_draws_its_keep_rates_chooses_by_their_mean_and_reports_each(clips, start, tmp_path, capsys):
    made = short(clips, start)
    made = dataclasses.replace(made, prune=dataclasses.replace(made.prune, keep_rate=1.0, sample=("1", "0.5")))
    outcome = show(finetune(made, tmp_path / "run", seed=7), tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "evaluation"]
    assert len(lines) == EPOCHS
    for line in lines:
        assert [one["keep_rate"] for one in line["rates"]] == [1.0, 0.5]
        assert line["keep_rate"] is None
        assert line["score"] == pytest.approx(np.mean([one["score"] for one in line["rates"]]))
    result = outcome.result
    assert result["saved_step"] == max(lines, key=lambda line: line["score"])["step"]
    rates = result["scores"]["test"]["rates"]
    assert result["unpruned_macs"] == rates[0]["macs"] > rates[1]["macs"] == result["macs"]
    steps = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "step"]
    assert {line["keep_rate"] for line in steps} == {1.0, 0.5}
    assert result["compilations"] == 2
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    assert [(row[0].strip(), row[6].strip()) for row in rows] == [
        ("validation", "1"), ("validation", "0.5"), ("test", "1"), ("test", "0.5"),
    ]  # fmt: skip
