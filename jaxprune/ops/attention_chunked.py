"""Attention in parts. It also gives the attention that every token received, and never holds all weights.

The weights `(b, h, s, s)` are the largest array of a transformer on spectrograms. Only products with them matter: the
mixed values and, for pruning, sums over queries. So they are computed in parts: on a CPU some heads at a time, so that
a part fits the cache; elsewhere some queries at a time. The backward pass computes them once more, from the log-sum-exp
of each query. Parts differ from the whole by rounding only (`tests/ops/test_attention.py` has the whole).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jax.custom_derivatives import SymbolicZero
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float, Shaped

from jaxprune.ops.xla_cpu import stored

WHOLE_BYTES = 12 << 20  # of weights, up to which parts would only cost time
HEADS_BYTES = 4 << 20  # weights of the heads taken together, on a CPU; one head may have more
QUERIES = 128  # taken together, elsewhere


def attend(
    qkv: Float[Array, "b s 3 h c"],
    *,
    queries: slice,
    mask: Bool[Array, "b s"] | None,
    bias: Float[Array, "b s"] | None = None,
) -> tuple[Float[Array, "b s h c"], Float[Array, "b s"]]:
    """Softmax attention, scale c ** -0.5, and the attention that each token received.

    The second result is float32, the mean over heads and over the unmasked `queries`. A token where `mask` is False
    gets weight 0 as a key and does not count as a query. Its own output row is finite; ignore it. `bias` is added to
    the logits of a key. It gets no gradient; both results have one.
    """
    b, s, _, h, _ = qkv.shape
    asked = jnp.zeros((b, s), jnp.float32).at[:, queries].set(1)
    if mask is not None:
        asked = asked * mask
    share = asked / (h * jnp.maximum(asked.sum(axis=1, keepdims=True), 1))
    terms = Terms(mask, None if bias is None else jax.lax.stop_gradient(bias))
    # A program exported for any number of clips is not taken apart: its sizes are unknown.
    if not is_symbolic_dim(b) and 4 * b * h * s * s > WHOLE_BYTES:
        return in_parts(qkv, terms, share)
    found = part(*by_role(qkv), terms, share)
    return rearrange(found.mixed, "(b h) s c -> b s h c", b=b), found.received


class Terms(NamedTuple):
    """The part of a key in its logits: minus infinity where `mask` is False, and `bias` is added. None: nothing."""

    mask: Bool[Array, "b s"] | None
    bias: Float[Array, "b s"] | None = None


class Part(NamedTuple):
    """Attention of some heads or queries: the `mixed` values, the attention that tokens `received`, and `log_sum`, the
    log-sum-exp of each query's logits. `g` counts the heads of all clips, clip by clip."""

    mixed: Float[Array, "g q c"]
    received: Float[Array, "b s"]
    log_sum: Float[Array, "g q"]


class Wanted(NamedTuple):
    """Cotangents of a part's results. `d_received` is None when the received attention needs no gradient."""

    mixed: Float[Array, "g q c"]
    log_sum: Float[Array, "g q"]
    d_mixed: Float[Array, "g q c"]
    d_received: Float[Array, "b s"] | None


