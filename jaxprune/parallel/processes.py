"""Several processes that train together: they find each other, agree, and end together.

Each runs the same program on its own devices and its own share of every batch (`ProcessRows`). Together they compute
what one process with all the devices would. The first one alone writes and prints. Nothing here is different for a
single process but that there is nobody to wait for.
"""

import atexit
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
AUTOMATIC = "auto"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The meeting of a run's processes; without a coordinator the run has one process."""

    # Address of process 0, host:port, or auto: as SLURM, Open MPI, Kubernetes or a TPU pod tell.
    coordinator: str = ""
    # Processes of the run, each started with the same command.
    count: int = 1
    # Which of them this is, from 0.
    index: int = 0

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"process {self.index} of {self.count} does not exist; count from 0 to {self.count - 1}")
        if self.count > 1 and self.coordinator in ("", AUTOMATIC):
            raise ValueError(f"where the {self.count} processes meet was not said; give the address of process 0")
        if self.coordinator not in ("", AUTOMATIC) and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"the coordinator is {self.coordinator!r}; it must be host:port or {AUTOMATIC}")


@contextmanager
def joined(launch: Launch) -> Iterator[None]:
    """The processes of a run, from before JAX is first used to the end, where they wait for each other.

    A process that ends in an error does not wait: it leaves with exit code 1 once Python is done, and the others get
    an error in turn (on accelerators only when they miss its heartbeat, after 100 seconds).
    """
    if not launch.coordinator:
        yield
        return
    try:
        if launch.coordinator == AUTOMATIC:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(launch.coordinator, launch.count, launch.index)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"process {launch.index} did not meet the others at {launch.coordinator}: {reason}") from error
    try:
        yield
    except BaseException:
        atexit.register(_leave)  # runs before JAX's own, which would wait for the others
        raise
    jax.distributed.shutdown()


def is_first() -> bool:
    """True in the process that writes and prints for all."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Every process's JSON value, by process. All must ask."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(line[:length])) for line, length in zip(texts, lengths, strict=True)]


def by_first(action: Callable[[], T]) -> T:
    """Lets the first process alone act while the others wait; all get the JSON value it returns, or its error."""
    result = failure = None
    if is_first():
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    result, reason = gather([result, failure and str(failure)])[0]
    if failure is not None:
        raise failure
    if reason is not None:
        raise ValueError(reason)
    return result


def together(stop: Callable[[], bool], *, done: int) -> Callable[[], bool]:
    """A `stop` for `Training.fit` from `done` updates on, which answers alike in all processes.

    With several, SIGTERM to any of them is what stops all, after the same update (JAX watches for it); `stop` itself
    must answer alike.
    """
    if jax.process_count() == 1:
        return stop
    # Orbax asks, too, by the number of updates: the same count must be given here.
    updates = itertools.count(done + 1)
    return lambda: multihost_utils.reached_preemption_sync_point(next(updates)) or stop()


class StopOnSignal:
    """A context in which SIGTERM only raises a flag: call it to ask for the flag, then save and leave."""

    def __init__(self):
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopOnSignal":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
