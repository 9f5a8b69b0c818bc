"""Where a model's patches lie on its spectrogram, by their index in the model's own order.

The one place that knows each family's order: models cut their patches by it, pictures and statistics place them by it.
Plain numpy on the host.
"""

import numpy as np
from jaxtyping import Bool, Int

from jaxprune.config import ModelConfig


def patch_corners(config: ModelConfig) -> Int[np.ndarray, "n 2"]:
    """Each patch's first (frame, mel bin): frequency-major for AST, time-major for AudioMAE."""
    time, freq = config.grid
    order = {"ast": "F", "audiomae": "C"}[config.family]  # Fortran order: the first index, time, runs fastest
    steps = np.stack(np.unravel_index(np.arange(config.patches), (time, freq), order=order), axis=1)
    return steps * np.array([config.time_stride, config.freq_stride])


def covered(config: ModelConfig, patch_ids: Int[np.ndarray, "k"]) -> Bool[np.ndarray, "t f"]:
    """Which pixels of the spectrogram lie under at least one of the patches; they overlap where strides are short."""
    first = patch_corners(config)[patch_ids]
    frames, bins = (first[:, axis, None] + np.arange(config.patch) for axis in (0, 1))  # each k patch
    pixels = np.zeros((config.frames, config.mels), bool)
    pixels[frames[:, :, None], bins[:, None, :]] = True
    return pixels


def in_padding(config: ModelConfig, patch_ids: Int[np.ndarray, "k"], *, frames: int) -> Bool[np.ndarray, "k"]:
    """Which of the patches lie wholly beyond the first `frames` frames, where a clip has ended and padding begun."""
    return patch_corners(config)[patch_ids, 0] >= frames
