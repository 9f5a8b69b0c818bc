"""One timed process: loads one model in one framework, then follows the parent's orders, a JSON line each.

The referee starts it. Each framework and runtime gets a process of its own, so that thread pools, allocators and peak
memory do not mix. All draw the same weights and the same spectrogram from the job's seed, so that their logits can be
compared. Memory allocators are the frameworks' defaults.

Contestants are in `jax_side`, `torch_side` and `runtime_side`. Training steps go on from each other, and all
contestants have taken as many when their numbers are compared.
"""

import gc
import importlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from . import machine
from .job import Job, Unavailable


@runtime_checkable
class Contestant(Protocol):
    """One framework's model at work; `name` is the device's.

    `prepare` compiles, if the framework does, and returns the cost. `call` returns when the numbers are there: logits
    of a forward pass, or each clip's loss in a training step (forward, backward and an AdamW update). `peak` is a call
    with the most memory it took, weights and input included. `product` makes a call that multiplies two square matrices
    of the job's dtype.
    """

    name: str

    def prepare(self, keep_rate: float) -> dict[str, Any]: ...

    def call(self, keep_rate: float) -> Any: ...

    def peak(self, keep_rate: float) -> tuple[Any, int | None]: ...

    def product(self, side: int) -> Callable[[], Any]: ...


CONTESTANTS = {  # (work, framework): module, class; imported in the worker that needs it
    ("forward", "jax"): ("jax_side", "Jax"),
    ("step", "jax"): ("jax_side", "JaxStep"),
    ("forward", "torch"): ("torch_side", "Torch"),
    ("step", "torch"): ("torch_side", "TorchStep"),
    ("forward", "ort"): ("runtime_side", "Exported"),
    ("forward", "openvino"): ("runtime_side", "Exported"),
}


def contestant_for(job: Job) -> Contestant:
    """The contestant of a job, its framework imported now."""
    module, name = CONTESTANTS[job.work, job.contestant.partition("-")[0]]
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)(job)


def measure_once(contestant: Contestant, keep_rate: float, *, min_seconds: float) -> dict[str, Any]:
    """Everything but the timing: compile time, memory of one call, its numbers, and how many calls make a sample.

    Where `prepare` does not tell the compile time, it is what the first call took above a later one.
    """
    facts = contestant.prepare(keep_rate)
    first = seconds(lambda: contestant.call(keep_rate))  # what is set up lazily is not the later calls' memory
    gc.collect()
    numbers, peak = contestant.peak(keep_rate)
    later = seconds(lambda: contestant.call(keep_rate))
    facts |= {"peak_bytes": peak, "calls": max(1, math.ceil(min_seconds / later)), "numbers": numbers.tolist()}
    return {"compile_seconds": max(0.0, first - later)} | facts


def seconds(work: Callable[[], Any], *, calls: int = 1) -> float:
    """The mean of `calls` in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


def answers(contestant: Contestant, *, min_seconds: float) -> dict[str, Callable[..., dict[str, Any]]]:
    """The orders that the parent can give, by name."""
    products: dict[int, Callable[[], Any]] = {}

    def prepare(keep_rate: float) -> dict[str, Any]:
        return measure_once(contestant, keep_rate, min_seconds=min_seconds)

    def sample(keep_rate: float, calls: int) -> dict[str, Any]:
        contestant.call(keep_rate)  # whoever loops finds its memory where the call before left it
        return {"seconds": seconds(lambda: contestant.call(keep_rate), calls=calls)}

    def product(side: int) -> dict[str, Any]:
        if side not in products:
            products[side] = contestant.product(side)
            products[side]()  # compiles
        return {"seconds": seconds(products[side])}

    return {"prepare": prepare, "sample": sample, "product": product}


def main() -> None:
    """Answers orders until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w")  # the real stdout; whatever a library prints goes to stderr
    os.dup2(2, 1)

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    try:
        job = Job(**json.loads(sys.argv[1]))
        machine.pin(job.cores)
        contestant = contestant_for(job)
        reply({"device": contestant.name})
        does = answers(contestant, min_seconds=job.min_seconds)
        for line in sys.stdin:
            order = json.loads(line)
            reply(does[order.pop("do")](**order))
    except BrokenPipeError:
        pass  # the parent is gone
    except Unavailable as error:
        reply({"unavailable": str(error)})
    except Exception as error:
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
