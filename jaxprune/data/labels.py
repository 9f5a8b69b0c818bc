"""Reads the names of a classifier's outputs, in the head's order, from the published kinds of label file.

Data sets (`jaxprune.data.published`) and converted checkpoints (`jaxprune.convert`) use them. A caller that knows the
head compares its size with their number.
"""

import dataclasses
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxprune.data.records import refuse
from jaxprune.data.tables import read_text, split_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFile:
    """Class names in index order. `ids` maps each name, and each machine id if the file has any, to its index."""

    names: tuple[str, ...]
    ids: dict[str, int]


def read_label_file(path: Path | str) -> LabelFile:
    """Reads a label file in one of these forms.

    - a CSV with columns index, display_name and perhaps mid (AudioSet's, AST's)
    - ESC-50's meta CSV (target, category)
    - a JSON list of names
    - a JSON object from index to name, or one that holds such an object as id2label
    - one name a line

    Raises `ValueError` with the file's name if the file cannot be read. The same goes for an index that is missing,
    repeated or not a whole number, and for a name or mid that two classes share.
    """
    path = Path(path).expanduser()
    text = read_text(path)
    try:
        return _parse(text, suffix=path.suffix.lower())
    except ValueError as error:
        raise ValueError(f"the labels {path} cannot be used: {error}") from error


def named_labels(path: Path | None, names: Iterable[str], *, name: str) -> LabelFile:
    """The label file at `path`; without one, the data set's own class names in alphabetical order.

    Names that are the same Unicode in another form are one class; `ids` has each of `names` as it is spelled. Raises
    `ValueError` if the data set `name` uses a class name that the file lacks.
    """
    names = sorted(set(names))
    if path is None:
        spelled = {_composed(label): label for label in reversed(names)}  # the first of each
        own = sorted(spelled.values())
        labels = LabelFile(names=tuple(own), ids={label: i for i, label in enumerate(own)})
    else:
        labels = read_label_file(path)
    known = {_composed(label): i for label, i in labels.ids.items()}
    refuse((label for label in names if _composed(label) not in known), f"{name}: labels are not in {path}")
    return dataclasses.replace(labels, ids=labels.ids | {label: known[_composed(label)] for label in names})


def _composed(name: str) -> str:
    """The name in the one form that all its forms share."""
    return unicodedata.normalize("NFC", name)


def from_id2label(content: Any) -> tuple[str, ...]:
    """Names in index order from a mapping such as a Hugging Face config's id2label."""
    if not isinstance(content, dict):
        raise ValueError(f"id2label is a {type(content).__name__}, not a mapping from index to name")
    return _ordered(content.items())


def _parse(text: str, *, suffix: str) -> LabelFile:
    if not text.strip():
        raise ValueError("the file is empty")
    if suffix == ".json":
        try:
            return _label_file(_from_json(json.loads(text)))
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None
    first = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=first.count)
    header = [name.strip().strip('"').strip().lower() for name in first.split(separator)]
    for index, name in (("index", "display_name"), ("target", "category")):
        if index in header and name in header:
            return _from_rows(split_rows(text, separator=separator)[1:], header=header, columns=(index, name))
    if suffix in (".csv", ".tsv"):
        raise ValueError(
            f"its columns are {', '.join(header)}; expected index and display_name, or ESC-50's target and category"
        )
    return _label_file(_ordered(enumerate(text.rstrip().splitlines())))  # a name may hold commas


def _from_rows(rows: list[list[str]], *, header: list[str], columns: tuple[str, str]) -> LabelFile:
    at, name_at = (header.index(column) for column in columns)
    if short := next((row for row in rows if len(row) <= max(at, name_at)), None):
        raise ValueError(f"the row {','.join(short)!r} has fewer columns than the header")
    pairs = [(row[at], row[name_at]) for row in rows]
    # ESC-50 lists clips, so each class comes once per clip. There the same pair may repeat.
    names = _ordered(dict.fromkeys(pairs) if columns[0] == "target" else pairs)
    if "mid" not in header:
        return _label_file(names)
    mid_at = header.index("mid")
    return _label_file(names, mids=[(row[mid_at].strip(), int(row[at])) for row in rows if len(row) > mid_at])


def _from_json(content: Any) -> tuple[str, ...]:
    if isinstance(content, dict):
        return from_id2label(content.get("id2label", content))
    if isinstance(content, list):
        return _ordered(enumerate(content))
    raise ValueError(
        f"it holds a JSON {type(content).__name__}; expected a list of names or an object from index to name"
    )


def _ordered(pairs: Iterable[tuple[Any, Any]]) -> tuple[str, ...]:
    """Sorts (index, name) pairs by index. Requires each of 0, 1, 2 ... exactly once, with a name."""
    names: dict[int, str] = {}
    for index, name in pairs:
        try:
            index = int(index)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{index!r:.80} is not a class index") from None
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


def _label_file(names: tuple[str, ...], *, mids: Iterable[tuple[str, int]] = ()) -> LabelFile:
    """A label file. Refuses a name or mid that stands for two classes."""
    ids: dict[str, int] = {}
    for key, index in (*mids, *((name, index) for index, name in enumerate(names))):
        if key and ids.setdefault(key, index) != index:
            raise ValueError(f"{key!r} is the name of class {ids[key]} and of class {index}")
    return LabelFile(names=names, ids=ids)
