"""Reads the published data sets as they lie on disk: their clips, labels, folds and splits.

A source is a small frozen value. It can be an option of a command line and part of a saved recipe. `source.read()`
looks at the disk and gives a `jaxprune.data.records.Dataset`. It refuses data that is missing, contradictory or shared
between splits. It opens no sound.

Layouts: Piczak 2015 (ESC-50), Warden 2018 (Speech Commands v0.02), Gemmeke et al. 2017 in the JSON form of Gong et al.
2021 (AudioSet), Nagrani et al. 2017 (VoxCeleb-1), Ghandoura et al. 2021 (Arabic Speech Commands). Other sources are
your own sounds (`jaxprune.data.own`) and decoded shards (`jaxprune.data.shards`).
"""

import dataclasses
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Literal

from jaxprune.data.folders import subfolders
from jaxprune.data.labels import named_labels, read_label_file
from jaxprune.data.own import Folder, Manifest, UnlabelledFolder, UnlabelledManifest, entry_records, with_labels
from jaxprune.data.records import SPLITS, Dataset, Missing, Record, Split, checked, refuse, skipped
from jaxprune.data.shards import Shards
from jaxprune.data.tables import json_entries, read_rows, read_text, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ESC50:
    """ESC-50's folder, with meta/esc50.csv and audio/. Fold `fold` (1 to 5) is the test split; the others train."""

    root: Path
    fold: int = 1
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the table. Refuses a recording (src_file) with clips in two folds: it would train and test."""
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
            f"{table}: folds overlap, these source recordings are in two folds",
        )
        every = sorted({record.fold for record in records})
        if self.fold not in every:
            raise ValueError(f"fold is {self.fold}; {table} has the folds {every}")
        labels = tuple(names[i].pop() for i in range(len(names)))
        dataset = Dataset(name="ESC-50", labels=labels, records=tuple(records))
        return checked(dataset, needs=("train", "test"), missing=self.missing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechCommands:
    """Speech Commands v0.02: one folder per word, with validation_list.txt and testing_list.txt.

    Clips in neither list train. Folders that begin with an underscore or dot are not words. Classes are in alphabetical
    order, or in the order of a `labels` file. AST's order is not alphabetical: give its file.
    """

    root: Path
    labels: Path | None = None
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the folders and lists. Refuses entries without a clip.

        Also refuses a speaker (the name before _nohash_) in two splits.
        """
        lists: dict[str, Split] = {"validation_list.txt": "validation", "testing_list.txt": "test"}
        split_of: dict[str, Split] = {}
        twice = []
        for name, split in lists.items():
            for entry in read_text(self.root / name).split():
                if entry in split_of:
                    twice.append(f"{entry} in {split_of[entry]} and {split}")
                split_of[entry] = split
        refuse(twice, f"{self.root}: clips are listed more than once")
        listed, words = len(split_of), subfolders(self.root)
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
        if self.missing == "refuse":
            refuse(split_of, f"{self.root}: clips in the lists are missing")
        told = skipped("Speech Commands", list(split_of), total=listed, missing=self.missing)
        refuse(
            (f"{speaker} in {' and '.join(sorted(found))}" for speaker, found in speakers.items() if len(found) > 1),
            f"{self.root}: splits overlap, these speakers are in two splits",
        )
        dataset = Dataset(name="Speech Commands", labels=labels.names, records=tuple(records), notices=told)
        return checked(dataset, needs=SPLITS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioSet:
    """AudioSet as AST lists it: class_labels_indices.csv and one JSON file a split, {"data": [{"wav", "labels"}]}.

    `labels` in the JSON are machine ids or names, joined by commas or in a list. Relative paths start at `root`, by
    default the folder of their JSON file. Either split may be left out. Every copy of AudioSet lacks clips:
    `missing="skip"` skips and counts up to a fifth of them.
    """

    labels: Path
    train: Path | None = None
    test: Path | None = None
    root: Path | None = None
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the JSON lists, with AudioSet's table of classes."""
        given: dict[Split, Path | None] = {"train": self.train, "test": self.test}
        listed = {split: path for split, path in given.items() if path}
        if not listed:
            raise ValueError("AudioSet: neither train nor test is given; name the JSON file of at least one")
        labels = read_label_file(self.labels)
        records = []
        for split, path in listed.items():
            entries = [
                {"path": entry.get("wav"), "labels": entry.get("labels"), "split": split}
                for entry in json_entries(path)
            ]
            entries = with_labels(entries, path, separator=",", known=labels.ids)
            records += entry_records(entries, path, labels=labels, root=self.root or path.parent, source=self.labels)
        dataset = Dataset(name="AudioSet", labels=labels.names, records=tuple(records))
        return checked(dataset, needs=listed, missing=self.missing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoxCeleb1:
    """VoxCeleb-1 for identification: iden_split.txt, and id10001/VIDEO/00001.wav below one or several folders.

    The two downloads, dev and test, may be merged or apart. A speaker may lie in `root` or in its wav, dev, test,
    dev/wav, test/wav, vox1_dev_wav/wav or vox1_test_wav/wav. The same holds for each folder of `also`. `splits` is by
    default root's iden_split.txt. Classes are the speakers in alphabetical order, or in the order of a `labels` file.
    """

    root: Path
    also: tuple[Path, ...] = ()
    splits: Path | None = None
    labels: Path | None = None
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the split table; a speaker is a class."""
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
        dataset = Dataset(name="VoxCeleb-1", labels=labels.names, records=tuple(records))
        return checked(dataset, needs=SPLITS, missing=self.missing)

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
class ArabicSpeechCommands:
    """Arabic Speech Commands: one folder a word, clips named SPEAKER_NO_ROUND, and tables of the splits.

    The tables are train.csv, val.csv (or valid.csv) and test.csv with the columns file and class, as published, or one
    clips.csv with the columns path, labels and split. A clip listed as wav may lie there as flac. `task` "words" has
    the 40 words as classes, and speakers apart between the splits. `task` "speakers" has the 30 speakers as classes
    and rounds apart: the six validation speakers train on rounds 1 to 3, are validated on 4 and tested on 5, and the
    others train on 1 to 7, are validated on 8 and tested on 9 and 10.
    """

    root: Path
    task: Literal["words", "speakers"] = "words"
    labels: Path | None = None
    missing: Missing = "refuse"

    def read(self) -> Dataset:
        """Reads the tables. Refuses a speaker in two splits, and a file name that tells no speaker and round."""
        clips = [(path, word, split, *self._said(path)) for path, word, split in self._listed()]
        speakers: dict[str, set[str]] = defaultdict(set)
        for _, _, split, speaker, _ in clips:
            speakers[speaker].add(split)
        refuse(
            (f"{speaker} in {' and '.join(sorted(found))}" for speaker, found in speakers.items() if len(found) > 1),
            f"{self.root}: splits overlap, these speakers are in two splits",
        )
        told: tuple[str, ...] = ()
        if self.task == "speakers":
            divided = [
                (path, who, _round_split(nth, fewer=split == "validation")) for path, _, split, who, nth in clips
            ]
            found = [(path, name, split) for path, name, split in divided if split]
            if unused := len(divided) - len(found):
                told = (f"{self.root}: {unused} clips of the validation speakers' rounds 6 to 10 are not used",)
        else:
            found = [(path, word, split) for path, word, split, _, _ in clips]
        labels = named_labels(self.labels, (name for _, name, _ in found), name=str(self.root))
        records = tuple(Record(path=path, labels=(labels.ids[name],), split=split) for path, name, split in found)
        name = f"Arabic Speech Commands ({self.task})"
        dataset = Dataset(name=name, labels=labels.names, records=records, notices=told)
        return checked(dataset, needs=SPLITS, missing=self.missing)

    def _listed(self) -> list[tuple[str, str, Split]]:
        """File, word and split of every clip that the tables list."""
        manifest = self.root / "clips.csv"
        if manifest.exists():
            rows = read_rows(manifest, ("path", "labels", "split"))
            refuse(
                (f"{row['path']} {row['split']!r}" for row in rows if row["split"] not in SPLITS),
                f"{manifest}: splits must be {', '.join(SPLITS)}",
            )
            return [(self._file(row["path"]), row["labels"], row["split"]) for row in rows]
        middle = "val.csv" if (self.root / "val.csv").exists() else "valid.csv"
        tables: dict[Split, str] = {"train": "train.csv", "validation": middle, "test": "test.csv"}
        return [
            (self._file(row["file"]), row["class"], split)
            for split, table in tables.items()
            for row in read_rows(self.root / table, ("file", "class"))
        ]

    def _file(self, listed: str) -> str:
        """The place of a listed clip: as listed, or with the other suffix of wav and flac where only that exists."""
        path = self.root / listed
        other = path.with_suffix({".wav": ".flac", ".flac": ".wav"}.get(path.suffix, path.suffix))
        return str(other if other.exists() and not path.exists() else path)

    def _said(self, path: str) -> tuple[str, int]:
        """Speaker and round of a clip, by its name."""
        if not (named := re.fullmatch(r"(.+)_NO_(\d+)", Path(path).stem)):
            raise ValueError(f"{path}: its name tells no speaker and round; expected such as 00000030_NO_01.wav")
        return named[1], int(named[2])


def _round_split(nth: int, *, fewer: bool) -> Split | None:
    """The split of a speaker's nth round; None for rounds that are not used. `fewer`: the speaker has five of them."""
    train, validation, test = (3, 4, 5) if fewer else (7, 8, 10)
    return "train" if nth <= train else "validation" if nth <= validation else "test" if nth <= test else None


Source = (
    ArabicSpeechCommands
    | ESC50
    | SpeechCommands
    | AudioSet
    | VoxCeleb1
    | Folder
    | Manifest
    | UnlabelledFolder
    | UnlabelledManifest
    | Shards
)
