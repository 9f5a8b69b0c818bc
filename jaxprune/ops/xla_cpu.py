"""Hints to XLA's CPU compiler: values to compute once, and not before others are known.

It takes optimisation barriers away before it decides what to compute where, and it starts whatever depends on nothing
as early as it can, with a buffer for each. What it cannot see through is a division by a number that happens to be 1.
Elsewhere these functions are the identity. They change no value anywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def stored(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x itself, computed once, and so its cotangent.

    The stream of tokens is a sum that grows with every block: the compiler would rather add up all its terms again
    wherever one of the sums is read.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: x / one(x), default=lambda x: x)


stored.defvjp(lambda x: (stored(x), None), lambda _, cotangent: (stored(cotangent),))


def later(x: Float[Array, "rows d"], *, than: Float[Array, "rows e"]) -> Float[Array, "rows d"]:
    """x itself, of which no row is to be read before the same row of `than` has begun.

    For what a backward pass computes again instead of keeping it: the compiler would take it for the forward pass's,
    and keep that. By rows, because devices may have divided them among them.
    """
    first = than[:, :1]
    return jax.lax.platform_dependent(
        x, first, cpu=lambda x, first: x / one(first).astype(x.dtype), default=lambda x, _: x
    )


def one(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1 for every number, NaN and infinity included."""
    sign = jnp.where(x < 0, -1, 1).astype(x.dtype)
    return sign * sign
