"""Folds and seeds in one directory: each done once, however often it is interrupted, and summed up as by hand."""

import csv
import dataclasses
import functools
import json
import os
import re
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import ROOT
from quick import quick_compiling  # noqa: F401
from training.test_tensorboard import curves
from training_runs import CLASSES, FRAMES, model

import jaxprune
from jaxprune.cli import protocol as command
from jaxprune.config import Card
from jaxprune.data.records import Dataset, Record
from jaxprune.parallel import processes
from jaxprune.training import protocol
from jaxprune.training.protocol import Next, Run, Summary, carry_out, open_protocol, runs, summarize
from jaxprune.training.recipes import RECIPES
from jaxprune.training.run import Beginning, Outcome
from jaxprune.training.run_directory import MetricsLog, read_metrics
from jaxprune.training.settings import AdamW, Augment, Cosine, Data, Loop, Precision, Prune, Recipe, Start
from jaxprune.training.start import Sources

SCRIPT = ROOT / "scripts" / "protocol.py"
FOLDS, SEEDS = (1, 2), (3, 4)
PLANNED = [(fold, seed) for fold in FOLDS for seed in SEEDS]


@pytest.fixture(scope="module")
def esc50(tmp_path_factory) -> Path:
    """Two folds of 12 and 13 short tones in noise."""
    root, rng, rows = tmp_path_factory.mktemp("esc50"), np.random.default_rng(0), []
    for folder in ("meta", "audio"):
        (root / folder).mkdir()
    for fold, clips in zip(FOLDS, (12, 13), strict=True):
        for i in range(clips):
            name, target = f"{fold}-{i}.wav", i % len(CLASSES)
            tone = np.sin(2 * np.pi * (300, 1200, 4000)[target] / 16000 * np.arange(8000))
            soundfile.write(root / "audio" / name, 0.2 * tone + rng.normal(0, 0.3, 8000), 16000)
            rows.append((name, fold, target, CLASSES[target], "True", f"{fold}{i}", "A"))
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows])
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    made = model()
    card = Card(model=made.config, mean=-6.0, std=4.0, activation="softmax")
    return jaxprune.save(tmp_path_factory.mktemp("start") / "small", made, card=card)


def short(esc50: Path, start: str | Path = "") -> Recipe:
    """One epoch of three steps."""
    return dataclasses.replace(
        RECIPES["audiomae-esc50"],
        start=Start(family="audiomae", checkpoint=str(start), published=RECIPES["audiomae-esc50"].start.published),
        data=Data(dataset="esc50", root=str(esc50), frames=FRAMES, mean=-6.0, std=4.0, classes=3, folds=FOLDS),
        augment=Augment(),
        optimizer=AdamW(base_lr=3e-2),
        schedule=Cosine(warmup_epochs=0.5),
        prune=Prune(keep_rate=0.5, blocks=(0, 1), buckets=2),
        loop=Loop(epochs=1, batch=4, seeds=SEEDS),
        precision=Precision(compute="float32"),
    )


def arguments(esc50: Path, start: Path, out: Path) -> list[str]:
    """The same as options."""
    text = f"""audiomae-esc50 --data.root {esc50} --data.frames {FRAMES} --data.mean -6 --data.std 4 --data.classes 3
    --data.folds 1 2 --start.checkpoint {start} --augment.roll 0 --augment.time-mask 0 --augment.freq-mask 0
    --augment.patch-mask 0 --augment.drop-path 0 --optimizer.base-lr 3e-2 --schedule.warmup-epochs 0.5
    --prune.keep-rate 0.5 --prune.blocks 0 1 --prune.shrink-start 0 --prune.shrink-epochs 0 --prune.buckets 2
    --loop.epochs 1 --loop.batch 4 --loop.seeds 3 4 --precision.compute float32 --out {out}"""
    return text.split()


