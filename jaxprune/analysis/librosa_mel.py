"""librosa's mel spectrograms beside Kaldi's, on the same frames of the same sound.

AST and AudioMAE were trained on Kaldi's features. librosa's look like them and are easily taken for them. This module
measures the difference, in log-mel.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import librosa
import numpy as np
from jaxtyping import Float

from jaxprune.features import FFT_SIZE, FLOOR, HOP, LOWEST_HZ, PREEMPHASIS, SAMPLE_RATE, WINDOW


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to call `librosa.feature.melspectrogram`: with `options`, on the waveform that `prepare` returns."""

    prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
    options: Mapping[str, Any] = field(default_factory=dict)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "as it comes (Slaney scale, equal areas)": Recipe(),
        "htk=True, norm=None, fmin=20, pre-emphasis": Recipe(
            prepare=partial(librosa.effects.preemphasis, coef=PREEMPHASIS),
            options={"htk": True, "norm": None, "fmin": LOWEST_HZ},
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Difference of two log-mel spectrograms: the largest and mean absolute one, and the mean with its sign."""

    largest: float
    mean: float
    signed: float


def distances(waveform: Float[np.ndarray, "samples"], mel: Float[np.ndarray, "t f"]) -> dict[str, Distance]:
    """The distance of each of `RECIPES` from `mel`, which is Kaldi's log-mel of the same waveform."""
    found = {}
    for name, recipe in RECIPES.items():
        difference = librosa_log_mel(waveform, mels=mel.shape[1], recipe=recipe) - mel
        found[name] = Distance(
            largest=float(np.abs(difference).max()),
            mean=float(np.abs(difference).mean()),
            signed=float(difference.mean()),
        )
    return found


def librosa_log_mel(
    waveform: Float[np.ndarray, "samples"], *, mels: int, recipe: Recipe
) -> Float[np.ndarray, "t {mels}"]:
    """Natural log of librosa's mel spectrogram, with Kaldi's floor, one row for each of Kaldi's frames.

    librosa centres the window of 400 samples in the 512 of the FFT, so half the difference is added at either end.
    """
    margin = (FFT_SIZE - WINDOW) // 2
    sound = np.pad(recipe.prepare(np.asarray(waveform, np.float64)), margin)
    with warnings.catch_warnings():
        # Of 128 bins one holds no FFT bin, in Kaldi's scale as well (`jaxprune.log_mel`).
        warnings.filterwarnings("ignore", message="Empty filters detected")
        power = librosa.feature.melspectrogram(
            y=sound,
            sr=SAMPLE_RATE,
            n_fft=FFT_SIZE,
            win_length=WINDOW,
            hop_length=HOP,
            center=False,
            n_mels=mels,
            **recipe.options,
        )
    return np.log(np.maximum(power, FLOOR)).T
