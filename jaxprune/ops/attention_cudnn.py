"""Attention through the fused kernels of a library, cuDNN on a GPU: the weights `(b, h, s, s)` never leave the chip.

Such kernels give the mixed values but not the attention received. Their backward pass gives that: the gradient by the
values is `weights.T @ d_mixed`. Set the output gradient to one on the chosen queries: the gradient by the values is
then the received attention. The kernel rounds its results to bfloat16. Therefore each query has its one in one of the c
channels, a channel holds the sum over every c-th query, and the channels are added up in float32.

Only bfloat16 goes this way, and only where the library has just agreed with the plain formula on this device (`suits`).
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jaxprune.ops.attention_chunked import QUERIES, masked_logits, split

LIBRARY: Literal["cudnn", "xla"] = "cudnn"  # of `jax.nn.dot_product_attention`; xla runs anywhere, for tests
CHANNELS = 128  # of a head, at most
APART = 0.03  # share of the largest number by which results may differ


def suits(dtype: Any, *, channels: int) -> bool:
    """True if attention in this dtype, with heads of so many channels, goes through cuDNN on this machine."""
    possible = dtype == jnp.bfloat16 and channels % 8 == 0 and channels <= CHANNELS
    return possible and jax.default_backend() == "gpu" and works(channels)


@functools.cache
def works(channels: int) -> bool:
    """True if cuDNN gives the plain formula's results and gradients on the first device.

    Tried once a process, on a few tokens. Where it raises or differs there is a `RuntimeWarning`, and False.
    """
    clips, tokens, heads = 2, 38, 2
    real = tokens - 1
    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(0)
        qkv = jnp.asarray(rng.standard_normal((3, clips, tokens, heads, channels)), jnp.bfloat16)
        masks = (None, jnp.asarray(rng.random((clips, tokens)) < 0.7).at[:, 0].set(True))
        asked = jnp.ones((clips, tokens), jnp.float32)

        def of(function: Callable[..., Any]) -> list[Array]:
            def loss(qkv, mask):
                mixed, sums = function(*qkv, mask, asked, real)
                return (mixed.astype(jnp.float32) ** 2).sum(), (mixed, sums)

            found = [jax.jit(jax.grad(loss, has_aux=True))(qkv, mask) for mask in masks]
            return [x.astype(jnp.float32) for x in jax.tree.leaves(found)]

        try:
            both = zip(of(mixed_and_sums), of(plain), strict=True)
            apart = max(float(jnp.abs(found - right).max() / jnp.abs(right).max()) for found, right in both)
            problem = "" if apart <= APART else f"its results are off by {apart:.1%} of the largest"
        except Exception as error:  # any type: whatever a driver or the library lacks, the plain way does without
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if problem:
        warnings.warn(f"attention goes the slower way without {LIBRARY} ({problem})", RuntimeWarning, stacklevel=2)
    return not problem


def plain(q, k, v, mask, asked, real):
    """The results of `mixed_and_sums`, from all weights at once, float32."""
    weights = all_weights(q, k, real_keys(mask, k, real))
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v), jnp.einsum("bhqk,bq->bk", weights, asked)


def attend(
    tokens: Float[Array, "b s d"],
    project: Callable[[Float[Array, "b s d"], slice], Float[Array, "b s r h c"]],
    *,
    queries: slice,
    mask: Bool[Array, "b s"] | None,
) -> tuple[Float[Array, "b rows h c"], Float[Array, "b s"]]:
    """Attends as `jaxprune.ops.attention.attend` does. Ignore the last row of mixed values where s is odd."""
    s = tokens.shape[1]
    # cuDNN's gradient wants an even number of tokens, and all of it queries, keys and values as arrays of their own:
    # before the projection that costs nothing, after it a copy of everything.
    even = ((0, 0), (0, s % 2))
    tokens = jnp.pad(tokens, (*even, (0, 0)))
    mask = None if mask is None else jnp.pad(mask, even)
    q, k, v = (project(tokens, slice(role, role + 1))[:, :, 0] for role in range(3))
    rows = range(s)[queries]
    asked = jnp.zeros(tokens.shape[:2], jnp.float32).at[:, rows.start : rows.stop : rows.step].set(1)
    asked = asked if mask is None else asked * mask
    if len(rows) <= QUERIES:
        mixed = mix(q, k, v, mask, s)
        few = slice(rows.start, rows.stop, rows.step)
        sums = weight_sums(q[:, few], k, real_keys(mask, k, s), asked[:, few])
    else:
        mixed, sums = mixed_and_sums(q, k, v, mask, asked, s)
    share = q.shape[2] * jnp.maximum(asked.sum(axis=1, keepdims=True), 1)
    return mixed, (sums / share)[:, :s]


def mix(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s h c"],
    v: Float[Array, "b s h c"],
    mask: Bool[Array, "b s"] | None,
    real: int,
) -> Float[Array, "b s h c"]:
    """The library's attention to unmasked keys, or, without a mask, to the first `real` ones."""
    b, s, _, _ = q.shape
    if mask is not None:
        limits = {"mask": jnp.broadcast_to(mask[:, None, None], (b, 1, s, s))}
    else:
        limits = {"key_value_seq_lengths": jnp.full((b,), real, jnp.int32)} if real < s else {}
    return jax.nn.dot_product_attention(q, k, v, **limits, implementation=LIBRARY)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def mixed_and_sums(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s h c"],
    v: Float[Array, "b s h c"],
    mask: Bool[Array, "b s"] | None,
    asked: Float[Array, "b s"],
    real: int,
) -> tuple[Float[Array, "b s h c"], Float[Array, "b s"]]:
    """`mix`, and the sum of each key's weights over heads and the queries where `asked` is 1. No gradient goes to
    `asked`."""
    return with_pullback(q, k, v, mask, asked, real)[0]


