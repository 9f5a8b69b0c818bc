"""What a data set is once read: labelled clips in splits, checked, with the names of the classes.

`jaxprune.data.published` makes these from files on disk, `jaxprune.data.batches` makes batches of them. All checks that
do not need to know a layout are here, so that every layout refuses the same things with the same sentences.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jaxprune.audio import SoundHeader, load_audio, sound_header

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHOWN = 5  # offenders named in a message


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One clip: its file, the ids of its classes (rising, at least one), its split, and its fold if there are any."""

    path: str
    labels: tuple[int, ...]
    split: Split
    fold: int | None = None

    @property
    def file(self) -> str:
        """What must exist for its sound to be read."""
        return self.path

    def load(self) -> Float[np.ndarray, "samples"]:
        """Its sound, 16 kHz mono. Raises `ValueError` as `jaxprune.audio.load_audio` does."""
        return load_audio(self.path).waveform

    def header(self) -> SoundHeader | None:
        """What is known of its sound without decoding it; None for what is not sound."""
        return sound_header(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled clips. `labels` holds one name per class, in the order of a head's outputs."""

    name: str
    labels: tuple[str, ...]
    records: tuple[Record, ...]

    def clips(self, split: Split) -> tuple[Record, ...]:
        """The records of a split, in the order of the data set's own list. Raises `ValueError` if there are none."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        found = tuple(record for record in self.records if record.split == split)
        if not found:
            sizes = ", ".join(f"{name} {count}" for name, count in self.sizes().items())
            raise ValueError(f"{self.name} has no {split} clips; it has {sizes}")
        return found

    def sizes(self) -> dict[Split, int]:
        """The number of clips in each split that has any."""
        counts = {split: sum(record.split == split for record in self.records) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    @property
    def single_label(self) -> bool:
        """Whether every clip has exactly one class."""
        return all(len(record.labels) == 1 for record in self.records)


def checked(dataset: Dataset, *, needs: Iterable[Split] = ()) -> Dataset:
    """The data set, if it can be used; else `ValueError` with the first few offenders.

    Refuses no clips at all, an empty split among `needs`, clips without a label or with one outside the label names,
    clips listed twice, in one split or in two, and files that do not exist.
    """
    name, records = dataset.name, dataset.records
    if not records:
        raise ValueError(f"{name}: there are no clips")
    for split in needs:
        if not any(record.split == split for record in records):
            raise ValueError(f"{name}: there are no {split} clips; every split it trains or reports on needs some")
    classes = len(dataset.labels)
    refuse(
        (
            f"{r.path} {list(r.labels)}"
            for r in records
            if not r.labels or min(r.labels) < 0 or max(r.labels) >= classes
        ),
        f"{name}: clips have no label or one outside the {classes} classes",
    )
    refuse(_listed_twice(records), f"{name}: clips are listed more than once")
    refuse(missing_files(list(dict.fromkeys(record.file for record in records))), f"{name}: files are missing")
    return dataset


def refuse(offenders: Iterable[str], what: str) -> None:
    """Raises `ValueError`, `what` with the number of offenders and the first few of them, unless there are none."""
    offenders = list(offenders)
    if offenders:
        raise ValueError(f"{what} ({len(offenders)}): {first_few(offenders)}")


def first_few(items: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def missing_files(paths: Sequence[str]) -> list[str]:
    """Those of the paths at which there is nothing, reading each folder once: a network disk has two million clips."""
    contents: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in contents:
            try:
                contents[folder] = set(os.listdir(folder or "."))
            except OSError:
                contents[folder] = set()
        if name not in contents[folder]:
            missing.append(path)
    return missing


def targets(records: Sequence[Record], *, classes: int) -> Float[np.ndarray, "b {classes}"]:
    """Float32 rows with a one at each class of a clip: one-hot where each has a single label."""
    rows = np.zeros((len(records), classes), np.float32)
    for row, record in zip(rows, records, strict=True):
        row[list(record.labels)] = 1
    return rows


def class_counts(records: Sequence[Record], *, classes: int) -> Int[np.ndarray, "{classes}"]:
    """Clips of each class; a clip with several counts in each."""
    return np.bincount([label for record in records for label in record.labels], minlength=classes)


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises `ValueError` that names it when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text") from error


def read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """A CSV file's rows. Raises `ValueError` unless it has the columns and every row fills them."""
    rows = list(csv.DictReader(io.StringIO(read_text(path)), strict=True))
    for line, row in enumerate(rows, start=2):
        for column in columns:
            if not row.get(column):
                raise ValueError(f"{path}: row {line} has no {column}; it must have {', '.join(columns)}")
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return rows


def whole_number(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path}: {text!r} is not a whole number") from None


def _listed_twice(records: Sequence[Record]) -> list[str]:
    seen: dict[str, Split] = {}
    offenders = []
    for record in records:
        path = os.path.normpath(record.path)
        if path in seen:
            offenders.append(f"{path} in {seen[path]} and {record.split}")
        seen[path] = record.split
    return offenders
