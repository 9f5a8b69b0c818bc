"""Own sounds, as a folder per class or as a table of files, and the entries that lists of files have in common.

Sources like those of `jaxprune.data.published`, which says what a source is and has the published data sets. Own data
need not have every split: training refuses data without training clips, evaluation only needs the split it is asked
for. A label file keeps the head's classes where a split lacks some of them.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.data import folders
from jaxprune.data.labels import LabelFile, named_labels
from jaxprune.data.records import Dataset, Missing, Record, Split, checked, first_few, refuse
from jaxprune.data.tables import json_entries, read_rows, texts

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_File = tuple[tuple[str, ...], str]  # the folders on the way to a file, and its path
_Clip = tuple[str, str, Split]  # class, path, split
# Rows of a manifest without a header: a sound file, labels, a split.
_BARE = (re.compile(r".+\.\w{2,4}"), re.compile(r".+"), re.compile("|".join(SPLIT_NAMES), flags=re.IGNORECASE))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Own clips in a folder per class: root/CLASS/clip.wav, or root/train/CLASS/clip.wav with validation and test.

    Any format of sound, at any depth below the class; a notice counts the files that are passed over. Folders named
    as splits are splits once train and one of the others exist, or once there are no other folders. Without them each
    class is shuffled by `seed` and divided by the shares `validation` and `test` (0: none; 1: all), clip by clip: clips
    cut from one recording may then stand on both sides; use split folders or a manifest to keep them together.
    """

    root: Path
    labels: Path | None = None
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def read(self) -> Dataset:
        """Finds the sounds below the root and gives each its class and split."""
        if min(self.validation, self.test) < 0 or self.validation + self.test > 1:
            raise ValueError(f"validation {self.validation} and test {self.test} must be shares of at most 1 in all")
        sounds = folders.find(self.root)
        tops = folders.subfolders(self.root)
        told = list(sounds.notices)
        if _are_splits(tops):
            found, lost = _in_splits(sounds.files)
            told += _other_folders(self.root, tops)
        else:
            found, lost = self.divided(sounds.files)
            if splits := [name for name in tops if name.lower() in SPLIT_NAMES]:
                told.append(
                    f"{self.root}: the folder {splits[0]} is taken for a class: train and another split must exist"
                )
        if lost:
            told.append(f"{self.root}: skipped {folders.counted(len(lost))} in no class folder: {first_few(lost)}")
        if not found:
            raise ValueError(f"{self.root}: holds no clips ({', '.join(folders.SUFFIXES)}) in a folder per class")
        labels = named_labels(self.labels, (name for name, _, _ in found), name=str(self.root))
        records = tuple(Record(path=path, labels=(labels.ids[name],), split=split) for name, path, split in found)
        name = self.root.resolve().name
        return checked(Dataset(name=name, labels=labels.names, records=records, notices=tuple(told)))

    def divided(self, files: Iterable[_File]) -> tuple[list[_Clip], list[str]]:
        """The clips (class, path, split) of each class in splits by share, and the files in no class."""
        classes: dict[str, list[str]] = {}
        lost = []
        for way, path in files:
            if way:
                classes.setdefault(way[0], []).append(path)
            else:
                lost.append(path)
        found: list[_Clip] = []
        for name in sorted(classes):
            paths = classes[name]
            order = np.random.default_rng(self.seed).permutation(len(paths))
            tests = round(self.test * len(paths))
            rest = tests + round(self.validation * len(paths))
            for rank, place in enumerate(order):
                found.append((name, paths[place], "test" if rank < tests else "validation" if rank < rest else "train"))
        return found, lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabelledFolder:
    """Own clips in a folder without labels, for pretraining: root/clip.wav, in any folders below, or in split folders.

    Any format of sound, as `Folder` reads it. Split folders are those that `Folder` takes for splits. Without them each
    folder in the root may be a class: it is divided as `Folder` does, so that the clips that fine-tuning would test on
    are left out of training. Sounds in no folder are shuffled by `seed`, and the share `validation` is held out.
    """

    root: Path
    validation: float = 0.1
    seed: int = 0

    def read(self) -> Dataset:
        """Finds the sounds below the root and gives each its split."""
        sounds = folders.find(self.root)
        tops = folders.subfolders(self.root)
        told = list(sounds.notices)
        if _are_splits(tops):
            found, loose = _in_splits(sounds.files, deep=1)
            told += _other_folders(self.root, tops)
            if loose:
                told.append(
                    f"{self.root}: skipped {folders.counted(len(loose))} in no split folder: {first_few(loose)}"
                )
        else:
            shares = Folder(root=self.root, validation=self.validation, seed=self.seed)
            found, loose = shares.divided(sounds.files)
            tests = sum(split == "test" for _, _, split in found)
            found += dataclasses.replace(shares, test=0.0).divided((("",), path) for path in loose)[0]
            told += self._assumed(found, tests=tests)
        if not found:
            raise ValueError(f"{self.root}: holds no clips ({', '.join(folders.SUFFIXES)})")
        records = tuple(Record(path=path, labels=(), split=split) for _, path, split in found)
        dataset = Dataset(name=self.root.resolve().name, labels=(), records=records, notices=tuple(told))
        return checked(dataset, labelled=False)

    def _assumed(self, found: list[_Clip], *, tests: int) -> Iterator[str]:
        """Sentences on clips that were divided by share."""
        held_out = sum(split == "validation" for _, _, split in found) or "none"
        yield (
            f"{self.root}: {held_out} of {len(found)} sounds, a share of {self.validation:g}, drawn clip by clip, are "
            "held out to measure the loss; folders train and validation, or a manifest, keep the clips of one "
            "recording together"
        )
        if tests:
            yield (
                f"{self.root}: its folders may be classes, so the {tests} clips that fine-tuning would test on are "
                "left out of training"
            )


