"""Compiled programs, kept from one command to the next and counted.

Programs lie in JAX's persistent cache in `cache_directory()`. JAX's own environment variables change that:
`JAX_COMPILATION_CACHE_DIR` names another place, `JAX_ENABLE_COMPILATION_CACHE=0` switches the cache off. A program is
found again if its operations, shapes, compiler and device are the same. So nothing ever has to be cleared, and
everything may be. Importing the library changes none of this.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import platformdirs
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name; finding a program in the cache counts as well
FOUND = "/jax/compilation_cache/cache_hits"
DIRECTORY, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
SHORTEST = "jax_persistent_cache_min_compile_time_secs"
USUAL, WORTH_KEEPING = 1.0, 0.2  # JAX's own threshold would leave out many a forward pass


@contextmanager
def kept(*, tell: Callable[[str], None]) -> Iterator[None]:
    """Keeps programs compiled inside the block for the next run, if they took `WORTH_KEEPING` seconds.

    A threshold that JAX was given counts instead. If the directory cannot be written, `tell` hears why, once, and
    everything is compiled. Afterwards JAX is set as before.
    """
    before = {name: jax.config.values[name] for name in (DIRECTORY, ENABLED, SHORTEST)}
    changes: dict[str, Any] = {}
    if before[ENABLED]:
        try:
            changes[DIRECTORY] = writable(cache_directory())
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
            tell(f"compiled programs are not kept for the next run: {error}")
            changes[ENABLED] = False
        if before[SHORTEST] == USUAL:
            changes[SHORTEST] = WORTH_KEEPING
    configure(changes)
    try:
        with warnings.catch_warnings():
            # Where the disk fills up meanwhile, JAX warns at every program.
            warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry")
            yield
    finally:
        configure({name: before[name] for name in changes})


def configure(changes: Mapping[str, Any]) -> None:
    """Sets JAX's options, and opens the cache again with them."""
    for name, value in changes.items():
        jax.config.update(name, value)
    if changes:
        compilation_cache.reset_cache()  # once used, it would stay with the directory it had


def cache_directory() -> str:
    """The directory JAX was told, else `jaxprune` in the place where this system keeps caches.

    Raises `RuntimeError` if there is no home directory.
    """
    if named := jax.config.values[DIRECTORY] or os.environ.get(DIRECTORY.upper()):
        return named
    return platformdirs.user_cache_dir("jaxprune", appauthor=False)


def writable(directory: str) -> str:
    """Makes the directory if need be, for its owner alone, because its files are run. Raises `OSError`.

    A bucket's address is left to JAX.
    """
    if "://" not in directory:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} cannot be written")
    return directory


@dataclass
class Compilations:
    """Number of `programs` made ready to run, those `found` in the cache, and the `seconds` of both."""

    programs: int = 0
    found: int = 0
    seconds: float = 0.0

    def in_words(self) -> str:
        """The line that ends a command."""
        programs = "1 program" if self.programs == 1 else f"{self.programs} programs"
        return f"compiled {programs} in {self.seconds:.1f} s ({self.found} from the cache)"


@contextmanager
def counted() -> Iterator[Compilations]:
    """Counts the programs compiled inside the block. An operation run eagerly is a small program too."""
    counts = Compilations()

    def compiled(event: str, seconds: float, **_) -> None:
        if event == COMPILED:
            counts.programs += 1
            counts.seconds += seconds

    def found(event: str, **_) -> None:
        counts.found += event == FOUND

    monitoring.register_event_duration_secs_listener(compiled)
    monitoring.register_event_listener(found)
    try:
        yield counts
    finally:
        monitoring.unregister_event_duration_listener(compiled)
        monitoring.unregister_event_listener(found)
