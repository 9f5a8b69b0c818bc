"""The README and the pages keep what they promise: every block runs or is parsed, every link leads somewhere.

Python blocks run as they stand. Commands run for real on small files; `RUN` says with which options besides. What takes
longer goes through the real parser, options and values and all, and stops before the work; a comment before its block
says why: `<!-- parsed only: why -->`. What is neither says so, too: `<!-- not run: why -->`.
"""

import functools
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import tyro
from helpers import ROOT, TESTS, small
from jaxprune.convert import random_checkpoint
from quick import quick_compiling  # noqa: F401

from jaxprune import load_card
from jaxprune.cli.main import COMMANDS, main
from scripts import demo

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINES, WIDTH = 130, 120
MARK = r"(?:<!-- (?P<how>not run|parsed only): (?P<reason>[^\n]+) -->\n)?"
BLOCK = re.compile(MARK + r"^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.M | re.S)
SPHINX = ("{toctree}", "{eval-rst}")  # `make docs` reads these
# Commands that run on the small files of `files`, in an order that makes each one's input, and what shortens them.
RUN = {
    "convert audioset_10_10_0.4593.pth ast": "--num-heads 3",
    "classify ast street.mp3": "",
    "convert --to-torch official": "",
    "convert --to-torch huggingface": "",
    "features tests/recordings/crow.wav": "",
    "classify ast-words tests/recordings/crow.wav": "",
    "classify audiomae-english-words tests/words/go/": "",
    "extract ast esc50 --root ESC-50 --keep-rate 0.7": "",
    "extract ast esc50 --root ESC-50 --keep-rate 1 ": "",
    "analyze extracted/esc50-0.7": "--bootstrap.resamples 99",
    "report analysis/esc50-0.7 --out report.html": "",
    "data-stats folder --root sounds": "",
    "shard speech-commands": "",
    "evaluate ast-words shards": "",
}
ALONE = ("report",)  # run in a process of their own, where no test's import hook helps


def blocks(kind):
    """Page, text and mark (None, "parsed only" or "not run") of each block of a kind."""
    found = [(page, match) for page in PAGES for match in BLOCK.finditer(page.read_text())]
    return [(page, match["text"], match["how"]) for page, match in found if match["kind"] == kind]


def commands():
    """Page, words and mark of each command line, comments and continuations taken away."""
    lines = []
    for page, text, how in blocks("bash"):
        if how != "not run":
            joined = re.sub(r"\\\n\s*", " ", text)
            words = [shlex.split(line, comments=True) for line in joined.splitlines()]
            lines += [(page.name, line, how) for line in words if line]
    return lines


def run_as(words) -> str | None:
    """The entry of `RUN` that a command belongs to."""
    line = " ".join([*words[1:], ""])
    return next((beginning for beginning in RUN if line.startswith(beginning)), None)


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
    for other, text, how in blocks("python"):
        if other == page and how is None:
            exec(compile(text, page.name, "exec"), names)
    assert names


class _Parsed(Exception):
    """Parsing is over; the work would begin."""


def stopped(main):
    @functools.wraps(main)
    def stop(*arguments, **options):
        raise _Parsed

    return stop


def test_every_command_is_run_or_its_block_says_why_not():
    assert not [(page, words) for page, words, how in commands() if how is None and not run_as(words)]
    assert {run_as(words) for _, words, how in commands() if how is None} == RUN.keys()


HERE = Path("demo")
DEMO = [*demo.full_size(Path("ast.pth"), HERE), *demo.trained(HERE), *demo.tuned(HERE)]
PARSED = [(page, words) for page, words, how in commands() if how]
PARSED += [("demo.py", ["jaxprune", *words]) for words in DEMO]


@pytest.mark.parametrize(("page", "words"), PARSED, ids=lambda value: value if isinstance(value, str) else value[1])
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


def noise(path, *, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, 16_000), 16_000)


def write_esc50(root, classes):
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for index in range(classes):
        fold = 1 + index % 5
        noise(root / "audio" / f"{fold}-{index}-A-{index}.wav", seed=index)
        rows.append(f"{fold}-{index}-A-{index}.wav,{fold},{index},name {index},False,{index},A")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def write_speech_commands(root, words):
    for split, prefix in (("training", "aa"), ("validation", "bb"), ("testing", "cc")):
        names = [f"{word}/{prefix}_nohash_0.wav" for word in words]
        for seed, name in enumerate(names):
            noise(root / name, seed=seed)
        if split != "training":
            (root / f"{split}_list.txt").write_text("\n".join(names) + "\n")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the commands name, small: a checkpoint of fifty classes, their names, sounds and data sets."""
    config = small("ast", depth=4, classes=50)
    random_checkpoint.write_ast_official(tmp_path / "audioset_10_10_0.4593.pth", config, seed=0)
    rows = ["index,mid,display_name", *(f"{index},/m/{index},name {index}" for index in range(config.classes))]
    (tmp_path / "class_labels_indices.csv").write_text("\n".join(rows) + "\n")
    shutil.copy(TESTS / "recordings" / "guitar.mp3", tmp_path / "street.mp3")
    shutil.copy(TESTS / "recordings" / "crow.wav", tmp_path / "dog.wav")
    (tmp_path / "tests").symlink_to(TESTS)
    write_esc50(tmp_path / "ESC-50", config.classes)
    write_speech_commands(tmp_path / "speech_commands", load_card("ast-words").labels)
    for index in range(20):
        noise(tmp_path / "sounds" / "ab"[index % 2] / f"{index}.wav", seed=index)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def carry_out(words, capsys) -> str:
    """Runs a command of the pages, and gives what it prints."""
    arguments = [*words[1:], *RUN[run_as(words)].split()]
    if words[1] in ALONE:
        done = subprocess.run([sys.executable, "-m", "jaxprune", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    return told.out


def test_the_commands_of_the_pages_run(files, capsys):
    run = {run_as(words): words for _, words, how in commands() if how is None}
    told = {beginning: carry_out(run[beginning], capsys) for beginning in RUN}
    assert "name " in told["classify ast street.mp3"]
    assert "top-1" in told["evaluate ast-words shards"]
    for picture in ("kept.png", "mel.png"):
        assert (files / picture).stat().st_size > 1000
    assert "name 0" in (files / "report.html").read_text()
    assert_same_tensors(files / "audioset_10_10_0.4593.pth", files / "back.pth")


def assert_same_tensors(before, after):
    """A checkpoint came back as it was, but for ImageNet's heads, which nobody reads."""
    before, after = (torch.load(path, weights_only=True) for path in (before, after))
    idle = {key for key in before if re.match(r"module\.v\.head(_dist)?\.", key)}
    assert before.keys() - idle == after.keys()
    for key, value in after.items():
        np.testing.assert_array_equal(value.numpy(), before[key].numpy(), err_msg=key)


def has_numbers(table) -> bool:
    """True for a table with a row of which at least half are measured numbers."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return any(2 * sum(bool(re.match(r"[-+]?\d", cell)) for cell in row) >= len(row) for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_numbers_stand_with_the_command_that_makes_them(page):
    for section in re.split(r"^## ", page.read_text(), flags=re.M):
        tables = re.findall(r"(?:^\|.*\n)+", section, re.M)
        if any(map(has_numbers, tables)):
            assert re.search(r"\b(jaxprune [a-z]|python -m |tests/\w)", section), section.splitlines()[0]


def test_the_site_finds_a_docstring_on_every_public_name():
    """`make docs` runs the same check; here without building the pages."""
    done = subprocess.run([sys.executable, ROOT / "docs" / "conf.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
