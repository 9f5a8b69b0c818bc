"""The study of Arabic words, whole, on noise: three speakers, two words, a model of two blocks."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import small
from quick import quick_compiling  # noqa: F401
from study_cases import write_clips

import jaxprune
from jaxprune.config import Card
from jaxprune.models import build
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.recipes import recipe
from scripts.studies import arabic, pieces


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("arabic"))


@pytest.fixture
def little(tmp_path, monkeypatch) -> None:
    """The study with a small model to start from, and a few steps."""
    config = small("ast", depth=2, frames=98, classes=2)
    card = Card(model=config, mean=-8.5, std=4.2, activation="softmax", source="a test")
    start = jaxprune.save(tmp_path / "start", build(config), card=card)

    def short(name):
        made = recipe(name)
        return dataclasses.replace(
            made,
            prune=dataclasses.replace(made.prune, blocks=(1,)),
            loop=dataclasses.replace(made.loop, epochs=15, batch=20),
        )

    monkeypatch.setattr(arabic, "recipe", short)
    monkeypatch.setattr(arabic, "DRAWN", ("1", "0.5"))
    monkeypatch.setattr(arabic, "RATES", (1.0, 0.7, 0.5))
    monkeypatch.setitem(arabic.STARTS, ("ast", "words"), {"unpruned": str(start)})


def test_every_model_is_measured_at_every_rate_beside_the_unpruned_one(clips, little, tmp_path, capsys):
    asked = {"out": tmp_path / "runs", "families": ("ast",), "tasks": ("words",), "tuned": (1.0, 0.7), "seeds": (0,)}
    assert arabic.main(clips, **asked) == 0
    place = tmp_path / "runs" / "ast-words-0"
    rows = json.loads((place / "rates.json").read_text())
    names = ["unpruned", "tuned-1", "tuned-0.7", "any", "any-taught"]
    assert [(row["trained"], row["split"], row["keep_rate"]) for row in rows] == [
        (name, split, rate) for name in names for split in ("validation", "test") for rate in arabic.RATES
    ]
    control = {row["split"]: row["accuracy"] for row in rows if (row["trained"], row["keep_rate"]) == (names[1], 1)}
    for row in rows:
        assert row["clips"] == 20
        assert row["difference"] == pytest.approx(row["accuracy"] - control[row["split"]])
        assert row["accuracy_over_speakers"] == [row["accuracy"]] * 2  # each split has one speaker
        low, high = row["accuracy_over_clips"]
        assert low <= row["accuracy"] <= high
    for name in names:
        result = json.loads((place / name / "result.json").read_text())
        at = {one["keep_rate"]: one["top1"] for one in result["scores"]["test"]["rates"]}
        found = {row["keep_rate"]: row["accuracy"] for row in rows if (row["trained"], row["split"]) == (name, "test")}
        assert result["recipe"]["start"]["checkpoint"].endswith("start" if name == "unpruned" else "unpruned/model")
        for rate, accuracy in at.items():
            assert found[rate] == pytest.approx(accuracy)
    assert "ast, words, seed 0: test clips" in capsys.readouterr().out


def test_what_is_finished_is_not_trained_again(clips, little, tmp_path, monkeypatch):
    base = pieces.located(arabic.recipe("ast-arabic-words"), clips)
    run = next(arabic.runs(base, starts=arabic.STARTS["ast", "words"], tuned=(), epochs=5))
    monkeypatch.setattr(pieces, "finetune", lambda *_, **__: pytest.fail("it was trained again"))
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "result.json").write_text("{}")
    assert pieces.done(run, tmp_path, seed=0, stop=StopOnSignal())


def test_intervals_over_speakers_draw_all_clips_of_a_speaker_together():
    who, right = ["a"] * 10 + ["b"] * 10, np.repeat([True, False], 10)
    found = pieces.shares("accuracy", right, who)
    assert found["accuracy"] == 0.5
    assert found["accuracy_over_speakers"] == [0.0, 1.0]
    low, high = found["accuracy_over_clips"]
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8
