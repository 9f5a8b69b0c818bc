"""The data sets exactly as they lie on disk: where each keeps its clips, labels, folds and splits.

A source is a small frozen value, so that it can be an option of a command line and part of a saved recipe;
`source.read()` looks at the disk, refuses what is missing, contradictory or leaks between splits, and gives a
`jaxprune.records.Dataset`. Sound is not opened here. Layouts: Piczak 2015 (ESC-50), Warden 2018 (Speech Commands
v0.02), Gemmeke et al. 2017 in the JSON form of Gong et al. 2021 (AudioSet), Nagrani et al. 2017 (VoxCeleb-1).
"""

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.records import (
    SPLITS,
    Dataset,
    LabelFile,
    Record,
    Split,
    checked,
    named_labels,
    read_label_file,
    read_rows,
    read_text,
    refuse,
    whole_number,
)

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ESC50:
    """ESC-50's folder, with meta/esc50.csv and audio/. The clips of `fold` (1 to 5) test, the others train."""

    root: Path
    fold: int = 1

    def read(self) -> Dataset:
        """Also refuses recordings (src_file) with clips in two folds: they would be trained and tested on."""
        table = self.root / "meta" / "esc50.csv"
        rows = read_rows(table, ("filename", "fold", "target", "category", "src_file"))
        names: dict[int, set[str]] = defaultdict(set)
        folds: dict[str, set[int]] = defaultdict(set)
        records = []
        for row in rows:
            target, fold = whole_number(row["target"], table), whole_number(row["fold"], table)
            names[target].add(row["category"])
            folds[row["src_file"]].add(fold)
            path = str(self.root / "audio" / row["filename"])
            split: Split = "test" if fold == self.fold else "train"
            records.append(Record(path=path, labels=(target,), split=split, fold=fold))
        refuse((f"{i} is {sorted(names[i])}" for i in names if len(names[i]) > 1), f"{table}: targets have two names")
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{table}: targets are {sorted(names)}; they must run from 0 without gaps")
        refuse(
            (f"{source} in folds {sorted(found)}" for source, found in folds.items() if len(found) > 1),
            f"{table}: folds overlap, source recordings are in two of them",
        )
        every = sorted({record.fold for record in records})
        if self.fold not in every:
            raise ValueError(f"fold is {self.fold}; {table} has the folds {every}")
        labels = tuple(names[i].pop() for i in range(len(names)))
        return checked(Dataset(name="ESC-50", labels=labels, records=tuple(records)), needs=("train", "test"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechCommands:
    """Speech Commands v0.02: a folder a word, validation_list.txt and testing_list.txt; the rest trains.

    Folders that begin with an underscore or dot are no words. Classes are in alphabetical order, or in that of a
    `labels` file: AST's order is another one.
    """

    root: Path
    labels: Path | None = None

    def read(self) -> Dataset:
        """Also refuses list entries that are no clips, and speakers (the name before _nohash_) in two splits."""
        lists: dict[str, Split] = {"validation_list.txt": "validation", "testing_list.txt": "test"}
        split_of: dict[str, Split] = {}
        twice = []
        for name, split in lists.items():
            for entry in read_text(self.root / name).split():
                if entry in split_of:
                    twice.append(f"{entry} in {split_of[entry]} and {split}")
                split_of[entry] = split
        refuse(twice, f"{self.root}: clips are listed more than once")
        words = sorted(item.name for item in os.scandir(self.root) if item.is_dir() and item.name[0] not in "_.")
        labels = named_labels(self.labels, words, name=str(self.root))
        records, speakers = [], defaultdict(set)
        for word in words:
            for file in sorted(os.listdir(self.root / word)):
                if file[0] == "." or not file.endswith(".wav"):
                    continue
                split = split_of.pop(f"{word}/{file}", "train")
                speakers[file.partition("_nohash_")[0]].add(split)
                path = str(self.root / word / file)
                records.append(Record(path=path, labels=(labels.ids[word],), split=split))
        refuse(split_of, f"{self.root}: clips in the lists are missing")
        refuse(
            (f"{speaker} in {' and '.join(sorted(found))}" for speaker, found in speakers.items() if len(found) > 1),
            f"{self.root}: splits overlap, speakers are in two of them",
        )
        return checked(Dataset(name="Speech Commands", labels=labels.names, records=tuple(records)), needs=SPLITS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioSet:
    """AudioSet as AST lists it: class_labels_indices.csv and one JSON file a split, {"data": [{"wav", "labels"}]}.

    `labels` in the JSON are machine ids joined by commas. Relative paths are looked for under `root`, by default the
    folder of the JSON that gives them. Either split may be left out.
    """

    labels: Path
    train: Path | None = None
    test: Path | None = None
    root: Path | None = None

    def read(self) -> Dataset:
        given: dict[Split, Path | None] = {"train": self.train, "test": self.test}
        listed = {split: path for split, path in given.items() if path}
        if not listed:
            raise ValueError("AudioSet: neither train nor test is given; name the JSON file of at least one")
        labels = read_label_file(self.labels)
        records = []
        for split, path in listed.items():
            entries = [
                {"path": entry.get("wav"), "labels": entry.get("labels", "").split(","), "split": split}
                for entry in _json_entries(path)
            ]
            records += _entry_records(entries, path, labels=labels, root=self.root or path.parent, source=self.labels)
        return checked(Dataset(name="AudioSet", labels=labels.names, records=tuple(records)), needs=listed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoxCeleb1:
    """VoxCeleb-1 for identification: iden_split.txt, and id10001/VIDEO/00001.wav below one or several folders.

    The two downloads, dev and test, may be merged or apart: a speaker is looked for in `root`, in its wav, dev, test,
    dev/wav, test/wav, vox1_dev_wav/wav and vox1_test_wav/wav, and likewise in each of `also`. `splits` is by default
    root's iden_split.txt. Classes are the speakers in alphabetical order, or in that of a `labels` file.
    """

    root: Path
    also: tuple[Path, ...] = ()
    splits: Path | None = None
    labels: Path | None = None

    def read(self) -> Dataset:
        table = self.splits or self.root / "iden_split.txt"
        entries: list[tuple[Split, str]] = []
        for number, line in enumerate(read_text(table).splitlines(), start=1):
            code, _, path = line.strip().partition(" ")
            if not line.strip():
                continue
            if code not in ("1", "2", "3") or path.count("/") != 2:
                raise ValueError(f"{table}: line {number} is {line!r}; expected 1, 2 or 3 and id10001/VIDEO/00001.wav")
            entries.append((SPLITS[int(code) - 1], path.strip()))
        labels = named_labels(self.labels, (path.split("/")[0] for _, path in entries), name=str(table))
        homes = self._homes()
        records = []
        for split, path in entries:
            speaker = path.split("/")[0]
            found = homes.get(speaker, [str(self.root / "wav")])
            # Rarely more than one: a speaker whose videos are divided between two folders.
            home = found[0] if len(found) == 1 else next((h for h in found if os.path.exists(f"{h}/{path}")), found[0])
            records.append(Record(path=f"{home}/{path}", labels=(labels.ids[speaker],), split=split))
        return checked(Dataset(name="VoxCeleb-1", labels=labels.names, records=tuple(records)), needs=SPLITS)

    def _homes(self) -> dict[str, list[str]]:
        """The folders that hold a folder of each speaker."""
        below = ("", "wav", "dev", "test", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav")
        homes = defaultdict(list)
        for root in (self.root, *self.also):
            for folder in filter(Path.is_dir, (root / name for name in below)):
                for speaker in os.listdir(folder):
                    homes[speaker].append(str(folder))
        return homes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Own clips in a folder per class: root/CLASS/clip.wav, or root/train/CLASS/clip.wav with validation and test.

    Also flac, ogg and mp3, at any depth below the class. Without split folders each class is shuffled by `seed` and
    divided by the shares `validation` and `test` (0: none), clip by clip: clips cut from one recording may then stand
    on both sides; use split folders or a manifest to keep them together.
    """

    root: Path
    labels: Path | None = None
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def read(self) -> Dataset:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} must be shares that leave some to train"
            )
        tops = _subfolders(self.root)
        if tops and all(name.lower() in SPLIT_NAMES for name in tops):
            found = [
                (name, path, SPLIT_NAMES[top.lower()])
                for top in tops
                for name in _subfolders(self.root / top)
                for path in _sound_files(self.root / top / name)
            ]
        else:
            found = [clip for name in tops for clip in self._divided(name)]
        if not found:
            raise ValueError(f"{self.root}: holds no clips ({', '.join(SUFFIXES)}) in a folder per class")
        labels = named_labels(self.labels, (name for name, _, _ in found), name=str(self.root))
        records = tuple(Record(path=path, labels=(labels.ids[name],), split=split) for name, path, split in found)
        return checked(Dataset(name=self.root.name, labels=labels.names, records=records), needs=("train",))

    def _divided(self, name: str) -> Iterable[tuple[str, str, Split]]:
        paths = _sound_files(self.root / name)
        order = np.random.default_rng(self.seed).permutation(len(paths))
        tests = round(self.test * len(paths))
        rest = tests + round(self.validation * len(paths))
        for rank, place in enumerate(order):
            yield name, paths[place], "test" if rank < tests else "validation" if rank < rest else "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Own clips in a table: a CSV with columns path, labels, split (several labels joined by ;), or the same as JSON.

    JSON is a list of objects, or {"data": list}; labels may be a list there. Splits are train, validation (val, valid,
    dev) and test (eval). Relative paths are looked for under `root`, by default the manifest's folder. Labels are
    names, in alphabetical order or in that of a `labels` file, whose mids may be used too.
    """

    path: Path
    labels: Path | None = None
    root: Path | None = None

    def read(self) -> Dataset:
        if self.path.suffix.lower() == ".json":
            entries = [dict(entry) for entry in _json_entries(self.path)]
        else:
            entries = [dict(row) for row in read_rows(self.path, ("path", "labels", "split"))]
        for entry in entries:
            names = entry.get("labels", [])
            names = names.split(";") if isinstance(names, str) else names
            entry["labels"] = [str(name).strip() for name in names if str(name).strip()]
        known = {name for entry in entries for name in entry["labels"]}
        labels = named_labels(self.labels, known, name=str(self.path))
        records = _entry_records(
            entries, self.path, labels=labels, root=self.root or self.path.parent, source=self.path
        )
        return checked(Dataset(name=self.path.stem, labels=labels.names, records=records), needs=("train",))


Source = ESC50 | SpeechCommands | AudioSet | VoxCeleb1 | Folder | Manifest


def _json_entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    entries = content.get("data") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    return entries


def _entry_records(
    entries: list[dict[str, Any]], path: Path, *, labels: LabelFile, root: Path, source: Path
) -> tuple[Record, ...]:
    """Records from entries with path, labels (names or mids) and split."""
    refuse((str(entry) for entry in entries if not entry.get("path")), f"{path}: entries name no file")
    refuse(
        (f"{e['path']} {e.get('split')!r}" for e in entries if str(e.get("split")).lower() not in SPLIT_NAMES),
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


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(item.name for item in os.scandir(folder) if item.is_dir() and item.name[0] not in "_.")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror})") from error


def _sound_files(folder: Path) -> list[str]:
    return sorted(
        str(Path(at) / name)
        for at, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and name[0] != "."
    )
