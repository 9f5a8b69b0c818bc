"""Arithmetic on groups: arrays `(b, n0)` that say which token holds each original patch, -1 where none does."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def of_positions(patch_ids: Int[Array, "b n"], alive: Bool[Array, "b n"] | None, *, patches: int) -> Int[Array, "b n0"]:
    """The groups where every token is one patch: the token's place at its patch's number, -1 elsewhere."""
    places = jnp.broadcast_to(jnp.arange(patch_ids.shape[1], dtype=jnp.int32), patch_ids.shape)
    if alive is not None:
        places = jnp.where(alive, places, -1)
    nowhere = jnp.full((patch_ids.shape[0], patches), -1, jnp.int32)
    return jax.vmap(lambda row, ids, at: row.at[ids].set(at))(nowhere, patch_ids, places)


def moved(groups: Int[Array, "b n0"], places: Int[Array, "b n"]) -> Int[Array, "b n0"]:
    """The groups after each token went to a new place. -1 in `places` is a token that was dropped."""
    return jnp.where(groups < 0, -1, jnp.take_along_axis(places, jnp.maximum(groups, 0), axis=1))


def sums(values: Float[Array, "b n0"], groups: Int[Array, "b n0"], *, tokens: int) -> Float[Array, "b n"]:
    """Each token's sum of the values of the patches that it holds."""
    nothing = jnp.zeros((groups.shape[0], tokens), values.dtype)
    held = jnp.where(groups < 0, tokens, groups)  # beyond the end: nowhere
    return jax.vmap(lambda row, at, values: row.at[at].add(values, mode="drop"))(nothing, held, values)


def sizes(groups: Int[Array, "b n0"], *, tokens: int) -> Int[Array, "b n"]:
    """The number of patches that each token holds, int32."""
    return sums(jnp.ones(groups.shape, jnp.float32), groups, tokens=tokens).astype(jnp.int32)


def first_patches(groups: Int[Array, "b n0"], *, tokens: int) -> Int[Array, "b n"]:
    """The lowest patch that each token holds, or 0 for a token that holds none."""
    patches = groups.shape[1]
    numbers = jnp.broadcast_to(jnp.arange(patches, dtype=jnp.int32), groups.shape)
    held = jnp.where(groups < 0, tokens, groups)
    unknown = jnp.full((groups.shape[0], tokens), patches, jnp.int32)
    lowest = jax.vmap(lambda row, at, numbers: row.at[at].min(numbers, mode="drop"))(unknown, held, numbers)
    return jnp.where(lowest == patches, 0, lowest)
