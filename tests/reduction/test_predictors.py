"""DynamicViT's predictor, its decisions, and the ratios of its stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from quick import quick_compiling  # noqa: F401
from reduction.torch_dynamic import Reference, gumbel

from jaxprune.config import ModelConfig
from jaxprune.reduction.predictors import Predictor, ratio_count, stage_ratios, straight_through

CLIPS, PATCHES, WIDTH = 3, 16, 24


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_predictor_equals_pytorch_for_patches_that_are_left_and_all():
    model = Predictor(WIDTH, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layers = {"in_conv.0": model.norm, "in_conv.1": model.embed, "out_conv.0": model.hidden1}
    layers |= {"out_conv.2": model.hidden2, "out_conv.4": model.decide}
    state = {"blocks.0.unused": np.zeros(1, np.float32)}
    for seed, (name, layer) in enumerate(layers.items()):
        weight = layer.scale if hasattr(layer, "scale") else layer.kernel
        weight[...] = jnp.asarray(0.3 * drawn(*weight.shape, seed=seed))
        layer.bias[...] = jnp.asarray(drawn(*layer.bias.shape, seed=10 + seed))
        state[f"score_predictor.0.{name}.weight"] = np.asarray(weight[...]).T
        state[f"score_predictor.0.{name}.bias"] = np.asarray(layer.bias[...])
    patches = 0.01 * drawn(CLIPS, PATCHES, WIDTH, seed=20)  # so small that LayerNorm's eps shows
    left = (drawn(CLIPS, PATCHES, seed=21) > 0).astype(np.float32)
    reference = Reference(state, heads=3)
    for decision in (left, np.ones_like(left)):
        expected = reference.predict(torch.tensor(patches), torch.tensor(decision), 0).detach().numpy()
        found = model(jnp.asarray(patches), jnp.asarray(decision))
        np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, atol=1e-6)


def test_a_clip_without_patches_is_no_division_by_zero():
    model = Predictor(WIDTH, dtype=jnp.float32, rngs=nnx.Rngs(0))

    def loss(patches, decision):
        return model(patches, decision).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(drawn(1, 4, WIDTH)), jnp.zeros((1, 4)))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_decision_and_its_gradient_are_pytorchs():
    logits, noise, before = drawn(CLIPS, PATCHES, 2), drawn(CLIPS, PATCHES, 2, seed=1), drawn(CLIPS, PATCHES, seed=2)
    before, weights = (before > 0).astype(np.float32), drawn(CLIPS, PATCHES, seed=3)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = gumbel([torch.tensor(noise)])(0, theirs, torch.tensor(before))
    (expected * torch.tensor(weights)).sum().backward()

    def ours(logits):
        decision = straight_through(logits + noise) * before
        return (decision * weights).sum(), decision

    gradient, found = jax.grad(ours, has_aux=True)(jnp.asarray(logits))
    np.testing.assert_array_equal(np.asarray(found) > 0.5, expected.detach().numpy() > 0.5)
    assert set(np.unique(np.asarray(found).round(6))) == {0, 1}
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_one_ratio_stands_for_its_powers():
    assert stage_ratios(0.7, stages=3) == (0.7, 0.7**2, 0.7**3)
    assert [ratio_count(ratio, 64) for ratio in stage_ratios(0.7, stages=3)] == [44, 31, 21]
    assert [ratio_count(ratio, 256) for ratio in stage_ratios(0.7, stages=3)] == [179, 125, 87]
    assert stage_ratios((0.75, 0.5, 0.5), stages=3) == (0.75, 0.5, 0.5)
    assert stage_ratios(1, stages=2) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        (0.0, r"ratio 0.0 is not allowed; it must be greater than 0 and at most 1"),
        (1.2, r"ratio 1.2 is not allowed"),
        (float("nan"), r"ratio nan is not allowed"),
        ((0.7, 0.5, -0.1), r"ratio -0.1 is not allowed"),
        ((0.7, 0.5), r"2 ratios \(0.7, 0.5\) were given for 3 predictors; give one for each"),
        ((0.5, 0.7, 0.3), r"the ratios \(0.5, 0.7, 0.3\) rise, but a dropped patch never returns"),
    ],
)
def test_ratios_that_cannot_be_are_refused_in_a_sentence(ratios, said):
    with pytest.raises(ValueError, match=said):
        stage_ratios(ratios, stages=3)


def test_a_ratio_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match=r"ratio 0.01 keeps none of 64 patches; choose a larger one"):
        ratio_count(0.01, 64)


def test_a_model_that_cannot_have_predictors_is_refused():
    sizes = {"family": "ast", "depth": 4, "heads": 3, "classes": 2}
    with pytest.raises(ValueError, match="width 30 cannot have predictors: they need a width that 4 divides"):
        ModelConfig(width=30, predictors=(1, 2), **sizes)
    for blocks in ((1, 4), (2, 1), (1, 1), (-1, 1)):
        with pytest.raises(ValueError, match="name blocks from 0 to 3, each once, rising"):
            ModelConfig(width=24, predictors=blocks, **sizes)
