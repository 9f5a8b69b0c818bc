"""Tables and lists as people keep them: csv in its dialects, JSON and JSON lines, read as rows of named fields.

What is unambiguous is read; anything else is refused in one sentence that names the columns or the value that was
found. What the rows mean is for the callers: `jaxprune.data.own`, `published` and `labels`.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LARGEST = 2**31  # bytes of a list; AudioSet's two million clips take an eighth of it
_SEPARATORS = ",;\t"


def read_text(path: Path) -> str:
    """A text file's content, UTF-8 or UTF-16 by its mark. Raises `ValueError` that names it when it cannot be read."""
    try:
        if not path.is_file() and path.exists():
            raise ValueError(f"{path}: is not a file; expected a text file")
        if path.exists() and path.stat().st_size > LARGEST:
            raise ValueError(f"{path}: is larger than {LARGEST >> 30} GiB; expected a list of clips or labels")
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text") from error


def read_rows(path: Path, columns: Sequence[str], *, bare: Sequence[re.Pattern] = ()) -> list[dict[str, str]]:
    """A csv file's rows by lower-case column, without the spaces around values.

    Columns may be separated by commas, semicolons or tabs. A file without a header is read if the values of its first
    row match `bare`, one pattern for each of `columns`. Raises `ValueError` unless it has the columns and each row
    fills them.
    """
    text = io.StringIO(read_text(path), newline=None).getvalue()  # line ends of any system
    if not text.strip():
        raise ValueError(f"{path}: has no rows")
    rows, header = _dialect(text, columns, path)
    if not set(columns) <= set(header):
        first = rows[0]
        if not (bare and len(first) == len(bare) and all(map(re.fullmatch, bare, first))):
            raise ValueError(f"{path}: its columns are {', '.join(first)!r:.200}; it must have {', '.join(columns)}")
        return [_named(row, list(columns), columns, path, line) for line, row in enumerate(rows, start=1)]
    if len(rows) == 1:
        raise ValueError(f"{path}: has no rows")
    return [_named(row, header, columns, path, line) for line, row in enumerate(rows[1:], start=2)]


def split_rows(text: str, *, separator: str = ",") -> list[list[str]]:
    """The rows of a csv text, without empty ones. Spaces around quotes are allowed.

    Raises `ValueError` for a quote that is not closed, text behind a quote, and a field above 131,072 characters.
    """
    try:
        return _strict_rows(text, separator)
    except ValueError as error:
        quoted = rf'(^|{separator})[ ]*("(?:[^"]|"")*")[ ]+(?={separator}|\r?$)'
        tidied = re.sub(quoted, r"\1\2", text, flags=re.MULTILINE)
        if "expected after" not in str(error) or tidied == text:
            raise
    return _strict_rows(tidied, separator)


def _strict_rows(text: str, separator: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        return [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        why = str(error)
        if "unexpected end" in why or "field larger" in why:
            why = 'a quote (") that opens there is not closed, or a field is longer than 131,072 characters'
        raise ValueError(f"row {reader.line_num}: {why}") from error


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises `ValueError` for what is none, or is nested too deeply."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{path}: is not JSON that is read here: it is nested too deeply") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: holds a number that is too long") from error


def json_entries(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, bare or as {"data": list}, or of JSON lines (.jsonl), with lower-case names.

    Raises `ValueError` for anything else.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        entries = []
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            try:
                entries += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
    else:
        content = read_json(path)
        entries = content.get("data") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}; it has {entry!r:.80}')
    return [_lower(entry, path) for entry in entries]


def _lower(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """The object with names in lower case. Raises `ValueError` where two of them are then the same."""
    named = {name.strip().lower(): value for name, value in entry.items()}
    if len(named) < len(entry):
        raise ValueError(f"{path}: an object has a name twice, in upper and lower case: {entry!r:.80}")
    return named


def texts(value: Any, *, separator: str, known: Iterable[str] = ()) -> list[str] | None:
    """The labels of a field: text that `separator` divides, or a list of texts and whole numbers. None for others.

    A text that is `known` as a whole is one label, whatever it contains.
    """
    if isinstance(value, str):
        items = [value] if value.strip() in known else value.split(separator)
    elif isinstance(value, list):
        items = value
    else:
        items = [value]
    if not all(isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool)) for item in items):
        return None
    return [text for item in items if (text := str(item).strip())]


def whole_number(text: str, path: Path) -> int:
    """The number that a text is. Raises `ValueError` that names the file."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path}: {text!r:.80} is not a whole number") from None


def _dialect(text: str, columns: Sequence[str], path: Path) -> tuple[list[list[str]], list[str]]:
    """The rows by the separator with which the first one has the columns, or else by the one that divides it most."""
    first = text.lstrip().partition("\n")[0]
    for separator in sorted(_SEPARATORS, key=first.count, reverse=True):
        names = [name.strip().strip('"').strip().lower() for name in first.split(separator)]
        if set(columns) <= set(names):
            break
    else:
        separator = max(_SEPARATORS, key=first.count)
    try:
        rows = [[value.strip() for value in row] for row in split_rows(text, separator=separator)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: has no rows")
    header = [name.lower() for name in rows[0]]
    if twice := [name for name in columns if header.count(name) > 1]:
        raise ValueError(f"{path}: its header has the column {twice[0]} twice")
    return rows, header


def _named(row: list[str], header: list[str], columns: Sequence[str], path: Path, line: int) -> dict[str, str]:
    if any(row[len(header) :]):
        many = f"has {len(row)} fields for the header's {len(header)}"
        raise ValueError(f"{path}: row {line} {many} ({', '.join(header)}); put values with a separator in quotes")
    named = dict(zip(header, row, strict=False))
    for column in columns:
        if not named.get(column):
            raise ValueError(f"{path}: row {line} has no {column}; it must have {', '.join(columns)}")
        if "\n" in named[column]:
            raise ValueError(
                f'{path}: row {line}: a quote (") opens before {named[column]!r:.80} and ends a line later'
            )
    return named
