"""Writing so that nothing is lost: a file or directory appears under its name when it is complete, or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_directory(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to fill, moved to `path` when the block ends well and removed when it does not.

    Raises `ValueError` when `path` exists and is not to be overwritten; otherwise the old one goes only after the new
    one is in place.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} already exists; choose another name or ask to overwrite it (--overwrite)")
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
        if path.is_dir() and retired.is_dir():
            shutil.rmtree(retired, ignore_errors=True)
        elif retired.exists():  # an overwritten file
            retired.unlink()


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
