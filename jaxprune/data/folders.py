"""The sound files below a folder: every real folder once, hidden ones never, and a count of what was passed over."""

import dataclasses
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jaxprune.decoding import EXTRA

# What libsndfile reads, and what PyAV reads where it is installed.
SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aif", ".aiff", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".mp2"),
)
WITH_AV = (".m4a", ".mp4", ".aac", ".webm", ".weba", ".mka", ".wma", ".amr", ".3gp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundFiles:
    """The sound files below a folder as (names of the folders on the way, path), sorted, and notices on the others."""

    files: tuple[tuple[tuple[str, ...], str], ...]
    notices: tuple[str, ...]


def find(root: Path) -> SoundFiles:
    """Looks through all folders below `root`. Folders that are only links are taken last.

    A folder that two names lead to belongs to the one that is no link. Names that begin with a dot are hidden, and so
    are folders of the first two levels that begin with an underscore: they are no classes. Raises `ValueError` where
    `root` cannot be read.
    """
    walk = _Walk(root)
    walk.run()
    readable = SUFFIXES + (WITH_AV if importlib.util.find_spec("av") else ())
    files, others = [], Counter[str]()
    for way, path in walk.files:
        suffix = os.path.splitext(path)[1].lower()
        if suffix in readable:
            files.append((way, path))
        else:
            others[suffix or "no suffix"] += 1
    notices = [f"{root}: {text}" for text in (*_told(others), *walk.told)]
    return SoundFiles(files=tuple(sorted(files, key=lambda file: (file[0][:2], file[1]))), notices=tuple(notices))


def subfolders(folder: Path) -> list[str]:
    """The names of a folder's own folders, without those that begin with a dot or underscore, in order.

    Raises `ValueError` where the folder cannot be read.
    """
    try:
        return sorted(item.name for item in os.scandir(folder) if item.is_dir() and item.name[0] not in "_.")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror})") from error


def counted(files: int) -> str:
    """The number of files in words."""
    return "1 file" if files == 1 else f"{files} files"


def _told(others: Counter[str]) -> Iterator[str]:
    """A sentence on sound that needs PyAV, and one on files that are no sound."""
    for needed, why in ((True, f"for want of the extra audio ({EXTRA})"), (False, "without sound")):
        found = {suffix: count for suffix, count in others.items() if (suffix in WITH_AV) == needed}
        if found:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))
            yield f"skipped {counted(sum(found.values()))} {why}: {kinds}"


class _Walk:
    """All visible files below a folder, in two rounds: real folders, then those that only links lead to."""

    def __init__(self, root: Path):
        self.files: list[tuple[tuple[str, ...], str]] = []
        self.told: list[str] = []
        self._root = root
        self._seen: set[tuple[int, int]] = set()
        self._links: list[tuple[tuple[str, ...], str]] = []

    def run(self) -> None:
        subfolders(self._root)  # says why, if it cannot be read
        self._enter((), str(self._root))
        for way, path in self._links:  # grows on the way
            self._enter(way, path)

    def _enter(self, way: tuple[str, ...], path: str) -> None:
        todo = [(way, path)]
        while todo:
            way, path = todo.pop()
            try:
                status = os.stat(path)
                with os.scandir(path) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                self.told.append(
                    f"{os.path.relpath(path, self._root)} is skipped, it cannot be read ({error.strerror})"
                )
                continue
            if (status.st_dev, status.st_ino) in self._seen:
                self.told.append(f"{os.path.relpath(path, self._root)} is skipped, the same folder was read already")
                continue
            self._seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                if entry.name[0] == "." or (entry.name[0] == "_" and len(way) < 2 and entry.is_dir()):
                    continue
                if not entry.is_dir():
                    self.files.append((way, entry.path))
                elif entry.is_symlink():
                    self._links.append(((*way, entry.name), entry.path))
                else:
                    todo.append(((*way, entry.name), entry.path))
