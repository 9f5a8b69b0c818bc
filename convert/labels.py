"""Reads the names of a classifier's outputs from the kinds of file they are published in.

Finds one name per class, in the head's order, and checks that none is missing or given twice. Whether their number fits
the head is checked where a head is known, in `card.py`.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_labels(path: Path | str) -> tuple[str, ...]:
    """Class names in index order.

    Takes a CSV with columns index and display_name (AudioSet's, AST's), ESC-50's meta CSV (target, category), a JSON
    list, a JSON object from index to name (or holding one as id2label), or plain text with one name a line. Raises
    `ValueError` naming the file when it cannot be read, or when an index is missing, repeated or not a whole number.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"the labels {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the labels {path} cannot be read: not UTF-8 text") from error
    try:
        return _parse(text, suffix=path.suffix.lower())
    except ValueError as error:
        raise ValueError(f"the labels {path} cannot be used: {error}") from error


def _parse(text: str, *, suffix: str) -> tuple[str, ...]:
    if not text.strip():
        raise ValueError("the file is empty")
    if suffix == ".json":
        return _from_json(json.loads(text))
    header = [name.strip() for name in next(csv.reader(io.StringIO(text)))]
    for index, name in (("index", "display_name"), ("target", "category")):
        if index in header and name in header:
            return _from_rows(text, header=header, columns=(index, name))
    if suffix in (".csv", ".tsv"):
        raise ValueError(
            f"its columns are {', '.join(header)}; expected index and display_name, or ESC-50's target and category"
        )
    return _checked(enumerate(text.rstrip().splitlines()))


def _from_rows(text: str, *, header: list[str], columns: tuple[str, str]) -> tuple[str, ...]:
    at, name_at = (header.index(column) for column in columns)
    rows = [row for row in csv.reader(io.StringIO(text)) if row][1:]
    if short := next((row for row in rows if len(row) <= max(at, name_at)), None):
        raise ValueError(f"the row {','.join(short)!r} has fewer columns than the header")
    pairs = [(row[at], row[name_at]) for row in rows]
    # ESC-50 lists clips, so a class comes back once per clip: the same pair is no repetition there.
    return _checked(dict.fromkeys(pairs) if columns[0] == "target" else pairs)


def _from_json(content: Any) -> tuple[str, ...]:
    if isinstance(content, dict):
        return from_id2label(content.get("id2label", content))
    if isinstance(content, list):
        return _checked(enumerate(content))
    raise ValueError(
        f"it holds a JSON {type(content).__name__}; expected a list of names or an object from index to name"
    )


def from_id2label(content: Any) -> tuple[str, ...]:
    """Names in index order from a mapping such as a Hugging Face config's id2label."""
    if not isinstance(content, dict):
        raise ValueError(f"id2label is a {type(content).__name__}, not a mapping from index to name")
    return _checked(content.items())


def _checked(pairs: Iterable[tuple[Any, Any]]) -> tuple[str, ...]:
    """Sorts (index, name) pairs by index and requires 0, 1, 2 ... exactly once each, and a name for each."""
    names: dict[int, str] = {}
    for index, name in pairs:
        try:
            index = int(index)
        except (TypeError, ValueError):
            raise ValueError(f"{index!r} is not a class index") from None
        if index in names:
            raise ValueError(f"index {index} is given twice, as {names[index]!r} and {name!r}")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"index {index} has no name")
        names[index] = name.strip()
    if gaps := sorted(set(range(len(names))) - names.keys()):
        raise ValueError(
            f"{len(names)} classes are listed but index {gaps[0]} is missing; indices must run from 0 without gaps"
        )
    if not names:
        raise ValueError("it lists no classes")
    return tuple(names[index] for index in range(len(names)))
