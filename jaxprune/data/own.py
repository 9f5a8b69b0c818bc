"""Own sounds, as a folder per class or as a table of files, and what tables of files have in common.

Sources like those of `jaxprune.data.published`, which says what a source is and has the published data sets. Own data
need not have every split: training refuses data without training clips, evaluation only needs the split it is asked
for. A label file keeps the head's classes where a split lacks some of them.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.data.labels import LabelFile, named_labels
from jaxprune.data.records import Dataset, Record, Split, checked, read_rows, read_text, refuse

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Own clips in a folder per class: root/CLASS/clip.wav, or root/train/CLASS/clip.wav with validation and test.

    Also flac, ogg and mp3, at any depth below the class. Without split folders each class is shuffled by `seed` and
    divided by the shares `validation` and `test` (0: none; 1: all), clip by clip: clips cut from one recording may then
    stand on both sides; use split folders or a manifest to keep them together.
    """

    root: Path
    labels: Path | None = None
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def read(self) -> Dataset:
        if min(self.validation, self.test) < 0 or self.validation + self.test > 1:
            raise ValueError(f"validation {self.validation} and test {self.test} must be shares of at most 1 in all")
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
        return checked(Dataset(name=self.root.name, labels=labels.names, records=records))

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
            entries = [dict(entry) for entry in json_entries(self.path)]
        else:
            entries = [dict(row) for row in read_rows(self.path, ("path", "labels", "split"))]
        for entry in entries:
            names = entry.get("labels", [])
            names = names.split(";") if isinstance(names, str) else names
            entry["labels"] = [str(name).strip() for name in names if str(name).strip()]
        known = {name for entry in entries for name in entry["labels"]}
        labels = named_labels(self.labels, known, name=str(self.path))
        records = entry_records(entries, self.path, labels=labels, root=self.root or self.path.parent, source=self.path)
        return checked(Dataset(name=self.path.stem, labels=labels.names, records=records))


def json_entries(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, bare or as {"data": list}. Raises `ValueError` for anything else."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    entries = content.get("data") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    return entries


def entry_records(
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
