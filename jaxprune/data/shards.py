"""A data set decoded once: its clips as 16 kHz mono samples in a few large array_record files, and read back.

Where decoding and resampling would keep an accelerator waiting, `write` does them beforehand (`scripts/shard.py`), and
`Shards` is a source like those of `jaxprune.data.published`, whose records give their sound without a decoder. Order,
labels and names are the original's, so batches are the same. In a folder of shards lie

    shards.json               what is there: class labels, sample rate, counts, unusable clips, where it came from
    00000.array_record, ...   a record a clip: one line of JSON about it, then its samples, little-endian
    00000.json, ...           name, class ids, split, fold and samples of each of the shard's clips, in order

Grain's `ArrayRecordDataSource` reads the shards, too; `decoded` takes its records apart. A shard's table is written
after it and shards.json again at the end, so whatever has a name is whole, and a run that was cut off can go on.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxprune.audio import SoundHeader
from jaxprune.data.labels import named_labels
from jaxprune.data.records import Dataset, Record, checked, first_few, refuse
from jaxprune.data.tables import read_text
from jaxprune.features import SAMPLE_RATE
from jaxprune.files import NotWritten, locked, replace_file, write_text

INDEX = "shards.json"
FORMAT, VERSION = "jaxprune shards", 1
FULL_SCALE = 2**15  # of int16: a wav of 16 bits has exactly these steps
OPEN_SHARDS = 512  # files a process keeps open
Samples = Literal["int16", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    """A data set that scripts/shard.py has decoded. `fold` is the one to test on, where the original has folds.

    Classes are in the order of the original, or in that of a `labels` file.
    """

    root: Path
    fold: int = 1
    labels: Path | None = None

    def read(self) -> Dataset:
        """Refuses unfinished shards, and any that is missing or not as long as it was written."""
        index = read_index(self.root)
        if not index["finished"]:
            raise ValueError(f"{self.root}: the shards are not finished; run scripts/shard.py again, it goes on")
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
        return bool(read_index(self.root)["folds"])

    def _records(self, shards: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> Iterator["Stored"]:
        for shard in shards:
            file = str(self.root / shard["file"])
            for place, clip in enumerate(_read_table(self.root / shard["file"])["clips"]):
                name, labels, split, fold, samples = clip
                yield Stored(
                    path=str(self.root / name),
                    labels=tuple(sorted(ids[label] for label in labels)),
                    split=split,
                    fold=fold,
                    shard=file,
                    place=place,
                    samples=samples,
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored(Record):
    """A clip in a shard: record number `place` of `shard`, `samples` long. `path` only names it: the original's name,
    as if it lay in the folder of the shards."""

    shard: str
    place: int
    samples: int

    @property
    def file(self) -> str:
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
        return SoundHeader(frames=self.samples, samplerate=SAMPLE_RATE, channels=1) if self.samples else None


class Decoded(NamedTuple):
    """A record taken apart: `facts` are name, labels (class ids), split, fold, rate, samples (how many) and dtype, and
    `unusable`, the reason, where there are no samples."""

    facts: dict[str, Any]
    samples: Shaped[np.ndarray, "samples"]


def encoded(facts: Mapping[str, Any], samples: Shaped[np.ndarray, "samples"]) -> bytes:
    """A record of a shard. `facts` gains how many samples and of what kind."""
    kind = samples.dtype.newbyteorder("<")
    head = {**facts, "rate": SAMPLE_RATE, "samples": len(samples), "dtype": samples.dtype.name}
    return json.dumps(head, ensure_ascii=False).encode() + b"\n" + samples.astype(kind).tobytes()


def decoded(record: bytes) -> Decoded:
    """The inverse. Raises `ValueError` for anything that `encoded` does not give."""
    head, newline, _ = record[:65536].partition(b"\n")
    try:
        facts = json.loads(head)
        samples = np.frombuffer(record, np.dtype(facts["dtype"]).newbyteorder("<"), offset=len(head) + len(newline))
        if len(samples) != facts["samples"]:
            raise ValueError(f"{len(samples)} samples where {facts['samples']} were written")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a record of scripts/shard.py ({error})") from error
    return Decoded(facts, samples)


def waveform(samples: Shaped[np.ndarray, "samples"]) -> Float[np.ndarray, "samples"]:
    """Full scale at 1, float32: of int16 the same as of a wav of 16 bits."""
    if samples.dtype == np.int16:
        return samples * np.float32(1 / FULL_SCALE)
    return samples.astype(np.float32)


def rounded(sound: Float[np.ndarray, "samples"]) -> Shaped[np.ndarray, "samples"]:
    """To int16, cut off at full scale. Raises `ValueError` where nothing is left of the sound."""
    samples = np.clip(np.rint(sound * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    if samples.min() == samples.max():
        raise ValueError("is so quiet that 16 bits leave nothing of it; store float32 (--samples float32)")
    return samples


def write(
    dataset: Dataset,
    out: Path,
    *,
    clips: int = 4096,
    samples: Samples = "int16",
    source: Mapping[str, Any] | None = None,
    workers: int = 2,
    unusable: float = 0.01,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Decodes every clip into shards of so many `clips` in the folder `out`, and gives what shards.json holds.

    float32 keeps every bit; int16 takes half the room, is exact for 16-bit sound at 16 kHz, and off by at most half a
    step of 1 / 32768 otherwise (`inexact` counts such clips, of which some may also have been cut off at full scale).
    `source` is noted in the index. `watch` is told the clips done and all clips. A folder in which the same call was
    interrupted is gone on with; raises `ValueError` for any other, for one that another process writes to, and for more
    than the share `unusable` of clips that `jaxprune.audio.load_audio` refuses. They keep their places, with the reason
    instead of a sound.
    """
    if clips < 1 or workers < 1 or not 0 <= unusable <= 1:
        raise ValueError(
            f"clips is {clips}, workers {workers}, unusable {unusable}; they must be at least 1, at least 1 and a share"
        )
    if samples not in ("int16", "float32"):
        raise ValueError(f"samples is {samples!r}; it must be int16 or float32")
    with locked(out):
        names = _names(dataset.records)
        index = _started(dataset, out, names=names, clips=clips, samples=samples) | {"source": dict(source or {})}
        total, allowed = len(names), int(unusable * len(names) + 1e-9)
        index |= {"finished": False, "shards": [], "unusable": {}, "inexact": 0}
        if not is_shards(out):
            write_text(out / INDEX, _json(index))
        done = 0
        with ThreadPoolExecutor(workers) as pool:
            for number, first in enumerate(range(0, total, clips)):
                file = f"{number:05d}.array_record"
                part = slice(first, first + clips)
                if not _is_written(out / file):
                    steps = _converted(pool, dataset.records[part], names[part], samples=samples, ahead=4 * workers)
                    _write_shard(out / file, steps, watch=lambda more, done=done: watch(done + more, total))
                table = _read_table(out / file)
                done += len(table["clips"])
                watch(done, total)
                index["shards"].append({"file": file, "clips": len(table["clips"]), "bytes": table["bytes"]})
                index["unusable"] |= table["unusable"]
                index["inexact"] += table["inexact"]
                if len(index["unusable"]) > allowed:
                    reasons = [f"{name}: {reason}" for name, reason in index["unusable"].items()]
                    raise ValueError(
                        f"{dataset.name}: {len(reasons)} of {total} clips cannot be used, more than the {allowed} that "
                        f"{unusable:.2%} allow: {first_few(reasons)}"
                    )
        index["finished"] = True
        write_text(out / INDEX, _json(index))
        return index


