"""Masks as values, and the arithmetic that they save."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval
from pretraining.pretraining_cases import DECODERS, ENCODER, keys, model

from jaxprune.config import ModelConfig
from jaxprune.cost import macs
from jaxprune.models import build, topk
from jaxprune.pretraining import RandomMask, TimeFrequencyMask
from jaxprune.pretraining.cost import decoder_macs, encoder_macs

GRID = dataclasses.replace(ENCODER, frames=1024)


@pytest.mark.parametrize(("mask", "count"), [(RandomMask(), 102), (TimeFrequencyMask(), 95)])
def test_a_mask_keeps_the_published_count_and_follows_its_keys(mask, count):
    assert mask.count(GRID) == count
    first, again, other = (np.asarray(mask.draw(keys(3, seed=seed), GRID)) for seed in (0, 0, 1))
    assert first.shape == (3, count)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert all(len(set(row)) == count and row.min() >= 0 and row.max() < GRID.patches for row in first)
    # A clip's mask is decided by its own key, whatever else is in the batch.
    np.testing.assert_array_equal(mask.draw(keys(3, seed=0)[1:2], GRID)[0], first[1])


def test_whole_steps_and_bands_are_removed():
    ids = np.asarray(TimeFrequencyMask().draw(keys(2), GRID))
    for row in ids:
        assert (len(set(row // 8)), len(set(row % 8))) == (19, 5)
        assert list(row) == sorted(row)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: RandomMask(ratio=1.0), "mask ratio 1.0 is not allowed"),
        (lambda: TimeFrequencyMask(freq_ratio=-0.1), "mask ratio -0.1 is not allowed"),
        (lambda: RandomMask(ratio=0.999).count(GRID), "mask ratio 0.999 leaves none of 512"),
    ],
)
def test_a_ratio_that_keeps_nothing_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_encoder_costs_what_the_classifier_does_without_its_head():
    classifier = build(ENCODER)
    for visible in (3, ENCODER.patches):
        whole = macs(classifier, topk(classifier, {}), visible=visible)
        assert encoder_macs(ENCODER, visible=visible) == whole - ENCODER.width * ENCODER.classes


@pytest.mark.parametrize("decoder", DECODERS)
def test_all_products_of_a_forward_pass_are_counted(decoder):
    """Against the sizes of every matrix product in the traced program, without those that nobody reads."""
    made, visible = model(decoder), jnp.arange(7)[None]
    traced = jax.make_jaxpr(lambda mel: made(mel, visible).prediction)(jnp.zeros((1, ENCODER.frames, ENCODER.mels)))
    counted = encoder_macs(ENCODER, visible=7) + decoder_macs(made.settings, visible=7)
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    assert counted == products(needed)


def products(jaxpr) -> int:
    """Multiply-accumulates of the matrix products in a program, those of programs inside included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += inner * math.prod(equation.outvars[0].aval.shape)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inside = getattr(value, "jaxpr", value)
            total += products(inside) if hasattr(inside, "eqns") else 0
    return total


def test_a_fifth_of_the_patches_costs_the_published_encoder_a_fifth():
    base = ModelConfig.of_size("audiomae", "base", classes=1)
    saving = encoder_macs(base, visible=512) / encoder_macs(base, visible=RandomMask().count(base))
    assert 5 < saving < 5.5
