"""Decodes a data set once, into shards that every other command reads in place of the sound files (`jaxprune shard`).

For data sets whose decoding and resampling would keep an accelerator waiting. The files are described in
`jaxprune.data.shard_files`.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxprune.data.records import Dataset, Record, first_few
from jaxprune.data.shard_files import (
    FORMAT,
    INDEX,
    VERSION,
    Samples,
    encoded,
    is_shards,
    read_index,
    read_table,
    rounded,
    waveform,
)
from jaxprune.features import SAMPLE_RATE
from jaxprune.files import NotWritten, locked, replace_file, shown, write_text


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
    """Decodes every clip into shards of so many `clips` in the folder `out`. Gives the content of shards.json.

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
        index |= {"finished": False, "shards": [], "unusable": {}, "inexact": 0}
        if not is_shards(out):
            write_text(out / INDEX, _json(index))
        done, allowed = 0, int(unusable * len(names) + 1e-9)
        with ThreadPoolExecutor(workers) as pool:
            for number, first in enumerate(range(0, len(names), clips)):
                file = f"{number:05d}.array_record"
                part = slice(first, first + clips)
                if not _is_written(out / file):
                    steps = _converted(pool, dataset.records[part], names[part], samples=samples, ahead=4 * workers)
                    _write_shard(out / file, steps, watch=lambda more, done=done: watch(done + more, len(names)))
                done += _add(index, out / file)
                watch(done, len(names))
                if len(index["unusable"]) > allowed:
                    reasons = [f"{name}: {reason}" for name, reason in index["unusable"].items()]
                    raise ValueError(
                        f"{dataset.name}: {len(reasons)} of {len(names)} clips cannot be used; at most {allowed} "
                        f"({unusable:.2%}) may be: {first_few(reasons)}"
                    )
        index["finished"] = True
        write_text(out / INDEX, _json(index))
        return index


def _add(index: dict[str, Any], file: Path) -> int:
    """Takes a written shard into the index. Gives its number of clips."""
    table = read_table(file)
    index["shards"].append({"file": file.name, "clips": len(table["clips"]), "bytes": table["bytes"]})
    index["unusable"] |= table["unusable"]
    index["inexact"] += table["inexact"]
    return len(table["clips"])


def _started(dataset: Dataset, out: Path, *, names: Sequence[str], clips: int, samples: Samples) -> dict[str, Any]:
    """The facts that decide the shards, once `out` is known to be new or to hold shards of just these facts."""
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
                other = "other clips" if key == "sha256" else f"{key} {there.get(key)!r:.80}, not {value!r:.80}"
                raise ValueError(f"{out} holds shards of {other}; give a new folder")
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
    return table.is_file() and path.is_file() and path.stat().st_size == read_table(path)["bytes"]


def _names(records: Sequence[Record]) -> list[str]:
    """Paths below the clips' common folder: they go with the shards to machines where that folder is another."""
    paths = [os.path.abspath(record.path) for record in records]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    for name in names:
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            raise ValueError(f"the file name {shown(name)} is not UTF-8, so it cannot stand in a table; rename it")
    return names


def _json(index: Mapping[str, Any]) -> str:
    return json.dumps(index, indent=1, ensure_ascii=False, default=str) + "\n"