def _other_folders(root: Path, tops: Sequence[str]) -> list[str]:
    """A sentence on the folders beside splits. It is empty if there are none."""
    others = [name for name in tops if name.lower() not in SPLIT_NAMES]
    return [f"{root}: holds splits, so its other folders are skipped: {first_few(others)}"] if others else []


def _are_splits(tops: list[str]) -> bool:
    """True if these folders are splits: all of them, or train and another one beside anything else."""
    splits = {SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    return bool(tops) and (all(name.lower() in SPLIT_NAMES for name in tops) or ("train" in splits and len(splits) > 1))


def _in_splits(files: Iterable[_File], *, deep: int = 2) -> tuple[list[_Clip], list[str]]:
    """The clips of split/class folders, and the files that are not so deep. With `deep` one they need no class."""
    found: list[_Clip] = []
    lost = []
    for way, path in files:
        if way and way[0].lower() not in SPLIT_NAMES:
            continue
        if len(way) < deep:
            lost.append(path)
        else:
            found.append((way[deep - 1], path, SPLIT_NAMES[way[0].lower()]))
    return found, lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Own clips in a table: a CSV with columns path, labels, split (several labels joined by ;), or the same as JSON.

    JSON is a list of objects, {"data": list}, or JSON lines (.jsonl); labels may be a list there. A csv may be
    separated by semicolons or tabs, and have no header if its columns are these three. Splits are train, validation
    (val, valid, dev) and test (eval). Relative paths are looked for under `root`, by default the manifest's folder.
    Labels are names, in alphabetical order or in that of a `labels` file, whose mids may be used too. Files that are
    missing are refused, or with "skip" skipped and counted, up to a fifth of them.
    """

    path: Path
    labels: Path | None = None
    root: Path | None = None
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the table and holds its rows against the disk."""
        entries = _entries(self.path, ("path", "labels", "split"), bare=_BARE)
        entries = with_labels(entries, self.path, separator=";")
        known = {name for entry in entries for name in entry["labels"]}
        labels = named_labels(self.labels, known, name=str(self.path))
        records = entry_records(entries, self.path, labels=labels, root=self.root or self.path.parent, source=self.path)
        dataset = Dataset(name=self.path.stem, labels=labels.names, records=records)
        return checked(dataset, missing=self.missing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabelledManifest:
    """Own clips without labels in a table, for pretraining: a `Manifest` that needs the columns path and split alone.

    Labels that are there are left out.
    """

    path: Path
    root: Path | None = None
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the table and holds its rows against the disk."""
        entries = [entry | {"labels": []} for entry in _entries(self.path, ("path", "split"), bare=_BARE[::2])]
        nothing = LabelFile(names=(), ids={})
        records = entry_records(
            entries, self.path, labels=nothing, root=self.root or self.path.parent, source=self.path
        )
        dataset = Dataset(name=self.path.stem, labels=(), records=records)
        return checked(dataset, missing=self.missing, labelled=False)


def _entries(path: Path, columns: Sequence[str], *, bare: Sequence[re.Pattern]) -> list[dict[str, Any]]:
    """The rows of a table in JSON or csv. Raises `ValueError` for a csv without these columns."""
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return json_entries(path)
    return [dict(row) for row in read_rows(path, columns, bare=bare)]


def with_labels(
    entries: list[dict[str, Any]], path: Path, *, separator: str, known: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The entries, their labels as lists of names. Raises `ValueError` for labels that are no text.

    `known` are names that may contain the separator.
    """
    found = [entry | {"labels": texts(entry.get("labels"), separator=separator, known=known)} for entry in entries]
    refuse(
        (
            f"{old.get('path')} {old.get('labels')!r:.80}"
            for old, new in zip(entries, found, strict=True)
            if new["labels"] is None
        ),
        f"{path}: labels must be names, or a list of names",
    )
    return found


def entry_records(
    entries: list[dict[str, Any]], path: Path, *, labels: LabelFile, root: Path, source: Path
) -> tuple[Record, ...]:
    """Records from entries with path, labels (names or mids) and split."""
    refuse((f"{entry!r:.80}" for entry in entries if not entry.get("path")), f"{path}: entries name no file")
    refuse(
        (f"{e['path']!r:.80}" for e in entries if not isinstance(e["path"], str) or "\0" in e["path"]),
        f"{path}: paths must be text",
    )
    refuse(
        (f"{e['path']} {e.get('split')!r:.80}" for e in entries if str(e.get("split")).lower() not in SPLIT_NAMES),
        f"{path}: splits must be train, validation or test",
    )
    refuse(
        (f"{e['path']} {name!r}" for e in entries for name in e["labels"] if name not in labels.ids),
        f"{path}: labels are not in {source}",
    )
    return tuple(
        Record(
            path=str(root / entry["path"]),  # an absolute path stays as it is
            labels=tuple(sorted({labels.ids[name] for name in entry["labels"]})),
            split=SPLIT_NAMES[str(entry["split"]).lower()],
        )
        for entry in entries
    )
