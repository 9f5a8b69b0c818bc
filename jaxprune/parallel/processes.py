"""Several processes that train together: they find each other, agree, and end together.

Each runs the same program on its own devices, with its own share of every batch (`ProcessRows`). Together they compute
what one process with all the devices would. Only the first one writes and prints. A single process runs the same code
and waits for nobody.
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
    """The meeting of a run's processes. Without a coordinator the run has one process."""

    # Address of process 0, host:port. With auto, SLURM, Open MPI, Kubernetes or a TPU pod tells it.
    coordinator: str = ""
    # Processes of the run, each started with the same command.
    count: int = 1
    # This process's number, from 0.
    index: int = 0

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"process {self.index} of {self.count} does not exist; count from 0 to {self.count - 1}")
        if self.count > 1 and self.coordinator in ("", AUTOMATIC):
            raise ValueError(f"the {self.count} processes have no place to meet; give the address of process 0")
        if self.coordinator not in ("", AUTOMATIC) and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"the coordinator is {self.coordinator!r}; it must be host:port or {AUTOMATIC}")


@contextmanager
def joined(launch: Launch) -> Iterator[None]:
    """Joins the processes of a run before JAX is first used. At the end they wait for each other.

    A process that ends in an error does not wait. It leaves with exit code 1 once Python is done. Then the others get
    an error too; on accelerators only when they miss its heartbeat, after 100 seconds.
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
    """The JSON value of every process, by process. All must call this."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(line[:length])) for line, length in zip(texts, lengths, strict=True)]


def by_first(action: Callable[[], T]) -> T:
    """Lets the first process act while the others wait. All get the JSON value that it returns, or its error."""
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
    """A `stop` for `Training.fit` that answers alike in all processes, from `done` updates on.

    SIGTERM to any process stops all of them after the same update: JAX watches for it. `stop` itself must answer alike
    in all processes.
    """
    if jax.process_count() == 1:
        return stop
    # Orbax asks by the number of updates, so this must count the same.
    updates = itertools.count(done + 1)
    return lambda: multihost_utils.reached_preemption_sync_point(next(updates)) or stop()


class StopOnSignal:
    """A context in which SIGTERM, or the given signals, only raise a flag. Call it to read the flag; then leave."""

    def __init__(self, *signals: signal.Signals):
        self._signals = signals or (signal.SIGTERM,)
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopOnSignal":
        self._before = [signal.signal(one, self._note) for one in self._signals]
        return self

    def __exit__(self, *exception: object) -> None:
        for one, before in zip(self._signals, self._before, strict=True):
            signal.signal(one, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