@pytest.fixture
def script(run_script):
    """Runs the script in this process: `script(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


@pytest.fixture
def begun(monkeypatch) -> list[tuple[int, int]]:
    """The (fold, seed) of each fine-tuning run that is begun or gone on with."""
    noted, real = [], protocol.finetune

    def spy(recipe, out, *, seed, sources, **rest):
        noted.append((sources.fold, seed))
        assert (recipe.data.folds, recipe.loop.seeds) == ((sources.fold,), (seed,))
        return real(recipe, out, seed=seed, sources=sources, **rest)

    monkeypatch.setattr(protocol, "finetune", spy)
    return noted


def assert_summary_is_numpys(out, text: str) -> np.ndarray:
    """Compares protocol.json and the printed table with the results of the runs. Returns the scores, seeds by folds."""
    results = {run: json.loads((out / f"fold-{run[0]}-seed-{run[1]}" / "result.json").read_text()) for run in PLANNED}
    scores = np.array([[results[fold, seed]["scores"]["test"]["top1"] for fold in FOLDS] for seed in SEEDS])
    clips = np.array([[results[fold, seed]["scores"]["test"]["clips"] for fold in FOLDS] for seed in SEEDS])
    assert clips.tolist() == [[12, 13]] * 2
    saved = json.loads((out / "protocol.json").read_text())
    assert saved["final"]["by_seed"] == {str(seed): mean for seed, mean in zip(SEEDS, scores.mean(axis=1), strict=True)}
    assert saved["final"]["mean"] == scores.mean(axis=1).mean()
    assert saved["final"]["std"] == np.std(scores.mean(axis=1), ddof=1)
    assert saved["ddof"] == 1
    assert saved["pooled"] == pytest.approx((scores * clips).sum() / 50, abs=1e-15)
    best = [[results[fold, seed]["best_score"] for fold in FOLDS] for seed in SEEDS]
    assert saved["best"]["mean"] == np.mean(np.mean(best, axis=1))
    # One epoch: the last is the best, and what the loop found after it.
    last = [read_metrics(out / f"fold-{fold}-seed-{seed}" / "metrics.jsonl")[-1] for fold, seed in PLANNED]
    assert [line["score"] for line in last] == [row["score"] for row in saved["rows"]]

    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert [row[:4] for row in cells[-4:]] == [
        [str(fold), str(seed), str(clips[i, j]), f"{100 * scores[i, j]:.2f}"]
        for j, fold in enumerate(FOLDS)
        for i, seed in enumerate(SEEDS)
    ]
    mean, std = 100 * scores.mean(), 100 * np.std(scores.mean(axis=1), ddof=1)
    assert f"mean {mean:.2f} %, standard deviation {std:.2f} over 2 seeds (n - 1 in the denominator)" in text
    assert "model of the last epoch; no test clip chose anything" in text
    return scores


def assert_curves_are_the_log(folder):
    """Compares the curves that TensorBoard shows of a run with its log."""
    lines = read_metrics(folder / "metrics.jsonl")
    for kind, name in (("step", "train"), ("evaluation", "evaluation")):
        shown = curves(folder / "tensorboard" / name)["loss"]
        logged = [(line["step"], line["loss"]) for line in lines if line["kind"] == kind]
        assert shown == [(number, np.float32(loss)) for number, loss in logged]
        assert len(shown) == {"step": 3, "evaluation": 1}[kind]


def assert_second_process_is_silent(script, options, *, monkeypatch):
    """Runs the command as the second process of two."""
    met = []
    with monkeypatch.context() as second:  # the second process of two says nothing
        second.setattr(processes, "is_first", lambda: False)
        second.setattr(command, "is_first", lambda: False)
        second.setattr(protocol, "by_first", lambda action: action())  # the first is this same process
        second.setattr(command, "joined", lambda launch: met.append(launch) or nullcontext())
        code, *said = script(*options, "--launch.coordinator", "h:1", "--launch.count", 2, "--launch.index", 1)
    assert (code, met) == (0, [processes.Launch(coordinator="h:1", count=2, index=1)])
    assert not any(said)


def test_what_was_cut_off_goes_on_and_the_summary_is_numpys(esc50, start, tmp_path, script, begun, monkeypatch):
    """SIGTERM comes with the third run's first step, in the second fold."""
    out, options = tmp_path / "esc50", [*arguments(esc50, start, tmp_path / "esc50"), "--tensorboard"]
    write = MetricsLog.write

    def and_terminate(log, event):
        write(log, event)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as terminating:
        terminating.setattr(MetricsLog, "write", and_terminate)
        code, text, said = script(*options)
    assert (code, begun) == (143, PLANNED[:3])
    assert re.search(r"run 3 of 4: fold 2, seed 3; 2 finished, about \d+ minutes? left", said)
    assert "note: asked to stop: 2 of 4 runs are finished; the same command goes on\n" in said
    assert not (out / "protocol.json").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        "fold-1-seed-3",
        "fold-1-seed-4",
        "fold-2-seed-3",
        "shared.json",
    ]
    whole = {path: path.stat().st_mtime_ns for path in out.glob("fold-1-*/**/*")}
    assert len(whole) > 10

    begun.clear()
    code, text, said = script(*options)
    assert (code, begun) == (0, PLANNED[2:]), said
    assert not list(out.rglob("checkpoints"))
    assert "goes on after step 2 of 3" in said
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold-1-*/**/*")} == whole

    scores = assert_summary_is_numpys(out, text)
    assert_curves_are_the_log(out / "fold-2-seed-3")  # the run that was cut off

    begun.clear()
    left = out / "fold-1-seed-4" / "checkpoints" / "3"
    left.mkdir(parents=True)  # as if the removal had been cut off
    events = list(carry_out(short(esc50, start), out))  # the options' recipe is this one
    assert not left.parent.exists()
    assert (begun, [type(event) for event in events]) == ([], [Summary])
    with pytest.raises(
        ValueError, match=re.escape("other settings (recipe.optimizer.base_lr is 0.03 there, 0.01 here)")
    ):
        next(carry_out(dataclasses.replace(short(esc50, start), optimizer=AdamW(base_lr=0.01)), out))
    one = dataclasses.replace(short(esc50, start), loop=dataclasses.replace(short(esc50).loop, seeds=(4,)))
    assert_second_process_is_silent(script, options, monkeypatch=monkeypatch)
    (summary,) = carry_out(one, out)  # a part of the seeds is a protocol, too
    assert (summary.final.mean, summary.final.std) == (scores[1].mean(), None)


