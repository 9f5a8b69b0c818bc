"""Attention to keys that a decision weighs, against the formula written key by key in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from quick import quick_compiling  # noqa: F401
from reduction.torch_dynamic import masked_softmax

from jaxprune.ops import attention_chunked, attention_weighted

B, S, H, C = 2, 9, 3, 4
RNG = np.random.default_rng(0)
QKV = RNG.standard_normal((B, S, 3, H, C)).astype(np.float32)
DECISION = np.array([[1, 1, 0, 1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 1, 0, 0, 1]], np.float32)
PULL = RNG.standard_normal((B, S, H, C)).astype(np.float32)
ALL = slice(None)


def test_values_and_gradients_are_pytorchs():
    qkv, decision = (torch.tensor(x, requires_grad=True) for x in (QKV, DECISION))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attention = masked_softmax(q @ k.transpose(-1, -2) * C**-0.5, decision)
    expected = (attention @ v).transpose(1, 2)
    (expected * torch.tensor(PULL)).sum().backward()

    def ours(qkv, decision):
        mixed, _ = attention_weighted.attend(qkv, queries=ALL, decision=decision)
        return (mixed * PULL).sum(), mixed

    gradients, found = jax.grad(ours, argnums=(0, 1), has_aux=True)(jnp.asarray(QKV), jnp.asarray(DECISION))
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(gradients[0], qkv.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(gradients[1], decision.grad.numpy(), atol=1e-6)


def test_what_tokens_receive_is_the_mean_over_heads_and_the_queries_that_count():
    q, k, _ = torch.tensor(QKV).permute(2, 0, 3, 1, 4)
    attention = masked_softmax(q @ k.transpose(-1, -2) * C**-0.5, torch.tensor(DECISION)).numpy()
    for queries in (slice(0, 1), slice(1, None)):
        _, found = attention_weighted.attend(jnp.asarray(QKV), queries=queries, decision=jnp.asarray(DECISION))
        for clip in range(B):
            rows = [row for row in range(S)[queries] if DECISION[clip, row]]
            np.testing.assert_allclose(found[clip], attention[clip][:, rows].mean(axis=(0, 1)), atol=1e-6)


def test_decisions_of_one_and_zero_are_close_to_all_and_to_a_mask():
    for decision in (np.ones_like(DECISION), DECISION):
        mask = jnp.asarray(decision > 0)
        mixed, received = attention_weighted.attend(jnp.asarray(QKV), queries=ALL, decision=jnp.asarray(decision))
        expected, paid = attention_chunked.attend(jnp.asarray(QKV), queries=ALL, mask=mask)
        np.testing.assert_allclose(
            np.where(mask[..., None, None], mixed, 0), np.where(mask[..., None, None], expected, 0), atol=1e-5
        )
        np.testing.assert_allclose(np.where(mask, received, 0), np.where(mask, paid, 0), atol=1e-5)


def test_bfloat16_stays_bfloat16():
    mixed, received = attention_weighted.attend(
        jnp.asarray(QKV, jnp.bfloat16), queries=ALL, decision=jnp.asarray(DECISION)
    )
    assert (mixed.dtype, received.dtype) == (jnp.bfloat16, jnp.float32)
