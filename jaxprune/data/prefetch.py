"""Batches on their way to the devices: the next one is read and sent while the present one is computed.

Decoding runs ahead in the loader's own threads (`jaxprune.data.batches`). One more thread takes what is decoded and
sends it, so that the copy, too, runs beside the computation and the caller only starts programs and collects their
results. How well that keeps the devices busy is measured on the way.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from jaxprune.data.batches import Batch, Batches


class Feed:
    """Prefetches one batch onto the devices: an iterator over (batch, its first four arrays after `place`).

    Tell `queued` the results of the work that was started with a batch. `waited` counts the seconds in which the caller
    waited for data, the copy to the devices included. `idle` counts those of them in which the devices had no work:
    from the moment the last results were ready, which a thread of its own notes, to the moment the next batch lay on
    the devices. The first batch counts in full. Time that the host spends on anything else counts as neither.

    On a CPU the devices are the cores that also decode: idle then means that nothing was queued, not that cores rested.
    A context manager, to be left before the loader is closed.
    """

    def __init__(self, batches: Batches, *, place: Callable[[tuple], Any]):
        self.waited = self.idle = 0.0
        self._batches, self._place = batches, place
        self._sender, self._watcher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.queued(())
        self._next = self._sender.submit(self._send)

    def queued(self, results: Any) -> None:
        """Notes the results that the devices work on: once all are ready, they have nothing to do."""
        self._free: Future[float] = self._watcher.submit(_when_ready, results)

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> tuple[Batch, Any]:
        began = time.perf_counter()
        found = self._next.result()
        ended = time.perf_counter()
        self.waited += ended - began
        if self._free.done():
            self.idle += max(0.0, ended - max(began, self._free.result()))
        if found is None:
            raise StopIteration
        self._next = self._sender.submit(self._send)
        return found

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception: object) -> None:
        for threads in (self._sender, self._watcher):
            threads.shutdown(cancel_futures=True)

    def _send(self) -> tuple[Batch, Any] | None:
        batch = next(self._batches, None)  # None: there are no more; a future cannot raise StopIteration
        return None if batch is None else (batch, jax.block_until_ready(self._place(batch[:4])))


def _when_ready(results: Any) -> float:
    jax.block_until_ready(results)
    return time.perf_counter()
