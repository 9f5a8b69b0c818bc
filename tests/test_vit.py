import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small

from jaxprune.prune import Selection
from jaxprune.vit import Mlp, attend, select, token_mask

B, H, S, C = 2, 3, 9, 4
Q, K, V = (jnp.asarray(np.random.default_rng(i).standard_normal((B, H, S, C)), jnp.float32) for i in range(3))
MASK = jnp.asarray([[True] * 6 + [False] * 3, [True, False] * 4 + [True]])


def attend_one_by_one(queries, mask):
    """Float64, a loop a query, dropped tokens really dropped."""
    q, k, v = (np.asarray(x, np.float64) for x in (Q, K, V))
    out, received = np.full((B, H, S, C), np.nan), np.zeros((B, S))
    for b in range(B):
        there = np.flatnonzero(mask[b])
        asked = [i for i in range(S)[queries] if i in there]
        for h in range(H):
            for i in there:
                weight = np.exp(k[b, h, there] @ q[b, h, i] / np.sqrt(C))
                weight /= weight.sum()
                out[b, h, i] = weight @ v[b, h, there]
                if i in asked:
                    received[b, there] += weight / (H * len(asked))
    return out, received


@pytest.mark.parametrize("queries", [slice(0, 1), slice(1, None), slice(2, None)])
@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_and_what_each_token_received_equal_a_loop_over_real_tokens(queries, mask):
    there = np.ones((B, S), bool) if mask is None else np.asarray(mask)
    expected, expected_received = attend_one_by_one(queries, there)
    out, received = attend(Q, K, V, queries=queries, mask=mask)
    real = np.broadcast_to(there[:, None, :, None], expected.shape)
    np.testing.assert_allclose(np.asarray(out)[real], expected[real], atol=1e-6)
    np.testing.assert_allclose(received, expected_received, atol=1e-7)


def test_nothing_of_a_masked_token_reaches_the_others():
    louder = [jnp.where(MASK[:, None, :, None], x, 1e4 * x) for x in (Q, K, V)]
    quiet_out, quiet = attend(Q, K, V, queries=slice(1, None), mask=MASK)
    loud_out, loud = attend(*louder, queries=slice(1, None), mask=MASK)
    assert (quiet == loud).all()
    assert (jnp.where(MASK[:, None, :, None], quiet_out == loud_out, True)).all()


def test_large_logits_do_not_overflow():
    out, received = attend(100 * Q, 100 * K, V, queries=slice(0, 1), mask=None)
    assert jnp.isfinite(out).all()
    np.testing.assert_allclose(received.sum(axis=1), 1, atol=1e-5)


def test_bfloat16_tokens_still_get_float32_scores():
    out, received = attend(*(x.astype(jnp.bfloat16) for x in (Q, K, V)), queries=slice(1, None), mask=None)
    assert out.dtype == jnp.bfloat16
    assert received.dtype == jnp.float32


def test_gelu_is_the_exact_one():
    config = small("ast", width=4, heads=1)
    mlp = Mlp(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlp.fc1.kernel[...] = jnp.eye(4, 16)
    mlp.fc2.kernel[...] = jnp.eye(16, 4)
    x = jnp.linspace(-3, 3, 12).reshape(1, 3, 4)
    from math import erf, sqrt

    expected = [v * 0.5 * (1 + erf(v / sqrt(2))) for v in np.asarray(x, float).ravel()]
    np.testing.assert_allclose(mlp(x).ravel(), expected, atol=3e-7)  # the tanh form is off by 5e-4


def test_selection_keeps_extra_tokens_in_front_and_composes_positions():
    tokens = jnp.arange(2 * 6, dtype=jnp.float32).reshape(2, 6, 1)
    ids = jnp.asarray([[10, 11, 12, 13], [20, 21, 22, 23]])
    chosen = Selection(jnp.asarray([[3, 0], [1, 2]]), None)
    kept, kept_ids, alive = select(tokens, ids, chosen, extra_tokens=2)
    assert kept[..., 0].tolist() == [[0, 1, 5, 2], [6, 7, 9, 10]]
    assert kept_ids.tolist() == [[13, 10], [21, 22]]
    assert alive is None


def test_extra_tokens_are_always_alive():
    assert token_mask(jnp.asarray([[False, True]]), 2).tolist() == [[True, True, False, True]]
    assert token_mask(None, 2) is None


def test_attention_gradients_are_finite_under_a_mask():
    def loss(q, k, v):
        out, received = attend(q, k, v, queries=slice(0, 1), mask=MASK)
        return (out**2).sum() + received[:, :3].sum()

    for gradient in jax.grad(loss, argnums=(0, 1, 2))(Q, K, V):
        assert jnp.isfinite(gradient).all()
