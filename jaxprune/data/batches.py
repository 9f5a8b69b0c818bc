"""Makes batches of waveforms from records, decoded in the background.

This module prepares only sound. Log-mel, mixing, masking and normalisation run on the device (`jaxprune.features`,
`jaxprune.training.augment`). The records, the settings and a batch's number decide what is in it. Threads, decoding
processes and interruptions do not. Grain decodes ahead and remembers the place. The order is ours
(`jaxprune.data.order`), so another version of Grain changes no run. A batch is put together in `jaxprune.data.rows`.

`Record.load` refuses clips that are damaged, silent or under 25 ms. `Batches.unusable` names them. More than a given
share of them is an error. Several processes find it when they compare (`count_bad`). In training another clip takes
the place of a bad one, in evaluation a row of weight 0.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from jaxprune.data.order import ALONE, PAD, InOrder, ProcessRows, Shuffled, by_chance, each_once, local_rows
from jaxprune.data.records import Dataset, Record, Split, rarity
from jaxprune.data.rows import TRIES, Batch, Crop, Load, Numbered, Vary, anywhere, as_it_is, from_start
from jaxprune.features import sample_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Threads and processes that decode.

    For wav and flac, `threads` in this process are enough. Slower formats gain from `processes`. A process takes
    seconds to start and has `threads` of its own. It imports the program anew, so the program needs an
    `if __name__ == "__main__"` guard. Each process keeps `ahead` batches ready, and in training up to `held` MB of
    decoded clips for the epochs to come (`jaxprune.data.held`).
    """

    threads: int = 2
    processes: int = 0
    ahead: int = 4
    held: int = 512

    def __post_init__(self):
        if self.threads < 1 or self.processes < 0 or self.ahead < 1 or self.held < 0:
            raise ValueError(f"{self}: threads and ahead must be at least 1, processes and held at least 0")


def train_batches(
    dataset: Dataset,
    split: Split = "train",
    *,
    frames: int,
    batch_size: int,
    epochs: int,
    seed: int,
    balanced: bool = False,
    crop: Crop = anywhere,
    vary: Vary = as_it_is,
    process: ProcessRows = ALONE,
    workers: Workers = Workers(),
    unusable: float = 0.01,
) -> "Batches":
    """Full batches of a split for `epochs` epochs. Each epoch has its own order, drawn from (seed, epoch).

    `batch_size` counts clips over all processes; the batches hold this process's share. Clips that do not fill the last
    batch of an epoch are left out, different ones each time. `balanced` draws clips with replacement instead, by
    `rarity`. Every row has weight 1. The next usable clip of the data set stands in for an unusable one. `frames` and
    `crop` decide which part of a long clip stays, and `vary` what is done to it (`jaxprune.data.background`), both by
    (seed, place). Raises `ValueError` for too few clips. While running, raises it for more than the share `unusable` of
    bad ones.
    """
    clips = dataset.clips(split)
    rows = local_rows(batch_size, process)
    steps = len(clips) // batch_size
    if epochs < 1 or seed < 0:
        raise ValueError(f"epochs is {epochs} and seed {seed}; they must be at least 1 and 0")
    if steps == 0:
        raise ValueError(f"{dataset.name} has {len(clips)} {split} clips, too few for one batch of {batch_size}")
    classes, samples = len(dataset.labels), sample_count(frames)
    draw = by_chance(rarity(clips, classes=classes)) if balanced else each_once(len(clips))
    order = Shuffled(draw=draw, steps=steps, epochs=epochs, batch_size=batch_size, seed=seed, process=process)
    load = Load(
        clips, classes=classes, samples=samples, crop=crop, vary=vary, seed=seed, substitutes=TRIES, held=workers.held
    )
    name = f"{dataset.name} {split}"
    return Batches(order, load, rows=rows, steps=steps, process=process, workers=workers, limit=unusable, name=name)