@pytest.mark.parametrize("content", ["[]", "{}", '{"recipe": 3, "where": {}}', '{"recipe": {}}', "not JSON"])
def test_a_damaged_shared_file_is_one_sentence(tmp_path, content):
    (tmp_path / "shared.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path / 'shared.json'))} is "):
        open_protocol(tmp_path, RECIPES["ast-esc50"], Sources())


def result(score: float, *, clips: int, metric: str = "accuracy", splits=("test",)) -> dict:
    found = {"metric": metric, "score": score, "clips": clips, "loss": 0.5}
    found |= dict.fromkeys(("top1", "top5", "mean_average_precision"))
    rest = {"saved_step": 6, "saved": "last", "best_score": score + 0.1, "macs": 2, "unpruned_macs": 4}
    rest |= {"steps": 6, "compilations": 1} | dict.fromkeys(("data_set", "device", "model"), "x")
    recipe = dataclasses.replace(RECIPES["audiomae-esc50"], prune=Prune(keep_rate=0.5))
    return rest | {"scores": dict.fromkeys(splits, found), "recipe": recipe.to_json()}


def test_folds_are_averaged_before_seeds_and_clips_are_pooled():
    scores = np.random.default_rng(0).uniform(size=(3, 2))
    clips = np.array([10, 30])
    planned = [Run(fold=fold, seed=seed) for fold in (1, 2) for seed in range(3)]
    summary = summarize(
        {run: result(scores[run.seed, run.fold - 1], clips=int(clips[run.fold - 1])) for run in planned}
    )
    assert summary.final.mean == pytest.approx(scores.mean())
    assert summary.final.std == pytest.approx(scores.mean(axis=1).std(ddof=1))
    assert summary.best.mean == pytest.approx(scores.mean() + 0.1)
    assert (summary.clips, summary.pooled) == (120, pytest.approx((scores * clips).sum() / 120))
    assert [(row.fold, row.seed) for row in summary.rows] == [(run.fold, run.seed) for run in planned]


