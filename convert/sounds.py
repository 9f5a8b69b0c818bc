"""Sounds to validate on, the reference's input of them, and the rungs from sound to log-mel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from jaxprune.audio import load_audio, pad_batch
from jaxprune.cli.console import notice
from jaxprune.config import Card
from jaxprune.features import SAMPLE_RATE, log_mel, model_input, sample_count

from . import torch_features
from .rungs import Rung, compare


@dataclass(frozen=True)
class Sounds:
    """The sounds to validate on: their names and waveforms."""

    names: tuple[str, ...]
    waveforms: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Subject:
    """A checkpoint to validate: the facts of its card, and `climb`, which compares every rung on sounds."""

    card: Card
    layout: str
    climb: Callable[[Sounds], list[Rung]]
    blocks: tuple[int, ...] = ()


def recordings(paths: Sequence[Path]) -> Sounds:
    """The recordings. A notice tells each thing that was changed on the way."""
    clips = [load_audio(path) for path in paths]
    for clip in clips:
        for text in clip.notices:
            notice(text)
    return Sounds(tuple(str(clip.path) for clip in clips), tuple(clip.waveform for clip in clips))


def synthetic(frames: int) -> Sounds:
    """Three seeded sounds: noise that swells over a model's length, a chirp that ends early, and its first tenth."""
    samples = sample_count(frames)
    rng, time = np.random.default_rng(0), np.arange(samples) / SAMPLE_RATE
    swell = rng.standard_normal(samples) * np.linspace(0.001, 0.3, samples)
    chirp = np.sin(2 * np.pi * (100 + 150 * time) * time)[: max(400, samples * 2 // 3)]
    chirp = 0.5 * chirp + 0.001 * rng.standard_normal(len(chirp))
    waves = (swell, chirp, chirp[: max(400, samples // 10)])
    names = ("synthetic: swelling noise", "synthetic: chirp", "synthetic: short chirp")
    return Sounds(names, tuple(wave.astype(np.float32) for wave in waves))


def _facts(card: Card) -> dict[str, Any]:
    """The facts that the features of both sides are told."""
    model = card.model
    return {"frames": model.frames, "mean": card.mean, "std": card.std, "padding": card.padding, "mels": model.mels}


def our_input(card: Card, sounds: Sounds) -> jnp.ndarray:
    """Normalised log-mel `(clips, t, f)` as the model sees it."""
    waveforms, lengths = pad_batch([wave[: sample_count(card.model.frames)] for wave in sounds.waveforms])
    return model_input(waveforms, lengths, **_facts(card))


def their_input(card: Card, sounds: Sounds) -> np.ndarray:
    """The same in float64 PyTorch, with the card's padding, as float32."""
    facts = _facts(card)
    inputs = [torch_features.model_input(torch.tensor(wave), **facts) for wave in sounds.waveforms]
    return torch.stack(inputs).float().numpy()


def input_rung(theirs: np.ndarray, ours: jnp.ndarray, *, card: Card) -> Rung:
    """The input that each side makes of the sound. The features err by up to 6e-4 away from the floor."""
    return compare(theirs, ours, stage="input, from the sound", keep_rate=1.0, tolerance=2e-3 / (2 * card.std))


def feature_rungs(sounds: Sounds, *, mels: int) -> list[Rung]:
    """Log-mel of every clip against float64: everywhere, and away from the floor."""
    pairs = [
        (
            torch_features.log_mel(torch.tensor(wave), mels=mels).numpy(),
            np.asarray(log_mel(jnp.asarray(wave), mels=mels)),
        )
        for wave in sounds.waveforms
    ]
    theirs, ours = (np.concatenate(values) for values in zip(*pairs, strict=True))
    loud = theirs > -10
    rungs = [compare(theirs, ours, stage="log-mel", keep_rate=1.0, tolerance=2e-3)]
    if loud.any():
        stage = "log-mel where above -10"
        rungs.append(compare(theirs[loud], ours[loud], stage=stage, keep_rate=1.0, tolerance=6e-4))
    return rungs
