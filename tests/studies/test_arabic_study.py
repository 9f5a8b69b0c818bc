"""The study of Arabic words, whole, on noise: three speakers, two words, a model of two blocks."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import small
from quick import quick_compiling  # noqa: F401
from study_cases import write_clips

import jaxprune
from jaxprune.config import Card
from jaxprune.models import build
from jaxprune.training.finetune import FineTuning
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


def test_every_model_is_measured_at_every_rate_beside_the_unpruned_one(clips, little, tmp_path, capsys, monkeypatch):
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

    # The same again trains nothing, and neither does another study in the same directory.
    monkeypatch.setattr(FineTuning, "carry_out", lambda *_: pytest.fail("it was trained again"))
    assert arabic.main(clips, **asked) == 0
    assert json.loads((place / "rates.json").read_text()) == rows
    with pytest.raises(ValueError, match=r"tuned-1 holds a finished run with other settings \(loop.epochs is 5 there"):
        arabic.main(clips, **asked | {"tuning_epochs": 6})


def test_a_checkpoint_may_stand_in_for_the_pretrained_encoder(clips, little, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(arabic, "done", lambda run, *_, **__: planned.append(run) or True)
    monkeypatch.setattr(arabic, "measure", lambda *_: [])
    start, asked = "audiomae-arabic-words", {"out": tmp_path / "runs", "tasks": ("words",), "seeds": (0,)}
    assert (
        arabic.main(clips, **asked, families=("audiomae",), start=start, epochs=6, tuning_epochs=4, tuned=(1.0,)) == 0
    )
    found = [(run.name, run.start, run.recipe.start.checkpoint, run.recipe.loop.epochs) for run in planned]
    assert found == [
        ("unpruned", "", start, 6),
        ("tuned-1", "unpruned", "", 4),
        ("any", "unpruned", "", 4),
        ("any-taught", "unpruned", "", 4),
    ]
    with pytest.raises(ValueError, match="--start audiomae-arabic-words holds an audiomae; train that family alone"):
        arabic.main(clips, **asked, start=start)


def test_an_encoder_is_pretrained_on_its_own_tasks_training_clips(clips, tmp_path, monkeypatch):
    """Speakers are split by round, words by speaker: the training clips of one task are test clips of the other."""
    made, started = {}, {}

    def pretrain(recipe, place, **_):
        made[place] = recipe
        return iter(())

    def done(run, place, **_):
        started[place.name, run.name] = run.recipe.start.checkpoint
        return run.name == "unpruned"  # the others are asked to stop

    monkeypatch.setattr(arabic, "pretrain", pretrain)
    monkeypatch.setattr(arabic, "show", lambda events, *_, **__: SimpleNamespace(result=events))
    monkeypatch.setattr(arabic, "done", done)
    for task in ("words", "speakers"):
        assert arabic.main(clips, out=tmp_path, families=("audiomae",), tasks=(task,), seeds=(0,)) == pieces.STOPPED
        place = tmp_path / f"pretrained-{task}"
        assert started[f"audiomae-{task}-0", "unpruned"] == str(place)
        assert made[place].data.dataset == f"arabic{task}"
        assert made[place].data.root == str(clips)
    assert started["audiomae-words-0", "random-start"] == ""
    assert len(made) == 2


def test_intervals_over_speakers_draw_all_clips_of_a_speaker_together():
    who, right = ["a"] * 10 + ["b"] * 10, np.repeat([True, False], 10)
    found = pieces.shares("accuracy", right, who)
    assert found["accuracy"] == 0.5
    assert found["accuracy_over_speakers"] == [0.0, 1.0]
    low, high = found["accuracy_over_clips"]
    assert 0.2 < low < 0.4 < 0.6 < high < 0.8
