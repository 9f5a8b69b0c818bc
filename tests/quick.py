"""Compiling is nearly all that most tests cost. In modules that import `quick_compiling`, XLA compiles fast and, thanks
to a cache that all test processes share, nothing twice. Parity, cost and features are tested as they are shipped."""

import os

import jax
import pytest

QUICK = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": os.environ["JAXPRUNE_TEST_CACHE"],  # conftest.py makes it
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}


@pytest.fixture(autouse=True, scope="module")
def quick_compiling():
    """For the whole module that imports it."""
    before = {name: jax.config.values[name] for name in QUICK}
    for name, value in QUICK.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
