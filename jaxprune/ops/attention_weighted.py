"""Attention to keys that count by a decision between 0 and 1, with a gradient by it (DynamicViT, Rao et al. 2021).

In training DynamicViT drops no token: each stays, and its decision says how much others attend to it. This holds all
weights `(b, h, s, s)` of a block at a time, and the backward pass computes them again. Where tokens are really dropped,
use `jaxprune.ops.attention`.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from jaxprune.ops.attention_chunked import by_role, masked_logits

EPS = 1e-6


def attend(
    qkv: Float[Array, "b s 3 h c"], *, queries: slice, decision: Float[Array, "b s"]
) -> tuple[Float[Array, "b s h c"], Float[Array, "b s"]]:
    """Attention with `decided_softmax`, and the attention that each token received.

    `decision` is 1 for a key that counts in full and 0 for a dropped one. The second result is float32, the mean over
    heads and over the `queries`, each by its decision. Both results have a gradient, also by the decision.
    """
    b, s, _, h, _ = qkv.shape
    asked = jnp.zeros((b, s), jnp.float32).at[:, queries].set(1) * decision
    share = asked / (h * jnp.maximum(asked.sum(axis=1, keepdims=True), EPS))

    @jax.checkpoint
    def recomputed(qkv, decision, share):
        q, k, v = by_role(qkv)
        logits = rearrange(masked_logits(q, k, None), "(b h) q k -> b h q k", b=b)
        attention = decided_softmax(logits, decision)
        values = rearrange(v, "(b h) k c -> b h k c", b=b)
        mixed = jnp.einsum("bhqk,bhkc->bqhc", attention.astype(v.dtype), values, preferred_element_type=jnp.float32)
        return mixed.astype(v.dtype), jnp.einsum("bhqk,bq->bk", attention, share)

    return recomputed(qkv, decision, share)


def decided_softmax(logits: Float[Array, "b h s s"], decision: Float[Array, "b s"]) -> Float[Array, "b h s s"]:
    """The softmax over keys, each exponential times its key's decision; every token counts in full for itself. Float32.

    (e + eps / s) / (sum of e + eps) with eps 1e-6, as published: a dropped key keeps about eps / s. The largest logit
    is taken off first, over all keys, the dropped ones too. So a dropped key whose logit lies more than 87 above all
    others would leave nothing of them; the original has the same limit. The gradient goes through the largest logit as
    well: because of eps it is not zero, and without it a predictor's gradient is off by 1e-4 of its norm.
    """
    s = logits.shape[-1]
    self_too = jnp.where(jnp.eye(s, dtype=bool)[None], 1, decision[:, None, :])  # b s s
    top = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - top) * self_too[:, None]
    return (exponentials + EPS / s) / (exponentials.sum(axis=-1, keepdims=True) + EPS)
