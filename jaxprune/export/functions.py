"""The table of whole functions that runtimes have an operator for: LayerNorm, GELU, softmax.

A function is known by its name in the trace. One that this table does not know is written operation by operation, which
is as right but slower. Attention is traced through `attend`, in the form that runtimes recognise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from jaxprune.export.lowering import Lowering, NotExportable, Value
from jaxprune.ops.attention import ROLES, Project


def attend(
    tokens: Float[Array, "b s d"],
    project: Project,
    *,
    queries: slice,
    mask: Bool[Array, "b s"] | None,
    bias: Float[Array, "b s"] | None = None,
    decision: Float[Array, "b s"] | None = None,
) -> tuple[Float[Array, "b s h c"], Float[Array, "b s"]]:
    """`jaxprune.ops.attention.attend` with all weights `(b, h, s, s)` at once, which runtimes recognise.

    Raises `NotExportable` for a decision, which only training makes.
    """
    if decision is not None:
        raise NotExportable("the policy is one of training (DynamicViT's decisions); export one of inference")
    q, k, v = rearrange(project(tokens, ROLES), "b s three h c -> three b h s c")
    logits = jnp.einsum("bhqc,bhkc->bhqk", q * q.shape[-1] ** -0.5, k)
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    weights = softmax_of_last_axis(logits)
    mixed = jnp.einsum("bhqk,bhkc->bhqc", weights, v).swapaxes(1, 2)
    asked = weights[:, :, queries]
    if mask is None:
        return mixed, asked.mean(axis=(1, 2))
    counted = mask[:, queries].astype(jnp.float32)  # b q
    sums = jnp.einsum("bhqk,bq->bk", asked, counted)
    return mixed, sums / (jnp.maximum(counted.sum(axis=1, keepdims=True), 1) * q.shape[1])


@jax.jit
def softmax_of_last_axis(logits: Float[Array, "b h q k"]) -> Float[Array, "b h q k"]:
    """Softmax, under a name that the table knows."""
    return jax.nn.softmax(logits, axis=-1)


def softmax(to: Lowering, inner: Any, logits: Value) -> Value:
    return to.op("Softmax", to.whole(logits, inner.in_avals[0].shape), shape=inner.in_avals[0].shape, axis=-1)


def layer_norm(to: Lowering, inner: Any, x: Value, scale: Value, bias: Value) -> Value | None:
    """LayerNormalization, or None where its epsilon cannot be found in the trace."""
    epsilon = _epsilon(inner.jaxpr)
    if epsilon is None:
        return None
    shape = inner.in_avals[0].shape
    return to.op("LayerNormalization", to.whole(x, shape), scale, bias, shape=shape, axis=-1, epsilon=epsilon)


def _epsilon(jaxpr: Any) -> float | None:
    """The number that is added before the root is taken."""
    made_by = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    for eqn in jaxpr.eqns:
        added = made_by.get(eqn.invars[0]) if eqn.primitive.name == "rsqrt" else None
        if added is not None and added.primitive.name == "add":
            literals = [var for var in added.invars if hasattr(var, "val")]
            return float(literals[0].val) if literals else None
    return None


def gelu_product(to: Lowering, inner: Any, x: Value, kernel: Value, bias: Value) -> Value:
    rows, d = inner.in_avals[0].shape
    shape = (rows, inner.in_avals[1].shape[1])
    bent = to.op("Gelu", to.whole(x, (rows, d)), shape=(rows, d))
    return to.op("Add", to.op("MatMul", bent, kernel, shape=shape), bias, shape=shape)


def stored(to: Lowering, inner: Any, x: Value) -> Value:
    """A hint to XLA, which is the identity."""
    return x


FUNCTIONS = {
    "normalised": layer_norm,
    "gelu_product": gelu_product,
    "softmax_of_last_axis": softmax,
    "stored": stored,
}
