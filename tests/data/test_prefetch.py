"""Batches sent one ahead: all of them, in order, errors included; and how long devices have nothing to do for want of
them, on a clock that tests move."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jaxprune.data import prefetch as feed
from jaxprune.data.batches import Batch, Batches
from jaxprune.data.prefetch import Feed


class Source(Batches):
    """Numbered batches of one clip; `read` are the numbers so far. Each takes so long, on the tests' clock, to come."""

    def __init__(self, count: int, *, seconds: float = 0.0, clock: "Clock | None" = None):
        self.read, self._count, self._seconds, self._clock = [], count, seconds, clock

    def __next__(self):
        if len(self.read) == self._count:
            raise StopIteration
        if self._clock:
            self._clock.now += self._seconds
        self.read.append(len(self.read))
        nothing = np.zeros((1, 400), np.float32)
        return Batch(nothing, np.int32([400]), nothing[:, :2], np.ones(1, np.float32), np.int32(self.read[-1:]))


def test_every_batch_comes_once_in_order_with_what_was_made_of_it():
    with Feed(Source(5), place=lambda arrays: [array.shape for array in arrays]) as sent:
        found = [(int(batch.indices[0]), shapes) for batch, shapes in sent]
        assert next(sent, None) is None
    assert found == [(i, [(1, 400), (1,), (1, 2), (1,)]) for i in range(5)]


def test_one_batch_is_read_ahead_and_no_more():
    source, sending = Source(5), threading.Semaphore(0)
    with Feed(source, place=lambda arrays: sending.release() or arrays) as sent:
        for batch, _ in sent:
            sending.acquire()
            if batch.indices[0] == 2:
                sending.acquire()  # the next one is on its way without being asked for
                break
    assert source.read == [0, 1, 2, 3]


@pytest.mark.parametrize("where", ["read", "sent"])
def test_an_error_reaches_the_caller(where, monkeypatch):
    def fail(*_):
        raise ValueError("two clips cannot be used")

    if where == "read":
        monkeypatch.setattr(Source, "__next__", fail)
    with Feed(Source(3), place=fail) as sent, pytest.raises(ValueError, match="two clips cannot be used"):
        next(sent)


class Clock:
    """Stands still but where somebody works or waits."""

    now = 0.0


class Thread:
    """An executor of one thread on a clock: what it does at `submit` takes its time beside the caller's."""

    def __init__(self, clock: Clock):
        self._clock, self._busy = clock, 0.0

    def submit(self, work, *arguments):
        caller, self._clock.now = self._clock.now, max(self._clock.now, self._busy)
        value = work(*arguments)
        ended, self._clock.now = self._clock.now, caller
        self._busy = ended

        def result():
            self._clock.now = max(self._clock.now, ended)
            return value

        return SimpleNamespace(done=lambda: self._clock.now >= ended, result=result)

    def shutdown(self, **_):
        pass


class Work:
    """The result of a device, as an array that is waited for."""

    def __init__(self, end: float, clock: Clock):
        self.end, self._clock = end, clock

    def block_until_ready(self):
        self._clock.now = max(self._clock.now, self.end)
        return self


@pytest.mark.parametrize(
    ("reading", "computing", "waited", "idle"),
    [
        (5, 0, 60, 60),  # always, for all twelve
        (0, 5, 0, 0),
        (5, 2, 60, 5 + 11 * 3),  # for the first, and then while nothing is computed
        (2, 5, 4, 2),  # for the first; the second is awaited, too, but the device is at the first
    ],
)
def test_idle_is_while_nothing_is_queued_and_data_are_awaited(monkeypatch, reading, computing, waited, idle):
    """The caller collects one batch behind, as evaluation does."""
    clock, before = Clock(), None
    monkeypatch.setattr(feed, "ThreadPoolExecutor", lambda count: Thread(clock))
    monkeypatch.setattr(feed.time, "perf_counter", lambda: clock.now)
    with Feed(Source(12, seconds=reading, clock=clock), place=lambda arrays: arrays) as sent:
        for _ in sent:
            work = Work(max(clock.now, before.end if before else 0) + computing, clock)
            sent.queued(work)
            if before:
                before.block_until_ready()
            before = work
        work.block_until_ready()
    assert (sent.waited, sent.idle) == (waited, idle)
    assert clock.now == 12 * max(reading, computing) + min(reading, computing)
