"""JSON files from outside: regular, bounded in size, and of a stated schema, or one sentence says why not.

A schema is a type that msgspec understands: a dataclass, a TypedDict, `list[str]`, and so on.
"""

import json
import os
import stat
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
LARGEST = 64 * 2**20  # bytes; no JSON of ours comes near it


def read_json(path: str | os.PathLike[str], *, largest: int = LARGEST) -> Any:
    """The content of a JSON file in Python's types.

    Raises `FileNotFoundError` where there is none, `OSError` where it cannot be opened, and `ValueError` for anything
    but a regular file of at most `largest` bytes that holds valid JSON.
    """
    try:
        return json.loads(read_bounded(path, largest=largest).decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def read_bounded(path: str | os.PathLike[str], *, largest: int) -> bytes:
    """The bytes of a regular file of at most `largest`. Never waits for a pipe and never reads a device.

    Raises `OSError` where it cannot be opened, and `ValueError` for another kind of file and a larger one.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if found.st_size > largest:
            raise ValueError(f"{path} is {found.st_size:,} bytes large; at most {largest:,} are read")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(largest)
    finally:
        os.close(descriptor)


def fit(data: Any, schema: type[T], *, make: Callable[[type, Any], Any] | None = None) -> T:
    """The data as a value of `schema`; `make` builds types that msgspec does not know. Fields that the schema does not
    name are left out.

    Raises `ValueError` naming the first place where data and schema differ.
    """
    try:
        return msgspec.convert(data, schema, dec_hook=make, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except OverflowError:
        raise ValueError("it holds a number that is too large") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
