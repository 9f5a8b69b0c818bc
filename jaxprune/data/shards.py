"""A data set decoded once, read back: clips whose sound is a record of a few large array_record files.

`Shards` is a source like those of `jaxprune.data.published`, whose records give their sound without a decoder. Order,
labels and names are the original's, so batches are the same. The files are described in `jaxprune.data.shard_files`;
`jaxprune.data.shard_writer` writes them.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxprune.audio import SoundHeader
from jaxprune.data.labels import named_labels
from jaxprune.data.records import Dataset, Record, checked, refuse
from jaxprune.data.shard_files import ShardFile, decoded, read_index, read_table, waveform
from jaxprune.features import SAMPLE_RATE

OPEN_SHARDS = 512  # files a process keeps open


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    """A data set that `jaxprune shard` has decoded. `fold` is the one to test on, where the original has folds.

    Classes are in the order of the original, or in that of a `labels` file.
    """

    root: Path
    fold: int = 1
    labels: Path | None = None

    def read(self) -> Dataset:
        """Refuses unfinished shards, and any that is missing or not as long as it was written."""
        index = read_index(self.root)
        if not index["finished"]:
            raise ValueError(f"{self.root}: the shards are not finished; run jaxprune shard again, it goes on")
        refuse(_changed(self.root, index["shards"]), f"{self.root}: shards are missing or not as they were written")
        names = index["labels"]
        order = named_labels(self.labels, names, name=str(self.root)) if self.labels else None
        ids = [order.ids[name] for name in names] if order else range(len(names))
        records = tuple(self._records(index["shards"], ids))
        if folds := sorted({record.fold for record in records if record.fold is not None}):
            if self.fold not in folds:
                raise ValueError(f"fold is {self.fold}; {self.root} has the folds {folds}")
            records = tuple(
                dataclasses.replace(record, split="test" if record.fold == self.fold else "train") for record in records
            )
        return checked(Dataset(name=index["name"], labels=order.names if order else tuple(names), records=records))

    @property
    def has_folds(self) -> bool:
        """True where the data set that was decoded is divided into folds."""
        return bool(read_index(self.root)["folds"])

    def _records(self, shards: Sequence[ShardFile], ids: Sequence[int]) -> Iterator["Stored"]:
        for shard in shards:
            file = self.root / shard["file"]
            clips = read_table(file)["clips"]
            if len(clips) != shard["clips"] or any(label >= len(ids) for clip in clips for label in clip[1]):
                raise ValueError(f"{file}: its table does not fit the index; make the shards anew")
            for place, (name, labels, split, fold, samples) in enumerate(clips):
                yield Stored(
                    path=str(self.root / name),
                    labels=tuple(sorted(ids[label] for label in labels)),
                    split=split,
                    fold=fold,
                    shard=str(file),
                    place=place,
                    samples=samples,
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored(Record):
    """A clip in a shard: record number `place` of `shard`, `samples` long.

    `path` only names it: the original's name, as if it lay in the folder of the shards.
    """

    shard: str
    place: int
    samples: int

    @property
    def file(self) -> str:
        """The shard that holds the clip."""
        return self.shard

    def load(self) -> Float[np.ndarray, "samples"]:
        """Raises `ValueError` for a damaged record, and for a clip that could not be used when the shard was made."""
        where = f"record {self.place} of {self.shard}"
        try:
            reader = _reader(self.shard)
            if not reader.ok():
                raise ValueError(f"{self.path}: {self.shard} cannot be opened or is damaged")
            clip = decoded(reader.read([self.place])[0])
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{self.path}: {where} is damaged ({str(error).split(';')[0]})") from error
        if clip.facts["name"] != os.path.relpath(self.path, os.path.dirname(self.shard)):
            raise ValueError(f"{self.path}: {where} is {clip.facts['name']}, another clip; the shards were mixed up")
        if reason := clip.facts.get("unusable"):
            raise ValueError(f"{self.path}: {reason}")
        return waveform(clip.samples)

    def header(self) -> SoundHeader | None:
        """Length and rate of the stored sound; None for a clip that could not be used."""
        return SoundHeader(frames=self.samples, samplerate=SAMPLE_RATE, channels=1) if self.samples else None


def _changed(root: Path, shards: Sequence[ShardFile]) -> Iterator[str]:
    """The shards that are not there, or not of the size they were written with, as a network copy may leave them."""
    for shard in shards:
        path = root / shard["file"]
        if not path.is_file():
            yield f"{shard['file']} is missing"
        elif (size := path.stat().st_size) != shard["bytes"]:
            yield f"{shard['file']} has {size} bytes of {shard['bytes']}"


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(file: str) -> Any:
    """Threads may read one at once; without reading ahead, which random access would throw away."""
    from array_record.python.array_record_module import ArrayRecordReader  # there is none for Windows

    return ArrayRecordReader(file, "readahead_buffer_size:0,max_parallelism:0")