def part(
    q: Float[Array, "g q c"],
    k: Float[Array, "g s c"],
    v: Float[Array, "g s c"],
    terms: Terms,
    share: Float[Array, "b q"],
) -> Part:
    """Attention of some queries. Each has a `share` in what tokens receive."""
    logits = with_terms(q, k, terms)
    top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    # The division comes after the product with v: s * c divisions, not s * s. `stored` keeps the CPU's kernel library
    # from making one kernel of all this. That kernel would ask the system for the weights' memory anew in each part.
    total = stored(weights.sum(axis=-1))  # g q
    mixed = jnp.einsum("gqk,gkc->gqc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    received = jnp.einsum("gqk,gq->gk", weights, for_heads(share, like=q) / total)
    return Part(
        (mixed / total[..., None]).astype(v.dtype),
        reduce(received, "(b h) k -> b k", "sum", b=share.shape[0]),
        top[..., 0] + jnp.log(total),
    )


def part_gradient(
    q: Float[Array, "g q c"],
    k: Float[Array, "g s c"],
    v: Float[Array, "g s c"],
    terms: Terms,
    share: Float[Array, "b q"],
    wanted: Wanted,
) -> tuple[Float[Array, "g q c"], Float[Array, "g s c"], Float[Array, "g s c"]]:
    """Gradients by q, k and v of a `part`; its weights are computed again."""
    weights = jnp.exp(with_terms(q, k, terms) - wanted.log_sum[..., None])  # g q k, sum 1 over k
    d_mixed = wanted.d_mixed
    d_weights = jnp.einsum("gqc,gkc->gqk", d_mixed, v, preferred_element_type=jnp.float32)
    # The mean of d_weights under the weights. `stored` keeps it out of the next product's kernel.
    mean = stored((d_mixed.astype(jnp.float32) * wanted.mixed).sum(axis=-1))  # g q
    if wanted.d_received is not None:
        share, d_received = (for_heads(x, like=q) for x in (share, wanted.d_received))
        d_weights = d_weights + share[:, :, None] * d_received[:, None, :]
        mean = mean + share * jnp.einsum("gqk,gk->gq", weights, d_received)
    d_logits = (weights * (d_weights - mean[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
    return (
        jnp.einsum("gqk,gkc->gqc", d_logits, k),
        jnp.einsum("gqk,gqc->gkc", d_logits, q),
        jnp.einsum("gqk,gqc->gkc", weights.astype(d_mixed.dtype), d_mixed),
    )


def with_terms(q: Float[Array, "g q c"], k: Float[Array, "g s c"], terms: Terms) -> Float[Array, "g q s"]:
    """Scaled products of queries and keys with the terms of the keys, float32."""
    logits = masked_logits(q, k, terms.mask)
    return logits if terms.bias is None else logits + for_heads(terms.bias, like=q)[:, None, :]


def masked_logits(
    q: Float[Array, "g q c"], k: Float[Array, "g s c"], mask: Bool[Array, "b s"] | None
) -> Float[Array, "g q s"]:
    """Scaled products of queries and keys, float32, minus infinity for masked keys."""
    logits = jnp.einsum("gqc,gkc->gqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return logits if mask is None else jnp.where(for_heads(mask, like=q)[:, None, :], logits, -jnp.inf)


def for_heads(of_clips: Shaped[Array, "b s"], *, like: Float[Array, "g q c"]) -> Shaped[Array, "g s"]:
    """A clip's row for each of its heads."""
    return repeat(of_clips, "b s -> (b h) s", h=like.shape[0] // of_clips.shape[0])


@jax.custom_vjp
def in_parts(
    qkv: Float[Array, "b s 3 h c"], terms: Terms, share: Float[Array, "b s"]
) -> tuple[Float[Array, "b s h c"], Float[Array, "b s"]]:
    """`attend` in the parts that suit the platform, given each query's share. Only qkv gets a gradient."""
    return forward(qkv, terms, share)[:2]


def forward(qkv, terms, share) -> tuple[Float[Array, "b s h c"], Float[Array, "b s"], Float[Array, "b h s"]]:
    """Mixed values, what tokens received, and the log-sum-exp that the gradient needs."""
    return jax.lax.platform_dependent(qkv, terms, share, cpu=by_heads, default=by_queries)


def with_residuals(qkv, terms, share):
    qkv, terms, share = jax.tree.map(lambda primal: primal.value, (qkv, terms, share))
    mixed, received, log_sum = forward(qkv, terms, share)
    return (mixed, received), (qkv, terms, share, mixed, log_sum)


def gradient(residuals, cotangents):
    qkv, terms, share, mixed, log_sum = residuals
    d_mixed, d_received = (None if isinstance(x, SymbolicZero) else x for x in cotangents)
    if d_mixed is None:
        d_mixed = jnp.zeros_like(mixed)
    d_qkv = jax.lax.platform_dependent(
        qkv, terms, share, mixed, log_sum, d_mixed, d_received, cpu=gradient_by_heads, default=gradient_by_queries
    )
    return d_qkv, None, jnp.zeros_like(share)


in_parts.defvjp(with_residuals, gradient, symbolic_zeros=True)


def by_heads(qkv, terms, share):
    """Some heads at a time. The batch stays whole, because devices may have divided it among them."""
    b, s, _, h, _ = qkv.shape
    together = heads_together(b, h, s)

    def step(i, results):
        mixed, received, log_sum = results
        first = i * together
        found = part(*by_role(heads(qkv, first, together, axis=3)), terms, share)
        values = rearrange(found.mixed, "(b h) s c -> b s h c", b=b)
        sums = rearrange(found.log_sum, "(b h) s -> b h s", b=b)
        return (
            jax.lax.dynamic_update_slice_in_dim(mixed, values, first, axis=2),
            received + found.received,
            jax.lax.dynamic_update_slice_in_dim(log_sum, sums, first, axis=1),
        )

    # The mixed values start as the queries and are overwritten head by head. Zeros would not wait for the tokens: XLA
    # makes the zeros of all blocks when a program starts, and keeps them until their block's turn.
    start = (qkv[:, :, 0], jnp.zeros((b, s)), jnp.zeros((b, h, s)))
    return jax.lax.fori_loop(0, h // together, step, start)


def gradient_by_heads(qkv, terms, share, mixed, log_sum, d_mixed, d_received):
    """The backward pass of `by_heads`: each head's queries, keys and values give way to their gradients."""
    b, s, _, h, _ = qkv.shape
    together = heads_together(b, h, s)

    def step(i, qkv):
        first = i * together
        values, d_values = (
            rearrange(heads(x, first, together, axis=2), "b s h c -> (b h) s c") for x in (mixed, d_mixed)
        )
        sums = rearrange(heads(log_sum, first, together, axis=1), "b h s -> (b h) s")
        wanted = Wanted(values, sums, d_values, d_received)
        found = part_gradient(*by_role(heads(qkv, first, together, axis=3)), terms, share, wanted)
        d_heads = rearrange(jnp.stack(found), "three (b h) s c -> b s three h c", b=b)
        return jax.lax.dynamic_update_slice_in_dim(qkv, d_heads, first, axis=3)

    return jax.lax.fori_loop(0, h // together, step, qkv)


def heads_together(b: int, h: int, s: int) -> int:
    """The largest divisor of the heads whose weights stay within `HEADS_BYTES`, at least 1."""
    return max(g for g in range(1, h + 1) if h % g == 0 and (g == 1 or 4 * b * g * s * s <= HEADS_BYTES))


def heads(x, first, count: int, *, axis: int):
    return jax.lax.dynamic_slice_in_dim(x, first, count, axis=axis)


def by_role(qkv: Float[Array, "b s 3 h c"]) -> Float[Array, "3 g s c"]:
    """Queries, keys, values of all heads of all clips, on one axis: with two, XLA copies the logits."""
    return rearrange(qkv, "b s three h c -> three (b h) s c")


def by_queries(qkv, terms, share):
    """Some queries at a time, all heads at once: few large steps, for a device with thousands of lanes."""
    b, s, _, _, _ = qkv.shape
    q, k, v = by_role(qkv)

    def step(received, of_queries):
        found = part(of_queries[0], k, v, terms, of_queries[1])
        return received + found.received, (found.mixed, found.log_sum)

    of_queries = (split(q, axis=1), split(share, axis=1))
    received, (mixed, log_sum) = jax.lax.scan(step, jnp.zeros(share.shape), of_queries)
    return (
        rearrange(mixed, "i (b h) q c -> b (i q) h c", b=b)[:, :s],
        received,
        rearrange(log_sum, "i (b h) q -> b h (i q)", b=b)[:, :, :s],
    )


def gradient_by_queries(qkv, terms, share, mixed, log_sum, d_mixed, d_received):
    """The backward pass of `by_queries`: every part adds to the gradients of all keys and values."""
    b, s, _, _, _ = qkv.shape
    q, k, v = by_role(qkv)

    def step(sums, of_queries):
        q, share, *rest = of_queries
        dq, dk, dv = part_gradient(q, k, v, terms, share, Wanted(*rest, d_received))
        return (sums[0] + dk, sums[1] + dv), dq

    values, d_values = (split(rearrange(x, "b s h c -> (b h) s c"), axis=1) for x in (mixed, d_mixed))
    log_sum = split(rearrange(log_sum, "b h s -> (b h) s"), axis=1)
    of_queries = (split(q, axis=1), split(share, axis=1), values, log_sum, d_values)
    (dk, dv), dq = jax.lax.scan(step, (jnp.zeros(k.shape), jnp.zeros(v.shape)), of_queries)
    dq = rearrange(dq, "i g q c -> g (i q) c")[:, :s]
    found = jnp.stack([dq, dk.astype(dq.dtype), dv.astype(dq.dtype)])
    return rearrange(found, "three (b h) s c -> b s three h c", b=b)


def split(x, *, axis: int):
    """The axis in parts of `QUERIES`, filled up with zeros, along a new first axis."""
    count = -(-x.shape[axis] // QUERIES)
    padded = jnp.pad(x, [(0, count * QUERIES - x.shape[i] if i == axis else 0) for i in range(x.ndim)])
    return jnp.moveaxis(padded.reshape(*x.shape[:axis], count, QUERIES, *x.shape[axis + 1 :]), axis, 0)
