"""Compiled programs are found again by the next run, counted, and never in the way."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.cli import compile_cache as compiling
from jaxprune.cli import console as cli
from jaxprune.parallel import processes


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user who has told JAX nothing about caches; every program is worth keeping."""
    monkeypatch.delenv(compiling.DIRECTORY.upper())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "WORTH_KEEPING", 0.0)
    told = {name: jax.config.values[name] for name in (compiling.DIRECTORY, compiling.SHORTEST)}  # by other tests
    compiling.configure({compiling.DIRECTORY: None, compiling.SHORTEST: compiling.USUAL})
    yield tmp_path
    compiling.configure(told)


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a main through `cli.run`: `script(main) -> (exit code, stdout, stderr)`."""
    monkeypatch.setattr(sys, "argv", ["script"])

    def run(main):
        with pytest.raises(SystemExit) as stopped:
            cli.run(main)
        return stopped.value.code, *capsys.readouterr()

    return run


def compiles() -> None:
    """Two programs, which JAX has not in memory: each function is a new one."""
    x = np.float32([3, 4])
    jax.jit(lambda x: jnp.sin(x) * 17)(x)
    print(jax.jit(lambda x: jnp.cos(x) * 19)(x).shape)


def test_the_next_run_finds_the_programs_and_says_so(home, script):
    found = []
    for _ in range(2):
        code, out, err = script(compiles)
        assert (code, out) == (0, "(2,)\n")
        assert len(err.splitlines()) == 1
        assert err.startswith("note: compiled 2 programs in ")
        found.append(err.split("(")[1])
    assert found == ["0 from the cache)\n", "2 from the cache)\n"]
    assert len(list((home / "jaxprune").glob("*-cache"))) == 2


def test_what_jax_was_told_before_stays(home, tmp_path, monkeypatch):
    before = {name: jax.config.values[name] for name in (compiling.DIRECTORY, compiling.ENABLED, compiling.SHORTEST)}
    monkeypatch.setenv(compiling.DIRECTORY.upper(), str(tmp_path / "mine"))
    with compiling.kept(tell=pytest.fail):
        compiles()
    assert list((tmp_path / "mine").glob("*-cache"))
    assert not (home / "jaxprune").exists()
    assert before == {name: jax.config.values[name] for name in before}


def test_switched_off_nothing_is_kept(home):
    jax.config.update(compiling.ENABLED, False)
    try:
        with compiling.kept(tell=pytest.fail):
            compiles()
    finally:
        jax.config.update(compiling.ENABLED, True)
    assert not list(home.iterdir())


def test_a_directory_that_cannot_be_written_is_one_notice(home, script, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    code, out, err = script(compiles)
    assert (code, out) == (0, "(2,)\n")
    first, last = err.splitlines()
    assert first.startswith("note: compiled programs are not kept for the next run: ")
    assert last.endswith("(0 from the cache)")


def test_the_first_process_alone_speaks(home, script, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    assert script(compiles) == (0, "(2,)\n", "")


def test_nothing_compiled_nothing_said(home, script):
    assert script(lambda: None) == (0, "", "")


def test_an_error_stays_one_sentence(home, script):
    def fails():
        compiles()
        raise ValueError("too loud")

    assert script(fails) == (2, "(2,)\n", "error: too loud\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the place is this system's")
def test_programs_lie_where_the_system_keeps_caches(home, monkeypatch):
    assert compiling.cache_directory() == str(home / "jaxprune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert compiling.cache_directory() == str(home / ".cache" / "jaxprune")


@pytest.mark.skipif(sys.platform != "linux", reason="the place is this system's")
def test_without_a_home_nothing_is_kept_and_no_folder_is_made(home, script, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as Python does for a user of no home
    monkeypatch.chdir(home)
    _, out, err = script(compiles)
    assert out == "(2,)\n"
    assert err.startswith("note: compiled programs are not kept for the next run: could not determine the home")
    assert not list(home.iterdir())
