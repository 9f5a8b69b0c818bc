"""The program `jaxprune`: its table of commands, its help, and the names that the package offers."""

import importlib
import inspect
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from helpers import ROOT

import jaxprune
from jaxprune.cli import console
from jaxprune.cli.main import COMMANDS, command, main, mistaken
from jaxprune.reduction import scores, selection

HELP_SECONDS = 0.5


def test_the_help_names_every_command_and_takes_little_time():
    measured = (
        "import time, sys; from jaxprune.cli.main import main; main(['--help']); "
        "print(time.process_time()); sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'tyro', 'rich')))"
    )
    best = HELP_SECONDS
    for _ in range(3):  # the processor is shared
        done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *lines, seconds = done.stdout.splitlines()
        assert {line.split()[0] for line in lines if line.startswith("  ")} == COMMANDS.keys()
        best = min(best, float(seconds))
    assert best < HELP_SECONDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name):
    module, function = COMMANDS[name].where.split(":")
    assert inspect.getdoc(getattr(importlib.import_module(module), function)), "its help has no description"


def test_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"jaxprune {version('jaxprune')}\n"


@pytest.mark.parametrize(("name", "meant"), [("clasify", "classify"), ("datastats", "data-stats"), ("sweeps", "sweep")])
def test_a_mistyped_command_is_told_the_nearest(capsys, name, meant):
    with pytest.raises(SystemExit, match="2"):
        main([name, "x"])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: there is no command {name!r}; did you mean {meant!r}?\n"


def test_a_command_like_no_other_is_told_all():
    assert mistaken("qqq").endswith(", ".join(COMMANDS))


def test_no_command_shows_the_help(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: jaxprune COMMAND" in capsys.readouterr().err


def test_python_m_jaxprune_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "jaxprune", "--version"], capture_output=True, text=True)
    assert done.stdout == f"jaxprune {version('jaxprune')}\n"


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 244. GiB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")],
)
def test_too_little_memory_is_one_sentence(capsys, error):
    def greedy() -> None:
        raise error

    with pytest.raises(SystemExit, match="2"):
        console.run(greedy, arguments=[])
    said = capsys.readouterr().err
    assert said == f"error: there is too little memory ({error}); ask for less at once, such as a smaller batch\n"


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_one_sentence_that_names_the_extra(monkeypatch, capsys, package):
    for module in [module for module in sys.modules if module.startswith("jaxprune.convert")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to make an import fail
    with pytest.raises(SystemExit, match="2"):
        command("convert", ["a", "b"])
    said = capsys.readouterr().err
    assert said == f'error: {package} is not installed; this needs it: pip install "jaxprune[convert]"\n'


def test_a_name_that_is_not_utf8_is_shown_everywhere(capfd):
    """In tables, notes and errors, on an output that takes nothing but UTF-8."""
    name = os.fsdecode(b"caf\xe9.wav")

    def main():
        console.print_table(name, ["file", name], [(name, 1)], notes=[f"of {name}"])
        console.notice(f"{name} was read")
        raise ValueError(f"{name}: is empty")

    with pytest.raises(SystemExit), console.errors_in_a_sentence():
        main()
    out, err = capfd.readouterr()
    assert out.count(r"caf\xe9.wav") == 4
    assert err == "note: caf\\xe9.wav was read\nerror: caf\\xe9.wav: is empty\n"


def test_another_missing_module_is_our_mistake():
    def broken():
        raise ModuleNotFoundError("No module named 'jaxprune.nothing'", name="jaxprune.nothing")

    with pytest.raises(ModuleNotFoundError):
        console.run(broken, arguments=[])


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_a_script_calls_the_command_of_its_name(script):
    text = (ROOT / "scripts" / f"{script}.py").read_text()
    named = {"dataset_stats": "data-stats"}.get(script, script)
    assert script == "demo" or f'command("{named}")' in text


@pytest.mark.parametrize("name", jaxprune.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(jaxprune, name) is not None


@pytest.mark.parametrize("module", [scores, selection])
def test_every_score_and_stage_is_exported(module):
    classes = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    assert {name for name in classes if name[0].isupper()} <= set(jaxprune.__all__)
