"""The study of ways to reduce tokens, whole, on noise: a model of four blocks, a few steps."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import small
from quick import quick_compiling  # noqa: F401
from study_cases import write_clips

import jaxprune
from jaxprune.config import Card
from jaxprune.models import build
from jaxprune.reduction import policy
from jaxprune.training.finetune import FineTuning
from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES
from jaxprune.training.recipes import recipe
from jaxprune.training.run_directory import open_run
from scripts.studies import pieces, reduction_answers, reductions

METHODS, SAVINGS = ("topk", "dynamic"), (0.0, 0.1)


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    """Clips of noise, for models that reduce after their second block."""
    monkeypatch.setattr(policy, "DEFAULT_BLOCKS", (1,))
    (tmp_path / "clips").mkdir()
    return write_clips(tmp_path / "clips")


def finished(clips: Path, *, seed: int, epochs: int = 3) -> Path:
    """A finished run without pruning."""
    run = clips.parent / f"run-{seed}"
    config = small("ast", width=24, depth=2, frames=98, classes=2)
    card = Card(model=config, mean=-8.5, std=4.2, activation="softmax", source="a test")
    made = pieces.located(recipe("ast-arabic-words"), clips)
    made = dataclasses.replace(made, loop=dataclasses.replace(made.loop, epochs=epochs, batch=20))
    open_run(run, made, seed=seed)
    (run / "result.json").write_text("{}")
    jaxprune.save(run / "model", build(config, seed=seed), card=card)
    return run


@pytest.fixture
def run(clips) -> Path:
    return finished(clips, seed=5)


@pytest.fixture
def asked(tmp_path) -> dict:
    return {"out": tmp_path / "out", "methods": METHODS, "savings": SAVINGS, "epochs": 3, "learned_saving": 0.1}


def test_every_method_is_measured_untuned_and_tuned_at_every_saving(run, asked, capsys, monkeypatch):
    assert reductions.main((run,), **asked) == 0
    rows = json.loads((asked["out"] / "results.json").read_text())
    untuned = [(False, "topk", 0.0), (False, "topk", 0.1)]
    tuned = [(True, method, saving) for method in METHODS for saving in SAVINGS]
    assert [(row["split"], row["tuned"], row["method"], row["asked"]) for row in rows] == [
        (split, *setting) for split in ("validation", "test") for setting in untuned + tuned
    ]
    accuracy = {(row["split"], row["tuned"], row["method"], row["asked"]): row["accuracy"] for row in rows}
    for row in rows:
        assert row["saving"] == pytest.approx(row["asked"], abs=0.02)
        assert row["difference"] == pytest.approx(row["accuracy"] - accuracy[row["split"], False, "topk", 0.0])
        rival = accuracy[row["split"], row["tuned"], "topk", row["asked"]]
        assert row["against_topk"] == pytest.approx(row["accuracy"] - rival)
        low, high = row["accuracy_over_clips"]
        assert low <= row["accuracy"] <= high
    place = asked["out"] / "ast-words-5"
    prune = {name: json.loads((place / name / "recipe.json").read_text())["prune"] for name in METHODS}
    assert prune["topk"]["sample"] == ["1", "0.437"]  # top-k's rate for the saving
    assert prune["dynamic"]["method"] == "dynamic"
    assert "arabicwords.png" in capsys.readouterr().err
    assert (asked["out"] / "arabicwords.svg").stat().st_size > 10_000
    for trained in ("untuned", "tuned"):
        assert (asked["out"] / f"regions-ast-words-5-{trained}.png").stat().st_size > 10_000

    # The same again measures nothing and trains nothing; the result is the same.
    monkeypatch.setattr(FineTuning, "carry_out", lambda *_: pytest.fail("it was trained again"))
    monkeypatch.setattr(reduction_answers, "correct", lambda *_, **__: pytest.fail("it was measured again"))
    assert reductions.main((run,), **asked) == 0
    assert json.loads((asked["out"] / "results.json").read_text()) == rows
    with pytest.raises(ValueError, match="holds a study with other epochs; choose another --out"):
        reductions.main((run,), **asked | {"epochs": 4})
    with pytest.raises(ValueError, match=r"dynamic holds a finished run with other settings .*prune.keep_rate"):
        reductions.main((run,), **asked | {"learned_saving": 0.08})


def test_runs_that_differ_in_the_seed_alone_have_their_mean_beside_them(clips, asked, capsys):
    runs = (finished(clips, seed=1), finished(clips, seed=2), finished(clips, seed=3, epochs=4))
    assert reductions.main(runs, **asked | {"methods": ("topk",), "tune": False}) == 0
    rows = json.loads((asked["out"] / "results.json").read_text())
    one, two, other, mean = (rows[start : start + 4] for start in range(0, len(rows), 4))
    assert [row["seeds"] for row in (one[0], two[0], other[0], mean[0])] == [[1], [2], [3], [1, 2]]
    for row, first, second in zip(mean, one, two, strict=True):
        assert row["model"] == "ast-words, seeds 1 and 2"
        assert row["accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
        assert row["difference_by_seed"] == [first["difference"], second["difference"]]
        assert row["difference"] == pytest.approx(sum(row["difference_by_seed"]) / 2)
    assert "ast-words, seeds 1 and 2, test clips" in capsys.readouterr().out


def test_runs_whose_starts_differ_in_the_seed_alone_are_alike(clips):
    """Each of two runs starts from one of the same seed; both of these from one pretrained encoder."""
    encoder = clips.parent / "encoder"
    pretraining = PRETRAINING_RECIPES["audiomae-arabic-words-pretrain"]
    open_run(encoder, pretraining, seed=0)

    def after(recipe, start):
        return dataclasses.replace(recipe, start=dataclasses.replace(recipe.start, checkpoint=str(start)))

    def second(seed, *, epochs=3):
        first = after(pieces.recipe_of(finished(clips, seed=seed, epochs=epochs)), encoder)
        open_run(clips.parent / f"first-{seed}", first, seed=seed)
        start = clips.parent / f"first-{seed}" / ("model" if seed == 1 else "")
        return after(pieces.second_stage(first, epochs=5), start)

    one, two, other = second(1), second(2), second(3, epochs=4)
    assert pieces.lineage(one) == pieces.lineage(two)
    assert [recipe.loop.epochs for recipe in pieces.lineage(one)] == [5, 3, 150]
    assert pieces.lineage(other) != pieces.lineage(one)
    assert pieces.lineage(after(one, "ast-words")) != pieces.lineage(after(one, ""))


def test_what_is_no_unpruned_run_is_refused(tmp_path, asked):
    with pytest.raises(ValueError, match="holds no finished run"):
        reductions.main((tmp_path,), **asked)