def is_shards(folder: Path) -> bool:
    """Whether this is a folder of shards, finished or not."""
    return (folder / INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """What shards.json holds. Raises `ValueError` unless it is one, of the version that is written here."""
    path = folder / INDEX
    try:
        index = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path}: is not an index that scripts/shard.py has written")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{path}: has version {index.get('version')}; only {VERSION} is read here, make the shards anew"
        )
    return index


def _started(dataset: Dataset, out: Path, *, names: Sequence[str], clips: int, samples: Samples) -> dict[str, Any]:
    """What decides the shards, once `out` is known to be new or to hold shards of just these facts."""
    lines = [f"{name}\t{[*r.labels]}\t{r.split}\t{r.fold}\n" for name, r in zip(names, dataset.records, strict=True)]
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "name": dataset.name,
        "labels": list(dataset.labels),
        "sample_rate": SAMPLE_RATE,
        "samples": samples,
        "clips": clips,
        "sizes": dataset.sizes(),
        "folds": sorted({record.fold for record in dataset.records if record.fold is not None}),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }
    if is_shards(out):
        there = read_index(out)
        for key, value in facts.items():
            if there.get(key) != value:
                shown = "other clips" if key == "sha256" else f"{key} {there.get(key)!r:.80}, not {value!r:.80}"
                raise ValueError(f"{out} holds shards of {shown}; give a new folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder and holds no {INDEX}; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.unfinished-*"):
        leftover.unlink()
    return facts


