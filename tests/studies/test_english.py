"""The recipe of the English model: it fits the shipped model that it begins with, and saves what it says."""

import dataclasses
from pathlib import Path

import pytest

import jaxprune
from jaxprune.models import build
from jaxprune.registry import reduced
from scripts.words.english import START, english, learned

MADE = english(Path("corpus"), epochs=30)


def test_it_begins_with_the_shipped_arabic_model_and_reads_clips_as_that_does():
    begun, card = jaxprune.load_card(START), MADE.card(MADE.model())
    assert MADE.start.checkpoint == START
    assert dataclasses.replace(card.model, classes=40) == begun.model
    assert (card.mean, card.std, card.padding) == (begun.mean, begun.std, begun.padding)
    assert (card.method, card.keep_rates) == (begun.method, begun.keep_rates)
    assert (card.model.classes, MADE.loop.epochs) == (35, 30)


def test_its_steps_save_nothing_or_15_or_30_or_45_percent():
    model = build(MADE.model())
    whole = jaxprune.macs(model, jaxprune.topk(model, {}))
    saved = [1 - jaxprune.macs(model, reduced(model, "tome", rate)) / whole for rate in MADE.prune.rates]
    assert saved == pytest.approx([0, 0.15, 0.3, 0.45], abs=0.01)


def test_then_predictors_learn_to_save_45_percent_taught_by_the_model_that_merges():
    made = learned(MADE, epochs=10)
    model = build(made.model())
    saved = 1 - jaxprune.macs(model, reduced(model, "dynamic", made.prune.keep_rate)) / jaxprune.macs(
        model, jaxprune.topk(model, {})
    )
    assert saved == pytest.approx(0.45, abs=0.01)
    assert (made.dynamic.alone, made.dynamic.taught) == (2, True)
    assert made.card(made.model()).method == "dynamic"
