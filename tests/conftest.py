"""Checks every jaxtyping annotation of the library while the tests run, and refuses silent rank promotion."""

import os
import shutil
import tempfile

import jax
from jaxtyping import install_import_hook

install_import_hook("jaxprune", "typecheck.check")
jax.config.update("jax_numpy_rank_promotion", "raise")

CACHE = "JAXPRUNE_TEST_CACHE"  # compiled programs that test processes share; see quick.py
OWNER = f"{CACHE}_OWNER"


def pytest_configure(config):
    """The first process makes the folder; pytest-xdist's workers and child processes inherit its name."""
    if CACHE not in os.environ:
        os.environ |= {CACHE: tempfile.mkdtemp(prefix="jaxprune-tests-"), OWNER: str(os.getpid())}


def pytest_unconfigure(config):
    if os.environ.get(OWNER) == str(os.getpid()):
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)
