"""The options that say how tokens are reduced, and their use in commands."""

import json

import jax.numpy as jnp
import pytest
from helpers import ROOT, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.amounts import Merges, Saving, in_words
from jaxprune.cli.reducing import One, Several
from jaxprune.cli.sweep import Grid
from jaxprune.experiments.ablation import saving_settings
from jaxprune.registry import reduced

MODEL = jaxprune.build(small("ast", width=24))
CROW = ROOT / "tests" / "recordings" / "crow.wav"


@pytest.mark.parametrize(
    ("asked", "amount"),
    [
        ({}, {3: 0.8, 6: 0.8, 9: 0.8}),
        ({"keep_rate": 0.5, "blocks": (1, 2)}, {1: 0.5, 2: 0.5}),
        ({"rates": (0.9, 0.5), "blocks": (2, 1)}, {1: 0.5, 2: 0.9}),
        ({"saving": 0.3}, Saving(0.3)),
        ({"saving": 0.2, "blocks": (2,)}, Saving(0.2, (2,))),
        ({"r": (4,)}, Merges(4)),
        ({"r": (4, 2)}, Merges([4, 2])),
    ],
    ids=str,
)
def test_one_amount_is_asked_for_in_one_of_four_ways(asked, amount):
    assert One(**asked).amount(default=0.8, depth=12) == amount


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: One(keep_rate=0.5, saving=0.3).amount(default=1, depth=12), "--keep-rate and --saving were given"),
        (lambda: One(saving=0.3, r=(2,)).amount(default=1, depth=12), "--saving and --r were given; choose one"),
        (lambda: One(r=(2,), blocks=(3,)).amount(default=1, depth=12), "tome merges in every block"),
        (lambda: One(rates=(0.5, 0.5), blocks=(3, 3)).amount(default=1, depth=12), "name each once"),
        (lambda: Several(savings=(0.3, 0.3)).amounts(default=()), r"the amounts are \[0.3, 0.3\]"),
        (lambda: Several(r=(2,)).policies(MODEL, default=()), "topk has no r; give a keep rate or a saving"),
        (lambda: Several(method="tome", r=(40,)).policies(MODEL, default=()), "r is 40, but a block can merge at most"),
        (lambda: reduced(MODEL, "tome", Saving(0.3, (3,))), "merging and pooling choose their blocks for a saving"),
        (lambda: reduced(MODEL, "evit", saving=0.9), "a saving of 0.9 cannot be had this way"),
        (lambda: reduced(MODEL, "dynamic", saving=0.3), "the model has no predictors"),
        (lambda: Grid(savings=(0.2,), blocks=("3", "4")).settings(MODEL, rates=()), "several sets of --blocks"),
        (lambda: Grid(savings=(0.0,)).settings(MODEL, rates=()), "saving is 0.0; it must be greater than 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(ask, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_several_amounts_are_keep_rates_savings_and_rs():
    found = Several(method="tome", keep_rates=(0.7,), savings=(0.3,), r=(2,)).policies(MODEL, default=(1.0,))
    assert list(map(in_words, found)) == ["0.7", "saving 0.3", "r 2"]
    assert [stage.r for stage in found[Merges(2)].stages.values()] == [2] * 12
    assert list(Several(savings=(0.3,)).policies(MODEL, default=(1.0,))) == [Saving(0.3)]
    assert list(Several().policies(MODEL, default=(1.0, 0.5))) == [1.0, 0.5]


def test_every_method_saves_as_much_in_a_sweep_of_savings():
    grid = Grid(scores=("attention", "mean"), methods=("evit", "tome", "pool", "hybrid"), savings=(0.2, 0.4))
    settings = grid.settings(MODEL, rates=(1.0, 0.7))
    whole = jaxprune.macs(MODEL, jaxprune.topk(MODEL, {}))
    assert [(one.score, one.keep) for one in settings] == [
        (score, f"saving {saving}")
        for saving in (0.2, 0.4)
        for score in ("attention", "mean", "evit", "tome", "pool", "hybrid")
    ]
    for one in settings:
        saved = 1 - jaxprune.macs(MODEL, one.policy_for(jnp.arange(1), {})) / whole
        assert saved == pytest.approx(one.saving, abs=0.02)
        assert one.blocks == (() if one.score in ("tome", "pool") else (3, 6, 9))


def test_savings_prune_at_the_blocks_that_were_named():
    (setting,) = saving_settings(MODEL, scores=("mean",), methods=(), savings=(0.2,), blocks=(2, 5))
    assert setting.blocks == (2, 5)


def test_classify_takes_a_saving_and_an_r(run_command):
    for options, told in (
        (("--saving", 0.3, "--method", "evit"), "saving 0.3"),
        (("--r", 2, "--method", "tome"), "r 2"),
    ):
        code, said, error = run_command("classify", "ast-words", CROW, "--json", *options)
        assert code == 0, error
        found = json.loads(said)
        assert found["asked"] == told
        assert found["saving"] == pytest.approx(0.3, abs=0.15)
    code, _, error = run_command("classify", "ast-words", CROW, "--r", 2)
    assert code == 2
    assert "topk has no r" in error
