"""The places of a model's patches on its spectrogram, and the position tables that tell the model.

Models cut their patches in the order that `patch_corners` gives; pictures and statistics place them by it.

Tables are `(p + n, d)`, extra tokens first, patches in the model's own order. Everything here is numpy, done once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int

from jaxprune.config import ModelConfig
from jaxprune.families import FAMILIES


def patch_corners(config: ModelConfig) -> Int[np.ndarray, "n 2"]:
    """Each patch's first (frame, mel bin): frequency-major for AST, time-major for AudioMAE."""
    time, freq = config.grid
    order = {"time": "F", "frequency": "C"}[FAMILIES[config.family].fastest]  # Fortran: the first index runs fastest
    steps = np.stack(np.unravel_index(np.arange(config.patches), (time, freq), order=order), axis=1)
    return steps * np.array([config.time_stride, config.freq_stride])


def covered(config: ModelConfig, patch_ids: Int[np.ndarray, "k"]) -> Bool[np.ndarray, "t f"]:
    """True for pixels under at least one of the patches. Patches overlap where strides are short."""
    first = patch_corners(config)[patch_ids]
    frames, bins = (first[:, axis, None] + np.arange(config.patch) for axis in (0, 1))  # each k patch
    pixels = np.zeros((config.frames, config.mels), bool)
    pixels[frames[:, :, None], bins[:, None, :]] = True
    return pixels


def in_padding(config: ModelConfig, patch_ids: Int[np.ndarray, "k"], *, frames: int) -> Bool[np.ndarray, "k"]:
    """True for patches wholly beyond the first `frames` frames, where a clip has ended and padding begun."""
    return patch_corners(config)[patch_ids, 0] >= frames


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
    adapt = {"learned": adapt_learned, "sincos": adapt_sincos}[FAMILIES[config.family].positions]
    return np.concatenate([extra, adapt(patches, config, longer)])


def adapt_learned(patches: Float[np.ndarray, "n d"], old: ModelConfig, new: ModelConfig) -> Float[np.ndarray, "n2 d"]:
    """AST's patch positions, frequency-major, on a shorter or longer time axis."""
    (nt, nf), (new_nt, _) = old.grid, new.grid
    grid = rearrange(patches, "(nf nt) d -> nf nt d", nf=nf)
    if new_nt <= nt:
        start = nt // 2 - new_nt // 2
        grid = grid[:, start : start + new_nt]
    else:
        grid = np.asarray(jax.image.resize(jnp.asarray(grid), (nf, new_nt, grid.shape[2]), "linear"))
    return rearrange(grid, "nf nt d -> (nf nt) d")


def adapt_sincos(patches: Float[np.ndarray, "n d"], old: ModelConfig, new: ModelConfig) -> Float[np.ndarray, "n2 d"]:
    """AudioMAE's patch positions, time-major, on a shorter or longer time axis."""
    if new.patches <= old.patches:
        return patches[: new.patches]
    for formula in (swapped_positions, sincos_positions):
        if np.allclose(formula(old)[old.extra_tokens :], patches, rtol=0, atol=1e-5):
            continued = formula(new)[new.extra_tokens :].astype(patches.dtype)
            return np.concatenate([patches, continued[old.patches :]])
    raise ValueError(
        f"the position table is not AudioMAE's sin-cos table for {old.frames} frames, so it cannot be continued "
        f"to {new.frames}; ask for at most {old.frames} frames"
    )


def released_audiomae_cut(table: Float[np.ndarray, "s d"], config: ModelConfig, *, frames: int) -> np.ndarray:
    """The table that AudioMAE's released fine-tuning code makes for shorter clips; not what it should be.

    It reads the time-major table as (frequency, time) and cuts the last axis, which scrambles the rows. Only for
    reproducing runs that trained that way; `adapt_positions` is right. Raises `ValueError` for an AST.
    """
    if FAMILIES[config.family].positions != "sincos":
        raise ValueError(f"the released cut is AudioMAE's published slip; a model of family {config.family} has none")
    (nt, nf), (new_nt, _) = config.grid, dataclasses.replace(config, frames=frames).grid
    extra, patches = np.split(np.asarray(table), [config.extra_tokens])
    cut = rearrange(patches, "(nf nt) d -> nf nt d", nf=nf, nt=nt)[:, :new_nt]
    return np.concatenate([extra, rearrange(cut, "nf nt d -> (nf nt) d")])


def sincos_positions(config: ModelConfig) -> Float[np.ndarray, "s d"]:
    """AudioMAE's fixed table for the configuration's grid, zero for CLS, float64 (Huang et al. 2022).

    The first half of the channels encodes frequency, the second time, each as all sines, then all cosines, of
    position / 10000^(i / (d / 4)). Raises `ValueError` unless the width is a multiple of 4.
    """
    time, freq = (axis.ravel() for axis in np.indices(config.grid))
    return _sincos(freq, time, config=config)


def swapped_positions(config: ModelConfig) -> Float[np.ndarray, "s d"]:
    """AudioMAE's table as published: its grid has 64 columns, though the patches run over 8 in frequency.

    The first half of the channels encodes patch r's column r % 64, the second its row r // 64. Weights were trained so.
    """
    row, column = np.divmod(np.arange(config.patches), 64)
    return _sincos(column, row, config=config)


def published_positions(config: ModelConfig) -> Float[np.ndarray, "s d"]:
    """The table that AudioMAE's released checkpoints carry: with swapped sides, unless the patches overlap."""
    apart = config.time_stride == config.freq_stride == config.patch
    return swapped_positions(config) if apart else sincos_positions(config)


def _sincos(
    first: Int[np.ndarray, "n"], second: Int[np.ndarray, "n"], *, config: ModelConfig
) -> Float[np.ndarray, "s d"]:
    """A table whose halves encode the patches' two coordinates, after zeros for the extra tokens."""
    if config.width % 4:
        raise ValueError(f"width {config.width} cannot hold a 2-d sin-cos table; it must be a multiple of 4")
    omega = 10000.0 ** -(np.arange(config.width // 4) / (config.width / 4))

    def encode(positions: np.ndarray) -> np.ndarray:  # (n,) -> (n, d / 2)
        angles = positions[:, None] * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    patches = np.concatenate([encode(first), encode(second)], axis=1)
    return np.concatenate([np.zeros((config.extra_tokens, config.width)), patches])
