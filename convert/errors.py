"""The error of every reader of foreign files, and names from such files made fit to print."""

from collections.abc import Sequence
from pathlib import Path

LISTED = 40  # problems spelled out in an error's message; `CheckpointError.problems` holds all of them
LONGEST_NAME = 200  # characters of a foreign name that are shown


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one sentence naming the file, then every problem found in it, a line each."""

    def __init__(self, path: Path | str, sentence: str, problems: Sequence[str] = ()):
        self.problems = tuple(problems)
        more = len(self.problems) - LISTED
        listed = [printable(problem) for problem in self.problems[:LISTED]]
        lines = [f"{path} {sentence}", *listed, *([f"... and {more} more"] if more > 0 else [])]
        super().__init__("\n  ".join(lines))


def shown(name: object) -> str:
    """A name from a foreign file for a message: one line, printable, not longer than a line."""
    text = name if isinstance(name, str) else f"a key of type {type(name).__name__}"
    text = printable(text)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def printable(text: str) -> str:
    """Text that stays on its line and cannot steer a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


def first_sentence(error: BaseException) -> str:
    """The message of another library's error, cut to its first sentence."""
    text = str(error).strip() or type(error).__name__
    return shown(text.splitlines()[0].split(". ")[0])
