import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small

from jaxprune.models import abstract, topk
from jaxprune.reduction.tokens import Tokens
from jaxprune.vit import Mlp


def test_gelu_is_the_exact_one():
    config = small("ast", width=4, heads=1)
    mlp = Mlp(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlp.fc1.kernel[...] = jnp.eye(4, 16)
    mlp.fc2.kernel[...] = jnp.eye(16, 4)
    x = jnp.linspace(-3, 3, 12).reshape(1, 3, 4)
    from math import erf, sqrt

    expected = [v * 0.5 * (1 + erf(v / sqrt(2))) for v in np.asarray(x, float).ravel()]
    np.testing.assert_allclose(mlp(x).ravel(), expected, atol=3e-7)  # the tanh form is off by 5e-4


def some_tokens(**fields) -> Tokens:
    """Two clips of two extra and four patch tokens, with values 0 to 11."""
    values = jnp.arange(2 * 6, dtype=jnp.float32).reshape(2, 6, 1)
    ids = jnp.asarray([[10, 11, 12, 13], [20, 21, 22, 23]])
    return Tokens(values, ids, extra_tokens=2, **fields)


def test_selection_keeps_extra_tokens_in_front_and_composes_positions():
    kept = some_tokens().select(jnp.asarray([[3, 0], [1, 2]]), alive=None)
    assert kept.values[..., 0].tolist() == [[0, 1, 5, 2], [6, 7, 9, 10]]
    assert kept.patch_ids.tolist() == [[13, 10], [21, 22]]
    assert kept.alive is None


def test_selection_takes_everything_known_of_a_token_along():
    weights = jnp.asarray([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    held = jnp.asarray([[0, 0, 1, 3, -1], [2, 2, 3, 1, 0]])
    tokens = some_tokens(weights=weights, key_bias=-weights, decision=weights / 8, held=held)
    kept = tokens.select(jnp.asarray([[3, 0], [1, 2]]), alive=jnp.asarray([[True, True], [False, True]]))
    for found, factor in ((kept.weights, 1), (kept.key_bias, -1), (kept.decision, 1 / 8)):
        np.testing.assert_array_equal(found, factor * jnp.asarray([[4.0, 1], [6, 7]]))
    assert kept.held.tolist() == [[1, 1, -1, 0, -1], [1, 1, -1, -1, -1]]


def test_extra_tokens_are_always_alive_and_have_no_bias():
    tokens = some_tokens()
    alive = jnp.asarray([[False, True]])
    assert tokens.of_all(alive, extra=True).tolist() == [[True, True, False, True]]
    assert tokens.of_all(jnp.asarray([[2.0, 3.0]]), extra=0).tolist() == [[0, 0, 2, 3]]
    assert tokens.of_all(None, extra=0) is None


def widest_fusion(depth: int) -> int:
    """Operands of the fusion that has most, in the compiled gradient of a model."""
    config = small("ast", depth=depth)
    graph, state = nnx.split(abstract(config))

    def loss(state, mel):
        model = nnx.merge(graph, state)
        return model(mel, topk(model, {1: 0.5})).logits.sum()

    mel = jax.ShapeDtypeStruct((2, config.frames, config.mels), jnp.float32)
    program = jax.jit(jax.grad(loss)).lower(state, mel).compile().as_text()
    bodies = re.findall(r"^%fused_computation[^\n]*\((.*?)\) -> ", program, re.MULTILINE)
    return max(operands.count(": ") for operands in bodies)


@pytest.mark.compiled
def test_no_block_adds_up_the_updates_of_all_the_others_again():
    assert widest_fusion(6) == widest_fusion(3)
