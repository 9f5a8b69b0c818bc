"""A command line read into the call that it asks for, and the parser's refusals as one sentence.

The parser, tyro, draws its refusals as a box of several lines. Here they become a `ValueError` like any other mistake
of the user's, whichever part of a command refused: an option's type, or the checks of the value that it belongs to.
"""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

WIDE = "10000"  # columns, in which no sentence wraps
STYLE = re.compile(r"\x1b\[[0-9;]*m")
RULE = re.compile(r"[─-]+")
PLACE = re.compile(r" \(applied to [^)]*\)| Arguments are applied to the directly preceding subcommand.*")
OPTION = re.compile(r"--[\w.-]+")
# What is said of a text that an option cannot read; the types are tyro's words for them.
UNREAD = (
    (re.compile(r"invalid literal for int\(\) with base 10: (?P<text>.*)"), "INT"),
    (re.compile(r"could not convert string to float: (?P<text>.*)"), "FLOAT"),
    (re.compile(r"no type matching (?P<types>.*?) could be instantiated from \[(?P<text>.*?)\]\. .*"), ""),
)
EXPECTED = {"INT": "a whole number", "FLOAT": "a number", "{[INT [INT ...]]}": "whole numbers"}


def parsed(
    main: Callable[..., Any], *, program: str | None = None, arguments: Sequence[str] | None = None
) -> Callable[[], Any]:
    """The call of `main` that the command line asks for. Nothing is called yet.

    Raises `ValueError` in one sentence for a command line that cannot be, and `SystemExit` once help was printed.
    """
    deferred = functools.wraps(main)(lambda *given, **options: functools.partial(main, *given, **options))
    read = functools.partial(tyro.cli, deferred, prog=program, args=arguments)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            call = read()
    except SystemExit as left:
        if left.code != 2:
            raise
    else:
        sys.stderr.write(told.getvalue())  # warnings
        return call
    with _wide(), contextlib.redirect_stderr(io.StringIO()) as box, contextlib.suppress(SystemExit):
        read()
    raise ValueError(sentence(box.getvalue()))


def sentence(box: str) -> str:
    """The sentence of a box that tyro draws, with lines or without. No line of it is broken."""
    title, *lines = STYLE.sub("", box).splitlines()
    parts: list[list[str]] = [[]]
    for line in (line[2:].rstrip(" │╯") for line in lines):
        if RULE.fullmatch(line):
            parts.append([])
        elif not line.startswith(8 * " "):  # so far in is the help of an option that is named before
            parts[-1].append(line)
    said, *others = filter(None, (" ".join(" ".join(part).split()) for part in parts))
    if found := re.fullmatch(r"Error parsing (\S+): (.*)", said):
        return _of_value(*found.groups())
    if said.startswith("Expected one of"):
        said = f"{title.strip('╭╮─ ')}: {said[0].lower()}{said[1:]}"
    said = PLACE.sub("", said).replace("'. Expected", "'; expected").rstrip(".")
    return "; ".join([said[0].lower() + said[1:], *_advice(others, said=said)])


def _of_value(where: str, message: str) -> str:
    """The sentence on a value: as its own check says it, or where it cannot be read, the option and what that takes."""
    if not where.startswith("-"):
        return message
    for unread, types in UNREAD:
        if found := unread.fullmatch(message):
            types = types or found["types"].replace("{None}|", "")
            return f"{where} is {found['text']}; it must be {EXPECTED.get(types, types)}"
    return f"{where}: {message}"


def _advice(parts: Sequence[str], *, said: str) -> Iterator[str]:
    """The advice in the rest of a box."""
    for part in parts:
        if part.startswith("Available subcommands"):
            yield part[0].lower() + part[1:]
        elif found := re.match(r"For full helptext, (?:run|see):? (.*--help)", part):
            yield f"see {found[1]}"
    near = [OPTION.search(part) for part in parts if part.startswith("Perhaps you meant")]
    yield from (f"did you mean {found[0]}?" for found in near[:1] if found and found[0] not in said)


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """A terminal that is wide enough for any sentence."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
