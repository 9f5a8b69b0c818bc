"""Hints to XLA's CPU compiler: compute a value once, not before another is known, or in bfloat16's own instructions.

The compiler removes optimisation barriers before it places the work. It starts work that depends on nothing as early as
it can, each with a buffer of its own. A division by a number that happens to be 1 stops both, because the compiler
cannot see through it. On other platforms these functions are the identity. They change no value anywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def stored(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Identity that stops XLA's CPU compiler from recomputing x, forward and backward.

    The stream of tokens is a sum that grows with every block. Without this the compiler adds up all its terms again
    wherever one of the sums is read.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: x / one(x), default=lambda x: x)


stored.defvjp(lambda x: (stored(x), None), lambda _, cotangent: (stored(cotangent),))


def later(x: Float[Array, "rows d"], *, than: Float[Array, "rows e"]) -> Float[Array, "rows d"]:
    """Identity that delays reading x until `than` starts, row by row.

    A backward pass computes some values again instead of keeping them. Without this the compiler takes them for the
    forward pass's, and keeps those. It goes by rows because devices may share the rows.
    """
    first = than[:, :1]
    return jax.lax.platform_dependent(
        x, first, cpu=lambda x, first: x / one(first).astype(x.dtype), default=lambda x, _: x
    )


def one(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 for every number, NaN and infinity included."""
    sign = jnp.where(x < 0, -1, 1).astype(x.dtype)
    return sign * sign


@jax.custom_vjp
def product(x: Float[Array, "rows d"], y: Float[Array, "d e"]) -> Float[Array, "rows e"]:
    """x @ y in their dtype, forward and backward.

    On a CPU XLA has kernels for bfloat16 that give float32. A product of bfloat16 that gives bfloat16 is computed in
    float32 instead, at half the speed and between conversions of all three matrices.
    """
    if x.dtype != jnp.bfloat16:
        return x @ y
    return jax.lax.platform_dependent(x, y, cpu=_through_float32, default=jnp.matmul)


product.defvjp(lambda x, y: (product(x, y), (x, y)), lambda kept, d: (product(d, kept[1].T), product(kept[0].T, d)))


def _through_float32(x: Float[Array, "rows d"], y: Float[Array, "d e"]) -> Float[Array, "rows e"]:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(x.dtype)
