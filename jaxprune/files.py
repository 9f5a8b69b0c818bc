"""Writing so that nothing is lost: a file or directory appears under its name when it is complete, or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_directory(path: str | os.PathLike, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to fill, moved to `path` when the block ends well and removed when it does not.

    An empty directory may be filled; `overwrite` replaces one that holds a file named `marker`, so that nothing but
    its own kind is ever deleted, and only after the new one is in place. Raises `ValueError` otherwise.
    """
    path = Path(path)
    check_free(path, marker=marker, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, retired = (path.with_name(f".{path.name}.{state}-{os.getpid()}") for state in ("unfinished", "retired"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        if path.exists():
            path.rename(retired)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)


def check_free(path: Path, *, marker: str, overwrite: bool = False) -> None:
    """Raises `ValueError` unless `whole_directory` may write to `path`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{path} already exists; choose another name or ask to overwrite it (--overwrite)")
    if not (path / marker).exists():
        raise ValueError(f"{path} exists and holds no {marker}, so it is not overwritten; choose another name")


def replace_file(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `path`, same suffix, and moves what it wrote into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished-{os.getpid()}{path.suffix}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """The text as a UTF-8 file, whole or not at all."""
    replace_file(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
