"""Position tables: AudioMAE's fixed one, and fitting either family's to another number of frames.

Tables are `(p + n, d)`, extra tokens first, patches in the model's own order. Everything here is numpy, done once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float

from jaxprune.config import ModelConfig


def adapt_positions(table: Float[np.ndarray, "s d"], config: ModelConfig, *, frames: int) -> Float[np.ndarray, "s2 d"]:
    """The table of `config`'s model for spectrograms of `frames` frames, as each family's method prescribes.

    AST: the middle of a shorter time axis, bilinear interpolation to a longer one (Gong et al. 2021). AudioMAE: the
    first rows in time, which is the sin-cos table of the shorter clip; a longer one is continued by the formula. Raises
    `ValueError` where a longer AudioMAE table is asked of one that does not follow the formula.
    """
    longer = dataclasses.replace(config, frames=frames)
    if longer.grid == config.grid:
        return np.asarray(table)
    extra, patches = np.split(np.asarray(table), [config.extra_tokens])
    adapt = {"ast": adapt_ast, "audiomae": adapt_audiomae}[config.family]
    return np.concatenate([extra, adapt(patches, config, longer)])


def adapt_ast(patches: Float[np.ndarray, "n d"], old: ModelConfig, new: ModelConfig) -> Float[np.ndarray, "n2 d"]:
    """AST's patch positions, frequency-major, on a shorter or longer time axis."""
    (nt, nf), (new_nt, _) = old.grid, new.grid
    grid = rearrange(patches, "(nf nt) d -> nf nt d", nf=nf)
    if new_nt <= nt:
        start = nt // 2 - new_nt // 2
        grid = grid[:, start : start + new_nt]
    else:
        grid = np.asarray(jax.image.resize(jnp.asarray(grid), (nf, new_nt, grid.shape[2]), "linear"))
    return rearrange(grid, "nf nt d -> (nf nt) d")


def adapt_audiomae(patches: Float[np.ndarray, "n d"], old: ModelConfig, new: ModelConfig) -> Float[np.ndarray, "n2 d"]:
    """AudioMAE's patch positions, time-major, on a shorter or longer time axis."""
    if new.patches <= old.patches:
        return patches[: new.patches]
    formula = sincos_positions(new)[new.extra_tokens :].astype(patches.dtype)
    if not np.allclose(formula[: old.patches], patches, atol=1e-4):
        raise ValueError(
            f"the position table is not AudioMAE's sin-cos table for {old.frames} frames, so it cannot be continued "
            f"to {new.frames}; ask for at most {old.frames} frames"
        )
    return formula


def released_audiomae_cut(table: Float[np.ndarray, "s d"], config: ModelConfig, *, frames: int) -> np.ndarray:
    """What AudioMAE's released fine-tuning code makes of its table for shorter clips; not what it should be.

    It reads the time-major table as (frequency, time) and cuts the last axis, which scrambles the rows. Only for
    reproducing runs that trained that way; `adapt_positions` is right.
    """
    (nt, nf), (new_nt, _) = config.grid, dataclasses.replace(config, frames=frames).grid
    extra, patches = np.split(np.asarray(table), [config.extra_tokens])
    cut = rearrange(patches, "(nf nt) d -> nf nt d", nf=nf, nt=nt)[:, :new_nt]
    return np.concatenate([extra, rearrange(cut, "nf nt d -> (nf nt) d")])


def sincos_positions(config: ModelConfig) -> Float[np.ndarray, "s d"]:
    """AudioMAE's fixed table for the configuration's grid, zero for CLS, float64 (Huang et al. 2022).

    The first half of the channels encodes frequency, the second time, each as all sines, then all cosines, of
    position / 10000^(i / (d / 4)). Raises `ValueError` unless the width is a multiple of 4.
    """
    if config.width % 4:
        raise ValueError(f"width {config.width} cannot hold a 2-d sin-cos table; it must be a multiple of 4")
    omega = 10000.0 ** -(np.arange(config.width // 4) / (config.width / 4))

    def encode(positions: np.ndarray) -> np.ndarray:  # (n,) -> (n, d / 2)
        angles = positions[:, None] * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    time, freq = (axis.ravel() for axis in np.indices(config.grid))
    return np.concatenate(
        [np.zeros((config.extra_tokens, config.width)), np.concatenate([encode(freq), encode(time)], 1)]
    )
