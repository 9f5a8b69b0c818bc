"""The README and the pages keep what they promise: every block runs or is parsed, every link leads somewhere.

Python blocks run as they stand. So do the commands on small files in `RUN`. The other commands of ours go through
the real parser, options and values and all, and stop before the work. A block that is neither carries a comment with
the reason: `<!-- not run: why -->`.
"""

import functools
import importlib
import re
import runpy
import shlex
import shutil

import numpy as np
import pytest
import tyro
from helpers import ROOT, TESTS, small
from jaxprune.convert import random_checkpoint

from jaxprune.cli.main import COMMANDS

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINES, WIDTH = 130, 120
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.M | re.S)
SPHINX = ("{toctree}", "{eval-rst}")  # `make docs` reads these
RUN = ("audioset_10_10_0.4593.pth ast --labels", "classify ast street.mp3", "--to-torch official")


def blocks(kind):
    found = [(page, match) for page in PAGES for match in BLOCK.finditer(page.read_text())]
    return [(page, match["text"], match["reason"]) for page, match in found if match["kind"] == kind]


def commands():
    """Each command line of the pages, comments and continuations taken away."""
    lines = []
    for page, text, reason in blocks("bash"):
        if reason is None:
            joined = re.sub(r"\\\n\s*", " ", text)
            lines += [(page.name, words) for line in joined.splitlines() if (words := shlex.split(line, comments=True))]
    return lines


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= LINES
    assert not [line for line in lines if len(line) > WIDTH]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_is_run_or_says_why_not(page):
    found = list(BLOCK.finditer(page.read_text()))
    assert 2 * len(found) == len(re.findall(r"^```", page.read_text(), re.M)), "a block is not closed"
    for match in found:
        assert match["reason"] or match["kind"] in ("bash", "python", *SPHINX), match["text"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_in_the_text_exists(page):
    named = set(re.findall(r"`jaxprune ([a-z][a-z-]*)", page.read_text()))
    assert named <= COMMANDS.keys()


@pytest.mark.parametrize("page", sorted({page for page, *_ in blocks("python")}), ids=lambda page: page.name)
def test_python_runs_as_it_stands(page, monkeypatch):
    """From the top of the page down, as a reader would."""
    monkeypatch.chdir(ROOT)
    names = {}
    for other, text, reason in blocks("python"):
        if other == page and reason is None:
            exec(compile(text, page.name, "exec"), names)
    assert names


class _Parsed(Exception):
    """Parsing is over; the work would begin."""


def stopped(main):
    @functools.wraps(main)
    def stop(*arguments, **options):
        raise _Parsed

    return stop


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[1])
def test_commands_pass_the_real_parser(page, words, monkeypatch):
    if words[0] == "jaxprune":
        module, function = COMMANDS[words[1]].where.split(":")
        main, arguments = getattr(importlib.import_module(module), function), words[2:]
        with pytest.raises(_Parsed):
            tyro.cli(stopped(main), prog=f"jaxprune {words[1]}", args=arguments)
    elif words[:2] == ["python", "-m"]:
        parsed = []

        def run(main, **_):
            with pytest.raises(_Parsed):
                tyro.cli(stopped(main), args=words[3:])
            parsed.append(main)

        monkeypatch.setattr("jaxprune.cli.console.run", run)
        runpy.run_module(words[2], run_name="__main__")
        assert parsed
    else:
        pytest.fail(f"{page}: {words[0]} is neither run nor marked")


@pytest.fixture
def files(tmp_path):
    """The files that the commands name, small: a checkpoint of ten classes, their names and two sounds."""
    config = small("ast")
    random_checkpoint.write_ast_official(tmp_path / "audioset_10_10_0.4593.pth", config, seed=0)
    rows = ["index,mid,display_name", *(f"{index},/m/{index},name {index}" for index in range(config.classes))]
    (tmp_path / "class_labels_indices.csv").write_text("\n".join(rows) + "\n")
    shutil.copy(TESTS / "recordings" / "guitar.mp3", tmp_path / "street.mp3")
    shutil.copy(TESTS / "recordings" / "crow.wav", tmp_path / "dog.wav")
    return tmp_path


def test_your_checkpoint_goes_there_and_back(files, monkeypatch, capsys):
    from jaxprune.cli.main import main

    monkeypatch.chdir(files)
    run = [words for _, words in commands() if any(part in " ".join(words) for part in RUN)]
    run = list(dict.fromkeys(map(tuple, run)))
    assert len(run) == len(RUN)
    for words in run:
        extra = ["--num-heads", "3"] if words[2].endswith(".pth") else []
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], *extra])
        assert not ended.value.code, capsys.readouterr().err
    assert (files / "kept.png").stat().st_size > 1000
    assert "name " in capsys.readouterr().out
    import torch

    before, after = (torch.load(files / name, weights_only=True) for name in (run[0][2], "back.pth"))
    idle = {
        key for key in before if re.match(r"module\.v\.head(_dist)?\.", key)
    }  # ImageNet's heads, which nobody reads
    assert before.keys() - idle == after.keys()
    for key, value in after.items():
        np.testing.assert_array_equal(value.numpy(), before[key].numpy(), err_msg=key)