class _Converted(NamedTuple):
    """A clip ready to be written."""

    facts: dict[str, Any]
    samples: Shaped[np.ndarray, "samples"]
    exact: bool


def _converted(
    pool: ThreadPoolExecutor, records: Sequence[Record], names: Sequence[str], *, samples: Samples, ahead: int
) -> Iterator[_Converted]:
    """The clips in order, decoded by the pool, at most `ahead` of them before they are asked for."""
    clips = iter(zip(records, names, strict=True))
    jobs = [pool.submit(_convert, *clip, samples) for clip in itertools.islice(clips, ahead)]
    while jobs:
        yield jobs.pop(0).result()
        jobs += [pool.submit(_convert, *clip, samples) for clip in itertools.islice(clips, 1)]


def _convert(record: Record, name: str, samples: Samples) -> _Converted:
    facts = {"name": name, "labels": list(record.labels), "split": record.split, "fold": record.fold}
    try:
        sound = record.load()
        if samples == "float32":
            return _Converted(facts, sound.astype(np.float32), exact=True)
        stored = rounded(sound)
    except ValueError as error:
        reason = str(error).removeprefix(f"{record.path}: ")
        return _Converted(facts | {"unusable": reason}, np.zeros(0, samples), exact=True)
    return _Converted(facts, stored, exact=bool((waveform(stored) == sound).all()))


def _write_shard(path: Path, clips: Iterator[_Converted], *, watch: Callable[[int], None]) -> None:
    """The shard, then its table."""
    rows, unusable, exact = [], {}, Counter()

    def fill(unfinished: Path) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        # A record a group: any one is read alone. Not compressed: 16-bit sound hardly gets smaller, and reading would
        # take three times as long.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
        try:
            for done, clip in enumerate(clips, start=1):
                writer.write(encoded(clip.facts, clip.samples))
                facts = clip.facts
                rows.append([*(facts[key] for key in ("name", "labels", "split", "fold")), len(clip.samples)])
                if "unusable" in facts:
                    unusable[facts["name"]] = facts["unusable"]
                exact[clip.exact] += 1
                watch(done)
        except BaseException:
            with suppress(RuntimeError):  # the error on its way out is the one to show
                writer.close()
            raise
        writer.close()

    try:
        replace_file(path, fill)
    except RuntimeError as error:  # of the writer, where the disk is full
        raise NotWritten(path, error) from error
    table = {"bytes": path.stat().st_size, "unusable": unusable, "inexact": exact[False], "clips": rows}
    write_text(path.with_suffix(".json"), json.dumps(table, ensure_ascii=False) + "\n")


def _is_written(path: Path) -> bool:
    table = path.with_suffix(".json")
    return table.is_file() and path.is_file() and path.stat().st_size == _read_table(path)["bytes"]


def _read_table(shard: Path) -> dict[str, Any]:
    path = shard.with_suffix(".json")
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error


def _changed(root: Path, shards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The shards that are not there, or not of the size they were written with, as a network copy may leave them."""
    for shard in shards:
        path = root / shard["file"]
        if not path.is_file():
            yield f"{shard['file']} is missing"
        elif (size := path.stat().st_size) != shard["bytes"]:
            yield f"{shard['file']} has {size} bytes of {shard['bytes']}"


def _names(records: Sequence[Record]) -> list[str]:
    """Paths below the clips' common folder: they go with the shards to machines where that folder is another."""
    paths = [os.path.abspath(record.path) for record in records]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(file: str) -> Any:
    """Threads may read one at once; without reading ahead, which random access would throw away."""
    from array_record.python.array_record_module import ArrayRecordReader  # there is none for Windows

    return ArrayRecordReader(file, "readahead_buffer_size:0,max_parallelism:0")


def _json(index: Mapping[str, Any]) -> str:
    return json.dumps(index, indent=1, ensure_ascii=False, default=str) + "\n"
