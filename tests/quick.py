"""Compiling is nearly all that most tests cost. In modules that import `quick_compiling`, XLA compiles fast and, thanks
to a cache that all test processes share, nothing twice. Parity, cost and features are tested as they are shipped.

Child processes that get `QUICK` in their environment and import this module compile alike, and share the programs.
"""

import functools
import os

import jax
import pytest
from jax._src import compiler  # JAX has no public setting for one XLA option of every program

UNOPTIMIZED = "jax_disable_most_optimizations"
QUICK = {
    UNOPTIMIZED: True,
    "jax_compilation_cache_dir": os.environ["JAXPRUNE_TEST_CACHE"],  # conftest.py makes it
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # for child processes
}
OLD_LOOPS = {"xla_cpu_use_fusion_emitters": False}  # compiles in half the time; the programs run a little slower


def _with_old_loops(made):
    """JAX's own function for compiler options, with `OLD_LOOPS` where optimizations are off."""

    @functools.wraps(made)
    def options(*arguments, env_options_overrides=None, **rest):
        asked = dict(env_options_overrides or {})
        if jax.config.values[UNOPTIMIZED]:
            asked = OLD_LOOPS | asked
        return made(*arguments, env_options_overrides=asked, **rest)

    return options


compiler.get_compile_options = _with_old_loops(compiler.get_compile_options)


@pytest.fixture(autouse=True, scope="module")
def quick_compiling():
    """For the whole module that imports it."""
    before = {name: jax.config.values[name] for name in QUICK}
    for name, value in QUICK.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
