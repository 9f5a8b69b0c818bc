"""The method that a model was trained for: on its card, and followed by the commands unless another is named."""

import dataclasses
import json

import numpy as np
import pytest
from classify_cases import FOLDER, make
from quick import quick_compiling  # noqa: F401
from training_runs import recipe

import jaxprune
from jaxprune.app.compare import Bench
from jaxprune.cli.options import trained_for
from jaxprune.cli.reducing import One, Several
from jaxprune.cli.sweep import Grid, remarks
from jaxprune.config import Card
from jaxprune.experiments.sweep_points import Point

CROW = FOLDER / "crow.wav"


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A checkpoint that was trained for ToMe, its model and its card."""
    model, card = make("audiomae", depth=10)
    card = dataclasses.replace(card, method="tome", keep_rates=(1.0, 0.5))
    return jaxprune.save(tmp_path_factory.mktemp("merging") / "tome", model, card=card), model, card


def test_a_card_remembers_it_and_one_without_it_means_top_k(merging):
    _, _, card = merging
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    old = dataclasses.replace(card, method="topk").to_json()
    assert "method" not in old
    assert Card.from_json(old).method == "topk"
    with pytest.raises(ValueError, match=r"not a jaxprune model card: .*melt.*method"):
        Card.from_json(old | {"method": "melt"})


def test_the_recipe_writes_it_on_the_card(merging):
    prune = dataclasses.replace(recipe().prune, method="tome", keep_rate=1.0, sample=("1", "0.5"))
    assert recipe(prune=prune).card(merging[1].config).method == "tome"
    assert recipe().card(merging[1].config).method == "topk"


def test_classify_goes_the_way_that_the_model_was_trained_for(merging):
    checkpoint = merging[0]
    own, named, other = (
        jaxprune.classify(CROW, checkpoint, keep_rate=0.5, **method)
        for method in ({}, {"method": "tome"}, {"method": "topk"})
    )
    assert (own.method, other.method) == ("tome", "topk")
    assert own.results[0].top == named.results[0].top != other.results[0].top
    assert own.results[0].groups  # patches that were merged
    assert not other.results[0].groups


def test_listening_goes_that_way_too(merging):
    _, model, card = merging
    sound = [np.random.default_rng(0).normal(size=40_000).astype(np.float32) / 10]
    own, named, other = (
        [segment.scores for segment in jaxprune.segments(model, sound, card=card, keep_rate=0.5, **method)]
        for method in ({}, {"method": "tome"}, {"method": "topk"})
    )
    np.testing.assert_array_equal(own, named)
    assert np.abs(np.subtract(own, other)).max() > 1e-6


def test_commands_follow_it_and_say_where_they_do_not(merging, run_command):
    checkpoint = merging[0]
    code, said, told = run_command("classify", checkpoint, CROW, "--keep-rate", 0.5, "--json")
    assert (code, json.loads(said)["method"], "trained for" in told) == (0, "tome", False)
    code, said, told = run_command("classify", checkpoint, CROW, "--keep-rate", 0.5, "--json", "--method", "topk")
    assert (code, json.loads(said)["method"]) == (0, "topk")
    assert f"topk: {checkpoint} was trained for tome at the keep rates 1 0.5" in " ".join(told.split())


def test_options_take_the_cards_method_only_where_none_was_named(merging):
    _, model, card = merging
    assert One().of(card).method == Several().of(card).method == "tome"
    assert One(method="evit").of(card).method == "evit"
    policy = Several(keep_rates=(0.5,)).of(card).policies(model, default=())[0.5]
    assert policy == jaxprune.tome(model, [stage.r for stage in policy.stages.values()])
    assert trained_for(card) == "tome at the keep rates 1 0.5"


def test_a_sweep_measures_it_alone_unless_told(merging):
    _, model, card = merging
    rates = {"rates": (1.0, 0.5)}
    assert [one.score for one in Grid().settings(model, **rates)] == ["attention"]
    assert [one.score for one in Grid().settings(model, **rates, trained=["tome"])] == ["tome"]
    assert [one.score for one in Grid().settings(model, **rates, trained=["topk", "tome"])] == ["attention", "tome"]
    asked = Grid(methods=("evit",)).settings(model, **rates, trained=["tome"])
    assert [one.score for one in asked] == ["attention", "evit"]
    empty = {field.name: field.type() for field in dataclasses.fields(Point)}
    point = Point(**empty | {"blocks": "3,6,9", "keep": "0.5", "pays": True, "score": "tome"})
    assert remarks(point, {}, card=card) == []
    assert remarks(dataclasses.replace(point, score="attention"), {}, card=card) == ["not trained for"]


def test_the_page_offers_it_first(merging):
    assert Bench(merging[0]).methods[:2] == ("tome", "topk")
