"""The clips as they lie on disk: which listed files exist, under which name, and which of them are one and the same.

A folder's listing is read once, for a network disk may hold two million clips. Names are compared as Unicode: the same
accented letter may be one code point in a list and two on disk.
"""

import dataclasses
import os
import unicodedata
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A file as the disk has it: its path, and what equals another path's where both are one file."""

    path: str
    identity: object


class Folders:
    """The listings of folders, each read at most once."""

    def __init__(self):
        self._listings: dict[str, _Listing | None] = {}

    def find(self, path: str) -> Location | None:
        """The file at a path or at one that is the same Unicode, None if there is nothing."""
        folder, name = os.path.split(path)
        listing = self._listing(folder)
        entry = listing.entry(name) if listing else None
        if entry is None:
            return None
        found = path if entry.name == name and listing.folder == folder else os.path.join(listing.folder, entry.name)
        return Location(path=found, identity=self._identity(found, entry, listing))

    def _identity(self, path: str, entry: os.DirEntry, listing: "_Listing") -> object:
        if entry.is_symlink() and os.path.exists(path):
            status = os.stat(path)
            return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        number = entry.inode()  # known from the listing, but for disks that have none
        return (listing.device, number) if number and listing.device else os.path.join(listing.real, entry.name)

    def _listing(self, folder: str) -> "_Listing | None":
        if folder not in self._listings:
            self._listings[folder] = self._read(folder)
        return self._listings[folder]

    def _read(self, folder: str) -> "_Listing | None":
        try:
            return _Listing(folder)
        except (OSError, ValueError):  # ValueError: a zero byte
            above = os.path.dirname(folder)
            if folder.isascii() or above in ("", folder):
                return None
            found = self.find(folder)
            return _Listing(found.path) if found and os.path.isdir(found.path) else None


class _Listing:
    """One folder's entries by name."""

    def __init__(self, folder: str):
        self.folder = folder
        with os.scandir(folder or ".") as entries:
            self._entries = {entry.name: entry for entry in entries}
        self.real = os.path.realpath(folder or ".")
        self.device = os.stat(self.real).st_dev
        self._composed: dict[str, os.DirEntry] | None = None

    def entry(self, name: str) -> os.DirEntry | None:
        if name in self._entries or name.isascii():
            return self._entries.get(name)
        if self._composed is None:
            self._composed = {unicodedata.normalize("NFC", key): entry for key, entry in self._entries.items()}
        return self._composed.get(unicodedata.normalize("NFC", name))


def missing_files(paths: Sequence[str]) -> list[str]:
    """Those of the paths at which there is nothing."""
    folders = Folders()
    return [path for path in paths if folders.find(path) is None]
