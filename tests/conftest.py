"""Checks every jaxtyping annotation of the library while the tests run, and refuses silent rank promotion."""

import gc
import os
import runpy
import shutil
import sys
import tempfile

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jaxprune", "typecheck.check")
jax.config.update("jax_numpy_rank_promotion", "raise")

CACHE = "JAXPRUNE_TEST_CACHE"  # compiled programs that test processes share; see quick.py
OWNER = f"{CACHE}_OWNER"


def pytest_configure(config):
    """The first process makes the folder; pytest-xdist's workers and child processes inherit its name."""
    if CACHE not in os.environ:
        folder = tempfile.mkdtemp(prefix="jaxprune-tests-")
        os.environ |= {CACHE: folder, OWNER: str(os.getpid())}
    kept = {"jax_compilation_cache_dir": os.environ[CACHE], "jax_persistent_cache_min_compile_time_secs": 0.0}
    for name, value in kept.items():
        jax.config.update(name, value)
        # Scripts keep their programs there as well, and not where the user's are.
        os.environ[name.upper()] = str(value)


def pytest_collection_finish():
    """Spares the garbage collector what the imports made, and does without most of its rounds while JAX traces."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure(config):
    if os.environ.get(OWNER) == str(os.getpid()):
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs a script in this process: `run_script(path, *arguments) -> (exit code, stdout, stderr)`."""

    def call(path, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(path), run_name="__main__")
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def run_command(capsys):
    """Runs a command in this process: `run_command(name, *arguments) -> (exit code, stdout, stderr)`."""
    from jaxprune.cli.main import command

    def call(name, *arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            command(name, list(map(str, arguments)))
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call