def eval_batches(
    dataset: Dataset,
    split: Split = "test",
    *,
    frames: int,
    batch_size: int,
    crop: Crop = from_start,
    process: ProcessRows = ALONE,
    workers: Workers = Workers(),
    unusable: float = 0.01,
) -> "Batches":
    """Batches with every clip of a split once, in order.

    Rows of weight 0 fill the last batch and replace bad clips. All processes get the same number of batches. `frames`,
    `batch_size` and errors are as in `train_batches`.
    """
    clips = dataset.clips(split)
    rows = local_rows(batch_size, process)
    steps = -(-len(clips) // batch_size)
    order = InOrder(clips=len(clips), steps=steps, batch_size=batch_size, process=process)
    load = Load(clips, classes=len(dataset.labels), samples=sample_count(frames), crop=crop, seed=0, substitutes=0)
    name = f"{dataset.name} {split}"
    return Batches(order, load, rows=rows, steps=steps, process=process, workers=workers, limit=unusable, name=name)


class Batches:
    """Iterates over batches and can save its place. `len` counts all batches, `steps` those of an epoch.

    `unusable` maps the file of each bad clip met so far to the reason. `waited` is the seconds that the caller spent
    waiting for data in `next`. As a context manager it stops the threads on leaving.
    """

    def __init__(
        self,
        order: Shuffled | InOrder,
        load: Load,
        *,
        rows: int,
        steps: int,
        process: ProcessRows,
        workers: Workers,
        limit: float,
        name: str,
    ):
        if not 0 <= limit <= 1:
            raise ValueError(f"unusable is {limit}; it must be a share from 0 to 1")
        self.steps = steps
        self.unusable: dict[str, str] = {}
        self.waited = 0.0
        self._clips, self._limit, self._name, self._total = load.clips, limit, name, len(order) // rows
        self._blank = Batch(*(np.broadcast_to(part, (rows, *part.shape[1:])) for part in load.blank(1)))
        self._alone = process.count == 1
        options = grain.ReadOptions(
            num_threads=workers.threads, prefetch_buffer_size=max(workers.ahead, workers.threads)
        )
        # Whole batches are read ahead, so their rows do not depend on the workers.
        ready = grain.MapDataset.range(self._total).map(Numbered(order, load, rows)).to_iter_dataset(options)
        if workers.processes:
            _parse_no_flags()
            ready = ready.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers.processes, per_worker_buffer_size=workers.ahead)
            )
        self._iterator = iter(ready)

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch, refused = next(self._iterator)
        self.waited += time.perf_counter() - began
        self._note(refused)
        return batch

    @property
    def blank(self) -> Batch:
        """A batch without clips, in the shape of every batch. Read-only."""
        return self._blank

    def get_state(self) -> dict[str, Any]:
        """The place of the next batch and the bad clips so far, in JSON's types. All processes share the place."""
        return {"place": self._iterator.get_state(), "unusable": dict(self.unusable)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on at the place that `get_state` gave. Needs the same data set, settings and workers."""
        self._iterator.set_state(state["place"])
        self.unusable = dict(state["unusable"])

    def names(self, indices: Sequence[int] | Int32[np.ndarray, "b"]) -> list[str]:
        """The files of a batch's `indices`, without the rows that only fill it."""
        return [self._clips[i].path for i in indices if i != PAD]

    def close(self) -> None:
        """Ends the threads and processes that decode."""
        self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _note(self, refused: Int32[np.ndarray, "b"]) -> None:
        clips = [self._clips[i] for i in refused if i != PAD]
        new = {clip.path: _reason(clip) for clip in clips if clip.path not in self.unusable}
        self.unusable |= new
        if self._alone:
            self.count_bad([self.unusable])

    def count_bad(self, found: Iterable[Mapping[str, str]]) -> None:
        """Adds the bad clips that processes found. Raises `ValueError` if there are too many.

        A single process counts after every batch. Several must stop together, so they count when all are asked.
        """
        for unusable in found:
            self.unusable |= unusable
        bad, allowed = len(self.unusable), int(self._limit * len(self._clips) + 1e-9)
        if bad > allowed:
            first = "; ".join(list(self.unusable.values())[:5])
            raise ValueError(
                f"{self._name}: {bad} of {len(self._clips)} clips cannot be used; at most {allowed} "
                f"({self._limit:.2%}) may be: {first}"
            )


def _reason(clip: Record) -> str:
    try:
        clip.load()
    except ValueError as error:
        return str(error)
    return f"{clip.path}: could not be read at first"


def _parse_no_flags() -> None:
    """Marks absl's flags as parsed. Grain's processes read them, and unparsed flags refuse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
