"""A data set once it is read: labelled clips in splits, checked, with the names of the classes.

`jaxprune.data.published` and `own` make these from files on disk, `jaxprune.data.batches` makes batches of them. All
checks that do not need to know a layout are here, so that every layout refuses the same with the same sentences.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jaxprune.audio import SoundHeader, load_audio, sound_header
from jaxprune.data.locations import Folders, Location
from jaxprune.files import shown

Missing = Literal["refuse", "skip"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHOWN = 5  # offenders named in a message
MISSING = 0.2  # the share of listed files that may be skipped: more looks like a wrong folder


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One clip: its file, the ids of its classes (rising), its split, and its fold if there are any."""

    path: str
    labels: tuple[int, ...]
    split: Split
    fold: int | None = None

    @property
    def file(self) -> str:
        """The file that holds its sound."""
        return self.path

    def load(self) -> Float[np.ndarray, "samples"]:
        """Its sound, 16 kHz mono. Raises `ValueError` as `jaxprune.audio.load_audio` does."""
        return load_audio(self.path).waveform

    def header(self) -> SoundHeader | None:
        """The facts of its sound that need no decoding; None for what is not sound."""
        return sound_header(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled clips. `labels` holds one name per class, in the order of a head's outputs; none for unlabelled clips.

    `notices` are sentences about what was skipped or assumed when the files were read.
    """

    name: str
    labels: tuple[str, ...]
    records: tuple[Record, ...]
    notices: tuple[str, ...] = ()

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
        """True if every clip has exactly one class."""
        return all(len(record.labels) == 1 for record in self.records)


def checked(
    dataset: Dataset, *, needs: Iterable[Split] = (), missing: Missing = "refuse", labelled: bool = True
) -> Dataset:
    """The data set, if it can be used; else `ValueError` with the first few offenders.

    Refuses no clips at all, an empty split among `needs`, clips without a label (if they are `labelled`) or with one
    outside the label names, clips listed twice, one real file in two splits, and files that do not exist. With
    `missing="skip"` a fifth of the files may be missing: a notice counts them. Paths become those that the disk has.
    """
    name, records = dataset.name, dataset.records
    if not records:
        raise ValueError(f"{name}: there are no clips")
    classes = len(dataset.labels)
    refuse(
        (
            f"{r.path} {list(r.labels)}"
            for r in records
            if (labelled and not r.labels) or any(label not in range(classes) for label in r.labels)
        ),
        f"{name}: clips have no label or one outside the {classes} classes",
    )
    folders = Folders()
    places = {file: folders.find(file) for file in dict.fromkeys(record.file for record in records)}
    refuse(_listed_twice(records, places), f"{name}: clips are listed more than once")
    gone = [file for file, place in places.items() if not place]
    notices = dataset.notices + skipped(name, gone, total=len(places), missing=missing)
    kept = tuple(_placed(record, place) for record in records if (place := places[record.file]))
    for split in needs:
        if not any(record.split == split for record in kept):
            raise ValueError(f"{name}: there are no {split} clips; every split it trains or reports on needs some")
    return dataclasses.replace(dataset, records=kept, notices=notices)


def skipped(name: str, gone: Sequence[str], *, total: int, missing: Missing) -> tuple[str, ...]:
    """The notice on missing files, if there are any. Raises `ValueError` where they may not be skipped."""
    if not gone:
        return ()
    if missing == "refuse":
        raise ValueError(f"{name}: files are missing ({len(gone)}): {first_few(gone)}")
    if len(gone) > MISSING * total:
        many = f"{len(gone)} of {total} listed files are missing"
        raise ValueError(f"{name}: {many}, more than the {MISSING:.0%} that may be skipped: {first_few(gone)}")
    return (f"{name}: {len(gone)} of {total} listed files are missing and skipped: {first_few(gone)}",)


def _placed(record: Record, place: Location) -> Record:
    """The record with the path as the disk spells it; one in a shard keeps its name."""
    if place.path == record.path or record.file != record.path:
        return record
    return dataclasses.replace(record, path=place.path)


def refuse(offenders: Iterable[str], what: str) -> None:
    """Raises `ValueError`, `what` with the number of offenders and the first few of them, unless there are none."""
    offenders = list(offenders)
    if offenders:
        raise ValueError(f"{what} ({len(offenders)}): {first_few(offenders)}")


def first_few(items: Sequence[str]) -> str:
    """The first five, and the number of the others."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return shown("; ".join(items[:SHOWN])) + more


def targets(records: Sequence[Record], *, classes: int) -> Float[np.ndarray, "b {classes}"]:
    """Float32 rows with a one at each class of a clip: one-hot where each has a single label."""
    rows = np.zeros((len(records), classes), np.float32)
    for row, record in zip(rows, records, strict=True):
        row[list(record.labels)] = 1
    return rows


def class_counts(records: Sequence[Record], *, classes: int) -> Int[np.ndarray, "{classes}"]:
    """Clips of each class; a clip with several counts in each."""
    return np.bincount([label for record in records for label in record.labels], minlength=classes)


def rarity(records: Sequence[Record], *, classes: int) -> Float[np.ndarray, "clips"]:
    """The chances that draw clips of every class alike: the sum over a clip's classes of 1 / clips of the class.

    As the AST was trained on AudioSet-2M (Gong et al. 2021). The chances sum to 1.
    """
    share = 1 / np.maximum(class_counts(records, classes=classes), 1)
    chances = np.array([share[list(record.labels)].sum() for record in records])
    return chances / chances.sum()


def _listed_twice(records: Sequence[Record], places: Mapping[str, Location | None]) -> list[str]:
    """The clips that stand twice in the list, and the files that are in two splits under several names."""
    seen: dict[str, Split] = {}
    real: dict[object, Record] = {}
    offenders = []
    for record in records:
        path = os.path.normpath(record.path)
        place = places[record.file]
        if path in seen:
            offenders.append(f"{path} in {seen[path]} and {record.split}")
        elif place and record.file == record.path:
            other = real.setdefault(place.identity, record)
            if other.split != record.split:
                offenders.append(f"{other.path} in {other.split} is {path} in {record.split}, one file")
        seen[path] = record.split
    return offenders