def test_a_fixed_split_has_nothing_to_pool_and_chooses_on_validation():
    summary = summarize({Run(fold=None, seed=0): result(0.25, clips=8, splits=("validation", "test"))})
    assert (summary.split, summary.evaluated, summary.pooled) == ("test", "validation", None)
    assert (summary.final.mean, summary.final.std) == (0.25, None)
    folded = {Run(fold=fold, seed=0): result(0.5, clips=8, metric="mAP") for fold in (1, 2)}
    assert summarize(folded).pooled is None
    with pytest.raises(ValueError, match="the run of seed 5 has a score that is not a number"):
        summarize({Run(fold=None, seed=5): result(0.5, clips=1) | {"best_score": None}})


def test_a_recipe_without_folds_is_run_once_a_seed(esc50):
    made = dataclasses.replace(short(esc50), data=dataclasses.replace(short(esc50).data, folds=()))
    assert [(str(run), run.directory) for run in runs(made)] == [("seed 3", "seed-3"), ("seed 4", "seed-4")]
    assert [run.directory for run in runs(short(esc50))] == [f"fold-{fold}-seed-{seed}" for fold, seed in PLANNED]


def test_the_time_left_is_at_the_pace_so_far_and_stopping_between_runs_is_heeded(esc50, tmp_path, monkeypatch):
    """Runs of 8 steps, a second each; the first goes on after step 6."""
    clock, dataset = [0.0], Dataset(name="x", labels=("a",), records=(Record(path="p", labels=(0,), split="test"),))

    def pretend(recipe, out, **rest):
        first = 6 if clock[0] == 0 else 0
        yield Beginning(recipe=recipe, dataset=dataset, step=first, total_steps=8, selects_on="test", notes=())
        clock[0] += 8 - first
        out.mkdir(parents=True)
        (out / "result.json").write_text(json.dumps(found := result(0.5, clips=4)))
        yield Outcome(step=8, result=found)

    monkeypatch.setattr(protocol, "finetune", pretend)
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: clock[0])
    found = list(carry_out(short(esc50), tmp_path / "out", stop=lambda: clock[0] > 15))
    begins = [event for event in found if isinstance(event, Next)]
    assert [(event.number, event.finished, event.seconds_left) for event in begins] == [
        (1, 0, None),
        (2, 1, 24),
        (3, 2, 16),
    ]
    assert isinstance(found[-1], Outcome)
    *_, summary = carry_out(short(esc50), tmp_path / "out")
    assert summary.final.mean == 0.5


def test_refusals(esc50, tmp_path, script):
    def refused(recipe: Recipe, sentence: str, *, out: str = "new"):
        with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
            next(carry_out(recipe, tmp_path / out))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()

    def with_data(**changes) -> Recipe:
        return dataclasses.replace(short(esc50), data=dataclasses.replace(short(esc50).data, **changes))

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").touch()
    refused(short(esc50), "old exists and holds no protocol; choose another output directory", out="old")
    refused(with_data(folds=()), "esc50 has folds, but the recipe names none")
    refused(with_data(folds=(1, 7)), "fold is 7; ")
    refused(with_data(dataset="mine"), "mine has no folds, but data.folds is [1, 2]; give --data.folds and no number")
    refused(with_data(root=""), "where esc50 lies was not said")
    code, text, said = script("ast-esc50", "--data.root", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert (code, text, said.count("\n")) == (2, "", 1)
    assert "nowhere/meta/esc50.csv: cannot be read" in said
    assert not (tmp_path / "new").exists()


def test_data_without_clips_to_report_on_are_refused_before_training(esc50, start, tmp_path):
    made = short(esc50, start)
    own = dataclasses.replace(
        made, data=dataclasses.replace(made.data, dataset="mine", root=str(tmp_path / "own"), folds=())
    )
    for i, clip in enumerate(sorted((esc50 / "audio").iterdir())):
        home = tmp_path / "own" / "train" / CLASSES[i % 3]
        home.mkdir(parents=True, exist_ok=True)
        (home / clip.name).symlink_to(clip)
    with pytest.raises(ValueError, match="has no validation or test clips to report on"):
        list(carry_out(own, tmp_path / "out"))
    assert read_metrics(tmp_path / "out" / "seed-3" / "metrics.jsonl") == []
