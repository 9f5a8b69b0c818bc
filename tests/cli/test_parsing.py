"""Mistakes on the command line, of any command and kind: one line on stderr, exit code 2, nothing called."""

import dataclasses
import io
import sys
import warnings

import pytest

from jaxprune.cli.console import run
from jaxprune.cli.main import main
from jaxprune.cli.parsing import parsed

LONG = "/".join(f"folder-{i}" for i in range(40))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("finetune audiomae-words --loop.epochs a", "--loop.epochs is 'a'; it must be a whole number"),
        ("listen ast-words --keep-rate a", "--keep-rate is 'a'; it must be a number"),
        ("classify ast-words x.wav --keep-rate a", "--keep-rate is 'a'; it must be a number"),
        ("benchmark --batch a", "--batch is 'a'; it must be whole numbers"),
        (
            "evaluate ast-words esc50 --root x --split tset",
            "invalid choice 'tset' for argument '--split'; expected one of ('train', 'validation', 'test'); see "
            "jaxprune evaluate esc50 --help",
        ),
        (
            "finetune audiomae-words --loop.epocs 3",
            "unrecognized options: --loop.epocs, 3; see jaxprune finetune --help; did you mean --loop.epochs?",
        ),
        (
            "evaluate ast-words esd50 --root x",
            "unrecognized or misplaced options: esd50 --root x; available subcommands: arabic-speech-commands, esc50, "
            "speech-commands, audioset, voxceleb1, folder, manifest, shards; see jaxprune evaluate --help",
        ),
        (
            "pretrain --seed 1",
            "missing subcommand: expected one of {audiomae-as2m-pretrain, audiomae-arabic-words-pretrain}; see "
            "jaxprune pretrain --help",
        ),
        ("report", "missing from jaxprune report: --out PATH; see jaxprune report --help"),
        (f"finetune audiomae-words --no {LONG}", f"unrecognized options: --no, {LONG}"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_cannot_be_read_is_one_sentence(capsys, monkeypatch, words, sentence, encoding):
    """The parser draws its box with lines for the one encoding, without them for the other."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed := io.BytesIO(), encoding=encoding))
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    told = capsys.readouterr().err
    assert printed.getvalue() == b""
    assert told.startswith(f"error: {sentence}")
    assert told.count("\n") == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    amount: float = 0.5

    def __post_init__(self):
        if not 0 <= self.amount <= 1:
            raise ValueError(f"amount is {self.amount}; it must be between 0 and 1, as a share of {LONG}")


@pytest.mark.parametrize("columns", [None, "40"])
def test_the_check_of_a_part_speaks_for_itself_however_wide_the_terminal(capsys, monkeypatch, columns):
    def study(part: Part = Part(), name: str = "x") -> None:
        pytest.fail("called")

    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="2"):
        run(study, arguments=["--part.amount", "2"])
    assert capsys.readouterr().err == f"error: amount is 2.0; it must be between 0 and 1, as a share of {LONG}\n"


def test_a_call_is_made_of_the_options_once_it_is_asked_for():
    calls = []

    def study(name: str, *, part: Part = Part(), times: int = 2) -> int:
        calls.append((name, part.amount, times))
        return 7

    asked = parsed(study, arguments=["--name", "a", "--part.amount", "1", "--times", "3"])
    assert calls == []
    assert asked() == 7
    assert calls == [("a", 1.0, 3)]


def test_warnings_on_the_way_are_told(capsys):
    @dataclasses.dataclass
    class Old:
        amount: float = 0.5

        def __post_init__(self):
            warnings.warn("it is old", stacklevel=1)

    def study(part: Old) -> None:
        pass

    with pytest.raises(SystemExit, match="0"):
        run(study, arguments=["--part.amount", "1"])
    assert "note: it is old" in capsys.readouterr().err


def test_what_the_function_raises_is_its_own(capsys):
    """An error of the command is not one of the options."""

    def study(name: str = "x") -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(study, arguments=[])


def test_help_is_printed_as_wide_as_the_terminal(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["features", "--help"])
    out, told = capsys.readouterr()
    assert told == ""
    assert 60 < max(map(len, out.splitlines())) <= 80
