"""The rows of a batch: clips decoded, cut, varied and padded, into the arrays of all of them.

A small model on a GPU waits for the interpreter that this takes (docs/performance.md). So rows are not made one by one
and stacked, and no two threads put batches together at once.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from jaxprune.data.held import Held
from jaxprune.data.order import PAD, InOrder, Shuffled
from jaxprune.data.records import Record
from jaxprune.data.shard_files import waveform
from jaxprune.features import WINDOW

Crop = Callable[[int, np.random.Generator], int]
# Of a clip as it is held, int16 or float32 (`shard_files.waveform` makes float32 of either), by a seed.
Vary = Callable[[Shaped[np.ndarray, "samples"], Sequence[int]], Shaped[np.ndarray, "samples"]]

TRIES = 16  # clips tried in place of an unusable one
VARIED = 1  # sets the draws of `vary` apart from the crop's
# Held while a batch is put together: two threads that want the interpreter at once take three times as long.
ONE_AT_A_TIME = threading.Lock()


def from_start(spare: int, rng: np.random.Generator) -> int:
    """Keeps the head of a long clip. The published code does so everywhere: it cuts its spectrogram at T frames."""
    return 0


def anywhere(spare: int, rng: np.random.Generator) -> int:
    """Keeps a random stretch of a long clip, for training. Clips within T frames stay whole. Not in the paper."""
    return int(rng.integers(spare + 1))


def as_it_is(sound: Shaped[np.ndarray, "samples"], seed: Sequence[int]) -> Shaped[np.ndarray, "samples"]:
    """Changes nothing."""
    return sound


class Batch(NamedTuple):
    """Clips of one padded length. Rows of weight 0 hold silence and no targets: count and train only the others.

    `waveforms` is 16 kHz mono with full scale at 1. Beyond the first `lengths` samples (at least 400) it is zero.
    `targets` has a one at each class of a clip. `indices` are places in the split's records. A row that only fills the
    batch has index -1.
    """

    waveforms: Float32[np.ndarray, "b samples"]
    lengths: Int32[np.ndarray, "b"]
    targets: Float32[np.ndarray, "b y"]
    weights: Float32[np.ndarray, "b"]
    indices: Int32[np.ndarray, "b"]


class Rows(NamedTuple):
    """A batch, and `refused`: in each row the index of the clip that could not be used here, or -1."""

    batch: Batch
    refused: Int32[np.ndarray, "b"]


class Load:
    """The sound of some rows, each a record's index and the row's place among those of all epochs.

    `substitutes` is how many clips after a bad one are tried in its place. With none its row stays blank. Up to `held`
    MB of decoded clips stay in memory.
    """

    def __init__(
        self,
        clips: tuple[Record, ...],
        *,
        classes: int,
        samples: int,
        crop: Crop,
        seed: int,
        substitutes: int,
        vary: Vary = as_it_is,
        held: int = 0,
    ):
        self.clips = clips
        self._classes, self._samples, self._crop, self._vary, self._seed = classes, samples, crop, vary, seed
        self._substitutes = substitutes
        self._held = Held(clips, megabytes=held)

    def __call__(self, rows: Sequence[tuple[int, int]]) -> Rows:
        """The rows in order. Raises `ValueError` where neither a clip nor a substitute can be used."""
        found = [self._usable(index, place) for index, place in rows]
        with ONE_AT_A_TIME:
            batch, refused = self.blank(len(rows)), np.full(len(rows), PAD, np.int32)
            for row, ((asked, _), (index, sound)) in enumerate(zip(rows, found, strict=True)):
                batch.indices[row] = index
                if sound is None or index != asked:
                    refused[row] = asked
                if sound is not None:
                    batch.waveforms[row, : len(sound)] = waveform(sound)
                    batch.lengths[row] = len(sound)
                    batch.targets[row, list(self.clips[index].labels)] = 1
                    batch.weights[row] = 1
        return Rows(batch, refused)

    def blank(self, rows: int) -> Batch:
        """Rows of weight 0."""
        silence, nothing = np.zeros((rows, self._samples), np.float32), np.zeros((rows, self._classes), np.float32)
        lengths, none = np.full(rows, WINDOW, np.int32), np.full(rows, PAD, np.int32)
        return Batch(silence, lengths, nothing, np.zeros(rows, np.float32), none)

    def _usable(self, index: int, place: int) -> tuple[int, Shaped[np.ndarray, "..."] | None]:
        """The first clip from `index` on that can be used, cut and varied, or `index` and None for a blank row."""
        if index == PAD:
            return index, None
        for step in range(1 + self._substitutes):
            candidate = (index + step) % len(self.clips)
            try:
                sound = self._held.load(candidate)
            except ValueError:
                continue
            return candidate, self._vary(self._cut(sound, place), (self._seed, place, VARIED))
        if self._substitutes:
            raise ValueError(
                f"{self.clips[index].path}: neither this clip nor the {self._substitutes} after it can be used"
            )
        return index, None

    def _cut(self, sound: Shaped[np.ndarray, "..."], place: int) -> Shaped[np.ndarray, "..."]:
        spare = len(sound) - self._samples
        if spare <= 0:
            return sound
        start = self._crop(spare, np.random.default_rng([self._seed, place]))
        return sound[start : start + self._samples].copy()  # a long recording need not wait for the rest of its batch


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A batch by its number. Grain has batches alone to count, since it takes 10 microseconds for each thing."""

    order: Shuffled | InOrder
    load: Load
    rows: int

    def __call__(self, batch: int) -> Rows:
        return self.load([self.order[row] for row in range(batch * self.rows, (batch + 1) * self.rows)])
