"""The console that all commands share: options from a function's signature, errors, notes, tables, progress bars.

The user can mend a `ValueError`, an `OSError`, a missing extra and a lack of memory: each is one sentence on stderr and
exit code 2 without a traceback (`JAXPRUNE_TRACEBACK=1` shows it). Any other error is our mistake and shows itself
whole.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxprune.cli import compile_cache
from jaxprune.cli.parsing import parsed
from jaxprune.files import shown
from jaxprune.parallel import processes

# Packages that the wheel does not require, and the extra that brings each.
EXTRAS = {
    "torch": "convert",
    "safetensors": "convert",
    "tensorboardX": "tensorboard",
    "av": "audio",
    "sounddevice": "listen",
    "huggingface_hub": "hub",
    **dict.fromkeys(("onnx", "onnxruntime", "openvino", "flatbuffers"), "export"),
}


def run(main: Callable[..., int | None], *, program: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Parses the command line into `main`'s arguments, calls it, and exits with the code it returns (None: 0).

    Programs compiled on the way are kept for the next run. The first process's last note says how many there were.
    """
    with errors_in_a_sentence():
        asked = parsed(main, program=program, arguments=arguments)
        with compile_cache.kept(tell=notice), compile_cache.counted() as compiled:
            code = asked() or 0
        if compiled.programs and processes.is_first():
            notice(compiled.in_words())
        sys.exit(code)


@contextmanager
def errors_in_a_sentence() -> Iterator[None]:
    """Turns the user's errors into a sentence and exit code 2, interruption into exit code 130, warnings into notes."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: notice(str(message))
            yield
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        refuse(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        refuse(f'{package} is not installed; this needs it: pip install "jaxprune[{EXTRAS[package]}]"')
    except MemoryError as error:
        refuse_for_memory(error)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's name for a lack of memory
            raise
        refuse_for_memory(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def refuse(sentence: str) -> NoReturn:
    """Says what the user can mend and exits with code 2; with `JAXPRUNE_TRACEBACK` set, re-raises the error."""
    if os.environ.get("JAXPRUNE_TRACEBACK"):
        raise
    print(shown(f"error: {sentence}"), file=sys.stderr)
    sys.exit(2)


def refuse_for_memory(error: MemoryError | RuntimeError) -> NoReturn:
    """Says that memory is lacking, in the error's own numbers, and exits as `refuse`."""
    told = next(iter(str(error).splitlines()), "")
    refuse(f"there is too little memory{f' ({told})' if told else ''}; ask for less at once, such as a smaller batch")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, notes: Sequence[str] = ()
) -> None:
    """Prints a table on stdout, whole. Columns after the first align right if their first row is a number."""
    rows = [[shown(str(cell)) for cell in row] for row in rows]
    table = Table(title=Text(shown(title)), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(
            Text(shown(column)), justify="right" if i and rows and is_number(rows[0][i]) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))  # plain: a file name may look like markup
    console().print(table)
    for note in notes:
        console().print(shown(note), highlight=False, markup=False)


def is_number(cell: str) -> bool:
    """True for a cell that begins with a number that stands alone, such as 12, 1.5e-3 or 35.7 %."""
    try:
        float(cell.split(" ")[0].replace(",", ""))
    except ValueError:
        return False
    return True


def console() -> Console:
    """The terminal. A file or pipe is given room enough that tables do not wrap."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=160)


class Rate(ProgressColumn):
    """Clips a second."""

    def __init__(self, digits: int = 1):
        super().__init__()
        self._digits = digits

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.{self._digits}f} clips/s" if task.speed else "")


def progress(description: str, *columns: ProgressColumn) -> Progress:
    """A bar, on a terminal only: the description, what is done, what `columns` show, and the time left."""
    shown = (TextColumn(description), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn())
    terminal = console()
    return Progress(*shown, console=terminal, disable=not terminal.is_terminal)


def notice(message: str) -> None:
    """A remark that is not a result: stderr, so that piped output stays clean."""
    print(shown(f"note: {message}"), file=sys.stderr)