def with_pullback(q, k, v, mask, asked, real):
    """Both results, and what takes the cotangent of the mixed values to q, k and v."""
    mixed, pull = jax.vjp(lambda q, k, v: mix(q, k, v, mask, real), q, k, v)
    _, s, _, c = q.shape
    own_channel = jax.nn.one_hot(jnp.arange(s) % c, c)[None, :, None]
    ones = jnp.broadcast_to(asked[:, :, None, None] * own_channel, mixed.shape)
    _, _, sums = pull(ones.astype(mixed.dtype))
    return (mixed, sums.astype(jnp.float32).sum(axis=(2, 3))), pull


def forward(q, k, v, mask, asked, real):
    q, k, v, asked, mask = (None if x is None else x.value for x in (q, k, v, asked, mask))
    results, pull = with_pullback(q, k, v, mask, asked, real)
    return results, (q, k, mask, asked, pull)


def backward(real, residuals, cotangents):
    q, k, mask, asked, pull = residuals
    d_mixed, d_sums = cotangents
    d_q, d_k, d_v = (jnp.zeros_like(x) for x in (q, k, k)) if isinstance(d_mixed, SymbolicZero) else pull(d_mixed)
    if not isinstance(d_sums, SymbolicZero):
        _, pull_sums = jax.vjp(lambda q, k: sums_in_parts(q, k, real_keys(mask, k, real), asked), q, k)
        more_q, more_k = pull_sums(d_sums)
        d_q, d_k = d_q + more_q, d_k + more_k
    return d_q, d_k, d_v, None, jnp.zeros_like(asked)


mixed_and_sums.defvjp(forward, backward, symbolic_zeros=True)


def sums_in_parts(
    q: Float[Array, "b s h c"], k: Float[Array, "b s h c"], mask: Bool[Array, "b s"] | None, asked: Float[Array, "b s"]
) -> Float[Array, "b s"]:
    """`weight_sums`, some queries at a time, whose weights the gradient computes again."""
    some = jax.checkpoint(lambda q, asked: weight_sums(q, k, mask, asked))
    parts = split(q, axis=1), split(asked, axis=1)
    return jax.lax.scan(lambda sums, part: (sums + some(*part), None), jnp.zeros(asked.shape), parts)[0]


def weight_sums(
    q: Float[Array, "b q h c"], k: Float[Array, "b s h c"], mask: Bool[Array, "b s"] | None, asked: Float[Array, "b q"]
) -> Float[Array, "b s"]:
    """Each key's weights, summed over heads and the queries where `asked` is 1, from an array of all these weights."""
    return jnp.einsum("bhqk,bq->bk", all_weights(q, k, mask), asked)


def all_weights(
    q: Float[Array, "b q h c"], k: Float[Array, "b s h c"], mask: Bool[Array, "b s"] | None
) -> Float[Array, "b h q s"]:
    """The softmax of each query's logits, float32."""
    logits = masked_logits(*(rearrange(x, "b s h c -> (b h) s c") for x in (q, k)), mask)
    return rearrange(jax.nn.softmax(logits, axis=-1), "(b h) q s -> b h q s", b=len(q))


def real_keys(mask: Bool[Array, "b s"] | None, k: Float[Array, "b s h c"], real: int) -> Bool[Array, "b s"] | None:
    """The keys that count: the unmasked, or the first `real` ones; None: all."""
    if mask is not None or real == k.shape[1]:
        return mask
    return jnp.broadcast_to(jnp.arange(k.shape[1]) < real, k.shape[:2])
