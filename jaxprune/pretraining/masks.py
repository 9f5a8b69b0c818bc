"""Patches that the encoder sees, drawn for masked pretraining (Huang et al. 2022, section 3).

A mask is a value that draws `visible` `(b, k)` from one key a clip: the original positions of the patches that stay, in
the order in which the encoder takes them. So a clip's mask is decided by its key alone. Counts are static. The
functions below make the same from uniform noise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxprune.config import ModelConfig
from jaxprune.positions import patch_corners


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomMask:
    """Patches removed one by one, wherever they lie: the published recipe."""

    # Share of the patches that the encoder does not see.
    ratio: float = 0.8

    def __post_init__(self):
        check_ratio(self.ratio)

    def count(self, config: ModelConfig) -> int:
        """The patches that stay. Raises `ValueError` if none does."""
        return visible_count(self.ratio, config.patches)

    def draw(self, keys: Key[Array, "b"], config: ModelConfig) -> Int[Array, "b k"]:
        """The patches that stay, in rising order of their noise."""
        return random_visible(_noise(keys, config.patches), ratio=self.ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeFrequencyMask:
    """Removes whole time steps and whole bands. A patch stays if both of its own stay."""

    # Share of the time steps that the encoder does not see.
    time_ratio: float = 0.7
    # Share of the bands that the encoder does not see.
    freq_ratio: float = 0.3

    def __post_init__(self):
        check_ratio(self.time_ratio)
        check_ratio(self.freq_ratio)

    def count(self, config: ModelConfig) -> int:
        """The patches that stay. Raises `ValueError` if none does."""
        time, freq = config.grid
        return visible_count(self.time_ratio, time) * visible_count(self.freq_ratio, freq)

    def draw(self, keys: Key[Array, "b"], config: ModelConfig) -> Int[Array, "b k"]:
        """The patches that stay, in rising order of position."""
        time, freq = config.grid
        noise = _noise(keys, time + freq)
        return time_frequency_visible(
            noise[:, :time], noise[:, time:], config=config, time_ratio=self.time_ratio, freq_ratio=self.freq_ratio
        )


Mask = RandomMask | TimeFrequencyMask


def check_ratio(ratio: float) -> None:
    """Raises `ValueError` for a mask ratio outside [0, 1)."""
    if not 0 <= ratio < 1:
        raise ValueError(f"mask ratio {ratio!r} is not allowed; it must be at least 0 and less than 1")


def visible_count(ratio: float, count: int) -> int:
    """The number of patches, steps or bands that a mask ratio leaves: `int(count * (1 - ratio))`, as published.

    Raises `ValueError` for a ratio outside [0, 1) and for one that leaves nothing.
    """
    check_ratio(ratio)
    kept = int(count * (1 - ratio))
    if kept < 1:
        raise ValueError(f"mask ratio {ratio!r} leaves none of {count}; choose a smaller one")
    return kept


def random_visible(noise: Float[Array, "b n"], *, ratio: float) -> Int[Array, "b k"]:
    """The patches of least noise, in rising order of their noise: the published recipe, with a ratio of 0.8."""
    return jnp.argsort(noise, axis=1)[:, : visible_count(ratio, noise.shape[1])].astype(jnp.int32)


def time_frequency_visible(
    time_noise: Float[Array, "b time"],
    freq_noise: Float[Array, "b freq"],
    *,
    config: ModelConfig,
    time_ratio: float = 0.7,
    freq_ratio: float = 0.3,
) -> Int[Array, "b k"]:
    """The patches whose time step and frequency band both stay, in rising order of position.

    The steps and bands of least noise stay. The original pushes removed patches back by 999, which is too little on
    grids of more patches. This has no such limit.
    """
    steps = patch_corners(config) // np.array([config.time_stride, config.freq_stride])  # n 2
    stays = _least(time_noise, time_ratio)[:, steps[:, 0]] & _least(freq_noise, freq_ratio)[:, steps[:, 1]]  # b n
    time, freq = config.grid
    count = visible_count(time_ratio, time) * visible_count(freq_ratio, freq)
    return jnp.argsort(~stays, axis=1)[:, :count].astype(jnp.int32)  # stable: in rising order of position


def removed(visible: Int[Array, "b k"], *, patches: int) -> Bool[Array, "b n"]:
    """True for the patches that the encoder does not see: those that are to be predicted."""
    return ~(visible[:, :, None] == jnp.arange(patches)[None, None]).any(axis=1)


def _least(noise: Float[Array, "b m"], ratio: float) -> Bool[Array, "b m"]:
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    return rank < visible_count(ratio, noise.shape[1])


def _noise(keys: Key[Array, "b"], count: int) -> Float[Array, "b {count}"]:
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def draw_noise(key: jax.Array, *, clips: int, count: int) -> Float[Array, "clips count"]:
    """One uniform number a clip and patch, step or band."""
    return jax.random.uniform(key, (clips, count))
