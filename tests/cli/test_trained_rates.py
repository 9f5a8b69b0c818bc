"""The keep rates that a model was trained for: on its card, and followed by the commands."""

import dataclasses
import functools
import json

import pytest
from classify_cases import FOLDER, make
from helpers import ROOT
from quick import quick_compiling  # noqa: F401
from training_runs import recipe

import jaxprune
from jaxprune.cli.options import RATES, marked, rates_to_measure, trained_for
from jaxprune.cli.sweep import Grid, remarks
from jaxprune.config import Card
from jaxprune.experiments.sweep_points import Point

SIX = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@pytest.fixture(scope="module")
def made():
    return make("ast", depth=10)


def of(card: Card, *rates: float) -> Card:
    return dataclasses.replace(card, keep_rates=rates)


def test_a_card_remembers_them_and_one_without_them_reads_as_before(made):
    _, card = made
    assert Card.from_json(of(card, *SIX).to_json()) == of(card, *SIX)
    assert "keep_rates" not in card.to_json()
    assert Card.from_json(card.to_json()).keep_rates == ()
    for rates in ((1.2,), (0.0,), (0.5,) * 65):
        with pytest.raises(ValueError, match="the trained keep rates are"):
            of(card, *rates)


@pytest.mark.parametrize(
    ("rates", "covered", "outside"),
    [
        (SIX, (1.0, 0.65, 0.5), (0.49, 0.3)),
        ((0.9, 0.5), (0.9, 0.6), (1.0, 0.4)),
        ((0.7,), (1.0, 0.8, 0.7), (0.69,)),  # a falling rate has come down from 1
        ((), (1.0, 0.01), ()),
    ],
)
def test_rates_outside_the_trained_ones(made, rates, covered, outside):
    card = of(made[1], *rates)
    assert all(card.covers(rate) for rate in covered)
    assert not any(card.covers(rate) for rate in outside)


def test_the_recipe_writes_them_on_the_card(made):
    config = made[0].config
    for sample, rates in ((("0.5-1",), SIX), (("1", "0.6"), (1.0, 0.6)), (None, (1.0,))):
        prune = dataclasses.replace(recipe().prune, keep_rate=1.0, sample=sample)
        assert recipe(prune=prune).card(config).keep_rates == rates


def test_a_model_is_measured_at_the_rates_that_it_was_trained_for(made):
    model, card = made
    assert rates_to_measure([card]) == rates_to_measure([of(card, 0.7)]) == RATES
    assert rates_to_measure([of(card, 0.7), of(card, 0.9, 0.5), of(card, 1.0, 0.5)]) == (1.0, 0.9, 0.5)
    found = Grid().settings(model, rates=(1.0, 0.9, 0.5))
    assert [setting.rates for setting in found] == [(0.9, 0.9, 0.9), (0.5, 0.5, 0.5)]
    asked = Grid(keep_rates=("0.8",)).settings(model, rates=(1.0, 0.9))
    assert [setting.rates for setting in asked] == [(0.8, 0.8, 0.8)]


def test_classify_says_in_a_line_that_a_rate_is_outside(made, tmp_path, run_script):
    model, card = made
    checkpoint = jaxprune.save(tmp_path / "any", model, card=of(card, 1.0, 0.75, 0.5))
    run = functools.partial(
        run_script, ROOT / "scripts" / "classify.py", checkpoint, FOLDER / "crow.wav", "--keep-rate"
    )
    code, _, said = run("0.4")
    assert code == 0
    lines = [line for line in said.splitlines() if "trained for" in line]
    assert lines == [f"note: keep rate 0.4: {checkpoint} was trained for the keep rates 1 0.75 0.5"]
    _, _, said = run("0.5")
    assert "trained for" not in said
    assert trained_for(of(card, 0.7)) == "keep rate 0.7"


def test_tables_mark_the_rates_that_a_model_was_not_trained_for(made):
    card = of(made[1], 0.9, 0.5)
    assert [marked(rate, card) for rate in (1.0, 0.7, 0.4)] == ["1 (not trained for)", "0.7", "0.4 (not trained for)"]
    empty = {field.name: field.type() for field in dataclasses.fields(Point)}
    plain = Point(**empty | {"blocks": "0,1", "keep": "0.7/0.5", "pays": True})
    assert remarks(plain, {}, card=card) == []
    for changes in ({"keep": "0.7/0.4"}, {"blocks": "", "keep": ""}):
        other = dataclasses.replace(plain, **changes)
        assert remarks(other, {}, card=card) == ["not trained for"]
        assert remarks(other, {}, card=made[1]) == []


def test_classify_takes_the_highest_rate_of_a_model_that_was_not_trained_at_1(made, tmp_path, run_script):
    model, card = made
    checkpoint = jaxprune.save(tmp_path / "below", model, card=of(card, 0.8, 0.5))
    code, out, said = run_script(ROOT / "scripts" / "classify.py", checkpoint, FOLDER / "crow.wav", "--json")
    assert code == 0
    assert set(json.loads(out)["keep_rates"].values()) == {0.8}
    assert "trained for" not in said
