"""The files of a folder of shards: their names, the schemas that they are held against, and the bytes of a record.

In a folder of shards lie

    shards.json               what is there: class labels, sample rate, counts, unusable clips, where it came from
    00000.array_record, ...   a record a clip: one line of JSON about it, then its samples, little-endian
    00000.json, ...           name, class ids, split, fold and samples of each of the shard's clips, in order

Grain's `ArrayRecordDataSource` reads the shards, too; `decoded` takes its records apart. A shard's table is written
after it and shards.json again at the end, so whatever has a name is whole, and a run that was cut off can go on.
`jaxprune.data.shards` reads a whole folder and `jaxprune.data.shard_writer` makes one.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import numpy as np
from jaxtyping import Float, Shaped

from jaxprune.data.records import Split
from jaxprune.data.tables import read_json
from jaxprune.features import SAMPLE_RATE
from jaxprune.json_files import fit

INDEX = "shards.json"
FORMAT, VERSION = "jaxprune shards", 1
FULL_SCALE = 2**15  # of int16: a wav of 16 bits has exactly these steps
Samples = Literal["int16", "float32"]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
_File = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{5,9}\.array_record$")]  # a name without folders
_Kind = TypeVar("_Kind")


class ShardFile(TypedDict):
    """One shard in the index: its file's name, clips and bytes."""

    file: _File
    clips: _Count
    bytes: _Count


class Index(TypedDict):
    """The content of shards.json."""

    format: Literal["jaxprune shards"]
    version: Literal[1]
    name: str
    labels: list[str]
    sample_rate: Literal[16000]
    samples: Samples
    clips: _Count
    sizes: dict[str, _Count]
    folds: list[int]
    sha256: str
    source: dict[str, Any]
    finished: bool
    shards: list[ShardFile]
    unusable: dict[str, str]
    inexact: _Count


class ShardTable(TypedDict):
    """The content of a shard's own JSON file. A clip is its name, class ids, split, fold and number of samples."""

    bytes: _Count
    unusable: dict[str, str]
    inexact: _Count
    clips: list[tuple[str, list[_Count], Split, int | None, _Count]]


class Facts(TypedDict):
    """The line of JSON in front of a record's samples. `unusable` is the reason where there are none."""

    name: str
    labels: list[_Count]
    split: Split
    fold: int | None
    rate: Literal[16000]
    samples: _Count
    dtype: Samples
    unusable: NotRequired[str]


class Decoded(NamedTuple):
    """A record taken apart."""

    facts: Facts
    samples: Shaped[np.ndarray, "samples"]


def is_shards(folder: Path) -> bool:
    """True for a folder of shards, finished or not."""
    return (folder / INDEX).is_file()


def read_index(folder: Path) -> Index:
    """The content of shards.json. Raises `ValueError` unless it is one, of the version that is written here."""
    path = folder / INDEX
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: is not an index that jaxprune shard has written")
    if content.get("version") != VERSION:
        found = f"version {content.get('version')!r:.40}"
        raise ValueError(f"{path}: has {found}; only {VERSION} is read here, make the shards anew")
    return _held(content, Index, path)


def read_table(shard: Path) -> ShardTable:
    """The table of a shard. Raises `ValueError` for anything else, and for clips with names outside the data set."""
    path = shard.with_suffix(".json")
    table = _held(read_json(path), ShardTable, path)
    for name, *_ in table["clips"]:
        parts = PurePosixPath(name).parts
        if not parts or name[0] in "/\\" or ".." in parts or "\0" in name:
            raise ValueError(f"{path}: the clip {name!r:.80} is named outside the data set's folder")
    return table


def _held(content: Any, kind: type[_Kind], path: Path) -> _Kind:
    """The content, held against its schema."""
    try:
        return fit(content, kind)
    except ValueError as error:
        raise ValueError(f"{path}: is not as jaxprune shard writes it ({error}); make the shards anew") from error


def encoded(facts: Mapping[str, Any], samples: Shaped[np.ndarray, "samples"]) -> bytes:
    """A record of a shard. `facts` gains the number of samples and their kind."""
    kind = samples.dtype.newbyteorder("<")
    head = {**facts, "rate": SAMPLE_RATE, "samples": len(samples), "dtype": samples.dtype.name}
    return json.dumps(head, ensure_ascii=False).encode() + b"\n" + samples.astype(kind).tobytes()


def decoded(record: bytes) -> Decoded:
    """The inverse. Raises `ValueError` for anything that `encoded` does not give."""
    head, newline, _ = record[:65536].partition(b"\n")
    try:
        facts = msgspec.json.decode(head, type=Facts)
        kind = np.dtype(facts["dtype"]).newbyteorder("<")
        samples = np.frombuffer(record, kind, offset=len(head) + len(newline))
        if len(samples) != facts["samples"]:
            raise ValueError(f"{len(samples)} samples where {facts['samples']} were written")
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"not a record of jaxprune shard ({error})") from error
    return Decoded(facts, samples)


def waveform(samples: Shaped[np.ndarray, "samples"]) -> Float[np.ndarray, "samples"]:
    """Full scale at 1, float32: of int16 the same as of a wav of 16 bits."""
    if samples.dtype == np.int16:
        return samples * np.float32(1 / FULL_SCALE)
    return samples.astype(np.float32)


def rounded(sound: Float[np.ndarray, "samples"]) -> Shaped[np.ndarray, "samples"]:
    """Rounds to int16, cut off at full scale. Raises `ValueError` where nothing is left of the sound."""
    samples = np.clip(np.rint(sound * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    if samples.min() == samples.max():
        raise ValueError("is so quiet that 16 bits leave nothing of it; store float32 (--samples float32)")
    return samples
