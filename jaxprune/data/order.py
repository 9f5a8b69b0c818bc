"""The order of clips in batches: a function of the seed and the place alone, divided among processes.

Each process has the same number of rows of every batch. The rows of all, one after the other, are those of a single
process.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

# An epoch's record indices, by a generator of its own.
Draw = Callable[[np.random.Generator], Int[np.ndarray, "clips"]]

PAD = -1  # the index of a row without a clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessRows:
    """This process's number, and how many there are. Each gets as many rows of a batch, the first process the first."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"process {self.index} of {self.count} does not exist; count from 0 to {self.count - 1}")


ALONE = ProcessRows()


def local_rows(batch_size: int, process: ProcessRows) -> int:
    """Rows of each batch that one process decodes. Raises `ValueError` where the processes cannot share it evenly."""
    if batch_size < 1 or batch_size % process.count:
        raise ValueError(f"batch_size is {batch_size}; it must be a positive multiple of the {process.count} processes")
    return batch_size // process.count


def each_once(clips: int) -> Draw:
    """Every clip once, in random order."""
    return functools.partial(_permuted, clips)


def by_chance(chances: Float[np.ndarray, "clips"]) -> Draw:
    """As many clips as there are, drawn with replacement; `chances` sum to 1."""
    return functools.partial(_chosen, chances)


class Shuffled:
    """A random access list of (record index, global row) for all epochs of a training run, of one process's rows."""

    def __init__(self, *, draw: Draw, steps: int, epochs: int, batch_size: int, seed: int, process: ProcessRows):
        self._draw, self._seed, self._process = draw, seed, process
        self._epoch_rows = steps * batch_size
        self._local = batch_size // process.count
        self._rows = epochs * steps * self._local

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> tuple[int, int]:
        place = _place(row, self._local, self._process)
        epoch, within = divmod(place, self._epoch_rows)
        return int(_drawn(self._draw, self._seed, epoch)[within]), place


class InOrder:
    """The records in order, filled up with -1 to whole batches, of one process's rows."""

    def __init__(self, *, clips: int, steps: int, batch_size: int, process: ProcessRows):
        self._clips, self._process = clips, process
        self._local = batch_size // process.count
        self._rows = steps * self._local

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> tuple[int, int]:
        place = _place(row, self._local, self._process)
        return (place if place < self._clips else PAD), place


def _place(row: int, local: int, process: ProcessRows) -> int:
    """The global row of a process's row, with `local` rows a batch."""
    batch, within = divmod(row, local)
    return (batch * process.count + process.index) * local + within


@functools.lru_cache(maxsize=4)  # threads read ahead over the end of an epoch
def _drawn(draw: Draw, seed: int, epoch: int) -> Int[np.ndarray, "clips"]:
    return draw(np.random.default_rng([seed, epoch]))


def _permuted(clips: int, rng: np.random.Generator) -> Int[np.ndarray, "clips"]:
    return rng.permutation(clips)


def _chosen(chances: Float[np.ndarray, "clips"], rng: np.random.Generator) -> Int[np.ndarray, "clips"]:
    return rng.choice(len(chances), size=len(chances), p=chances)
