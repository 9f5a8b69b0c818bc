"""Writing so that nothing is lost: what is written is whole under its name or absent, and has one writer at a time.

A killed process leaves only hidden names behind. Whoever locks the same output next removes them.
"""

import functools
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock

# Errors of Orbax where the system refuses to write. TensorStore, with which it writes, has its own: `ValueError` for
# nearly all, `NotImplementedError` for what a file system cannot do.
REFUSED = (OSError, ValueError, NotImplementedError)


class NotWritten(OSError):
    """An output that could not be written, and why: no room, no permission, no such folder."""

    def __init__(self, path: str | os.PathLike, error: Exception):
        self.reason = error.reason if isinstance(error, NotWritten) else reason(error)
        super().__init__(f"{path} cannot be written: {self.reason}")


@contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds an output (a file or a directory, which need not exist yet) against all other processes.

    The system frees the lock of a process that dies. What such a process left unfinished is removed here, or put back
    where it had moved an old directory aside. The lock is a hidden file beside the output, or one in the temporary
    folder where nothing may be written there. One thread may lock the same output again inside the block. Raises
    `ValueError` with the present writer's process, machine and time.
    """
    path = Path(path).absolute()
    lock = _acquired(path)
    file = Path(lock.lock_file)
    try:
        if lock.lock_counter == 1:
            file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}")
            _clear(path)
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):  # Windows keeps a file that is open
                file.unlink()
        lock.release()


@contextmanager
def whole_directory(path: str | os.PathLike, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to fill, moved to `path` when the block ends well and removed when it does not.

    An empty directory may be filled; `overwrite` replaces one that holds a file named `marker`, so that nothing but
    its own kind is ever deleted, and only after the new one is in place. `path` is looked at again after the block: a
    directory that appeared meanwhile stays. Raises `ValueError` otherwise, and `NotWritten` where the system refuses.
    """
    path = Path(path)
    unfinished, retired = (_hidden(path, state) for state in ("unfinished", "retired"))
    with _named(path, unfinished):
        check_free(path, marker=marker, overwrite=overwrite)
    with _named(path, unfinished), locked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        unfinished.mkdir()
        try:
            yield unfinished
            check_free(path, marker=marker, overwrite=overwrite)
            if path.exists():
                # An empty one is removed, which fails where it is not empty any more.
                path.rename(retired) if any(path.iterdir()) else path.rmdir()
            unfinished.rename(path)
        finally:
            _remove(unfinished)
            _clear(path)


def _remove(directory: Path) -> None:
    """Removes a directory as far as the system lets it. Where one thread failed to write, others may still be at it."""
    for pause in (0.0, 0.1, 0.5, 2.0):
        time.sleep(pause)
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return


def check_free(path: Path, *, marker: str, overwrite: bool = False) -> None:
    """Raises `ValueError` unless `whole_directory` may write to `path`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{path} already exists; choose another name or ask to overwrite it (--overwrite)")
    if not (path / marker).exists():
        raise ValueError(f"{path} exists and holds no {marker}, so it is not overwritten; choose another name")


def replace_file(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `path`, same suffix, and moves what it wrote into place.

    Raises `NotWritten` where the system refuses.
    """
    path = Path(path)
    unfinished = _hidden(path, "unfinished", suffix=path.suffix)
    with _named(path, unfinished):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """The text as a UTF-8 file, whole or not at all. Names that are not UTF-8 are written as JSON escapes them."""
    content = text.encode("utf-8", "backslashreplace")
    replace_file(path, lambda unfinished: unfinished.write_bytes(content))


def shown(path: str | os.PathLike[str]) -> str:
    """A path that any console can print: bytes that are not UTF-8 become `\\xNN`."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a code point, from JSON: no system has such a name
        return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Results as a JSON file, whole or not at all. Paths and other plain values become text.

    Raises `ValueError` for numbers that JSON cannot hold.
    """
    write_text(path, json.dumps(content, allow_nan=False, indent=1, default=str, ensure_ascii=False) + "\n")


def reason(error: BaseException) -> str:
    """The system's words for an error.

    TensorStore has its number at the end of a long text, perhaps under an error of clearing up after it.
    """
    under: BaseException | None = error
    while under is not None:
        if number := re.search(r"os_error_code='(\d+)'", str(under)):
            return os.strerror(int(number[1]))
        under = under.__cause__ or under.__context__
    return getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).split("\n")[0]


@functools.cache
def quiet_orbax() -> None:
    """Leaves an error of Orbax to the one who called it, for the rest of the process.

    Its threads log every error that they hand on, and where a disk is full TensorStore calls a hundred times into an
    event loop that has ended.
    """
    shown = sys.unraisablehook

    def others(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "loop is closed" in str(unraisable.exc_value)):
            shown(unraisable)

    sys.unraisablehook = others
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    # Of many writes that fail at once, Orbax waits for the first alone.
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())


def _acquired(path: Path) -> filelock.BaseFileLock:
    """The lock of an output, taken."""
    beside = path.with_name(f".{path.name}.lock")
    elsewhere = Path(tempfile.gettempdir(), f"jaxprune-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.lock")
    with suppress(OSError):
        beside.parent.mkdir(parents=True, exist_ok=True)
    for file in (beside, elsewhere):
        # A lock that the system does not free with its process would be no better than none.
        lock = filelock.FileLock(file, is_singleton=True, fallback_to_soft=False)
        try:
            return lock.acquire(blocking=False).lock
        except filelock.Timeout:
            raise ValueError(f"{path} is in use by {_owner(file)}; wait for its end or choose another output") from None
        except OSError:
            if file == elsewhere:
                raise
    raise AssertionError("one of the two was taken or raised")


def _owner(file: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        return file.read_text() or "another process"
    except OSError:
        return "another process"


def _hidden(path: Path, state: str, *, suffix: str = "") -> Path:
    """A name beside the output that only this process uses."""
    return path.with_name(f".{path.name.removesuffix(suffix)}.{state}-{os.getpid()}{suffix}")


def _clear(path: Path) -> None:
    """Removes what unfinished writers left, in an output that is locked; an old directory moved aside comes back."""
    name, stem = glob.escape(path.name), glob.escape(path.stem)
    for retired in path.parent.glob(f".{name}.retired-*"):
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(path)
    beside = (f".{name}.unfinished-*", f".{stem}.unfinished-*{glob.escape(path.suffix)}")
    leavings = {leaving for pattern in beside for leaving in path.parent.glob(pattern)}
    leavings |= set(path.glob(".*.unfinished-*")) if path.is_dir() else set()
    for leaving in leavings:
        if leaving.is_dir():
            shutil.rmtree(leaving, ignore_errors=True)
        else:
            leaving.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, unfinished: Path) -> Iterator[None]:
    """Makes `NotWritten` of the system's errors, which may lack a path or name a temporary one.

    Those of other files, read inside the block, stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            failed = Path(os.fsdecode(error.filename)).absolute()
            on_the_way = (path.absolute(), *path.absolute().parents)
            if unfinished.absolute() not in (failed, *failed.parents) and failed not in on_the_way:
                raise
        raise NotWritten(path, error) from error
