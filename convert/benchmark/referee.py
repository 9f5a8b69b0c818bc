"""The parent process: starts a worker for JAX, each PyTorch variant and each runtime, and lets them take turns.

A turn is a call or a few, right after one that is not timed, on the same device. Turns alternate (`torch-eager`, `jax`,
`torch-eager`, ...) over all keep rates, so the machine's moods hit both frameworks, and pruned and unpruned models,
alike. Disturbed samples are thrown away. Each round ends with a large matrix product in either framework, which tells
the device's peak at that time. The arithmetic is `report`'s matter.
"""

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxprune.config import FAMILY_SIZES, SIZES, ModelConfig
from jaxprune.cost import macs
from jaxprune.models import Classifier, abstract
from jaxprune.registry import MethodName, reduced

from . import machine
from .job import DEVICES, Job
from .runtime_side import RUNTIMES
from .torch_side import TORCH

CLASSES = 527  # AudioSet's
PASSES = {"forward": 1, "step": 3}  # a gradient costs two forward passes more
NO_CACHES = {"JAX_ENABLE_COMPILATION_CACHE": "0", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # compiling is measured
PATIENCE = 30.0  # seconds that each retry waits for quiet, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Every combination is measured. `keep_rates` is sorted falling and gains 1.0, which speed-ups are relative to.

    PyTorch has top-k alone, so beside another `method` it is measured unpruned. A sample lasts `min_seconds` at least
    (several calls where one is shorter), long enough for the kernel's accounting to tell whether others used the cores.
    `side` is that of the matrix product, the device's own where it is None. Raises `ValueError` for what no model or
    policy allows, and for a PyTorch variant that this machine lacks something for.
    """

    families: Sequence[str]
    sizes: Sequence[str]
    frames: Sequence[int]
    batches: Sequence[int]
    keep_rates: Sequence[float]
    dtypes: Sequence[str]
    torch: Sequence[str] = ("eager",)
    runtimes: Sequence[str] = ()
    works: Sequence[str] = ("forward",)
    device: str = "cpu"
    repeats: int = 7
    threads: int | None = None
    min_seconds: float = 0.25
    retries: int = 10
    side: int | None = None
    method: MethodName = "topk"

    def __post_init__(self):
        for name in ("families", "sizes", "frames", "batches", "keep_rates", "dtypes", "works"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        if unknown := sorted(set(self.torch) - set(TORCH)):
            raise ValueError(f"there is no PyTorch variant {unknown[0]!r}; choose from {', '.join(TORCH)}")
        if lacks := next(filter(None, (TORCH[name].missing() for name in self.torch)), None):
            raise ValueError(lacks)
        if unknown := sorted(set(self.runtimes) - set(RUNTIMES)):
            raise ValueError(f"there is no runtime {unknown[0]!r}; choose from {', '.join(RUNTIMES)}")
        if lacks := next(filter(None, (RUNTIMES[name].missing() for name in self.runtimes)), None):
            raise ValueError(lacks)
        if self.runtimes and (self.device != "cpu" or set(self.works) != {"forward"}):
            raise ValueError("runtimes are measured in the forward pass on a CPU; leave them out, or the other work")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; it must be at least 1")
        if wrong := [batch for batch in self.batches if batch < 1]:
            raise ValueError(f"batch is {wrong[0]}; it must be at least 1")
        object.__setattr__(self, "keep_rates", tuple(sorted({1.0, *self.keep_rates}, reverse=True)))
        for job in self.jobs():
            model = blank(job.config())
            for keep_rate in self.keep_rates:
                reduced(model, self.method, keep_rate)

    def jobs(self) -> list[Job]:
        """One a group that is measured together, for JAX; other contestants replace the name."""
        cores = machine.usable_cores(self.threads)
        groups = itertools.product(self.works, self.families, self.sizes, self.frames, self.batches, self.dtypes)
        return [
            Job(
                contestant="jax",
                work=work,
                family=family,
                size=size,
                frames=frames,
                batch=batch,
                dtype=dtype,
                device=self.device,
                classes=CLASSES,
                cores=cores,
                min_seconds=self.min_seconds,
                method=self.method,
            )
            for work, family, size, frames, batch, dtype in groups
        ]

    def contestants(self, family: str, keep_rate: float, *, dtype: str) -> list[str]:
        """The contestants measured there, by name."""
        both = self.method == "topk" or keep_rate == 1
        torch = (f"torch-{name}" for name in self.torch if both and TORCH[name].covers(family, keep_rate))
        return [*torch, *(name for name in self.runtimes if both and self.beside(name) == dtype), "jax"]

    def beside(self, runtime: str) -> str:
        """The dtype that a runtime is measured beside: the one it computes in, or the first that was asked for."""
        precision = RUNTIMES[runtime].precision
        return precision if precision in self.dtypes else self.dtypes[0]

    def remarks(self) -> list[str]:
        """The gaps of the PyTorch variants, each in a sentence."""
        asked = list(itertools.product(self.families, self.keep_rates))
        return [
            TORCH[name].remark
            for name in self.torch
            if not all(TORCH[name].covers(*combination) for combination in asked)
        ]


def run(plan: Plan, *, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One raw result for each group and keep rate, in order: what was measured and every contestant's samples.

    `tell` receives a line of progress now and then. Raises `RuntimeError` when a worker fails, `ValueError` when it
    lacks what it needs.
    """
    for job in plan.jobs():
        what = f"{job.work} of {job.family}-{job.size}, {job.frames} frames, batch {job.batch}, {job.dtype}"
        tell(f"{what}: loading and compiling")
        yield from measure(job, plan, tell=tell)


def measure(job: Job, plan: Plan, *, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """All keep rates of one group, interleaved."""
    asked = {keep: plan.contestants(job.family, keep, dtype=job.dtype) for keep in plan.keep_rates}
    with ExitStack() as stack:
        job = dataclasses.replace(job, files=stack.enter_context(tempfile.TemporaryDirectory()))
        names = dict.fromkeys(name for names in asked.values() for name in names)
        workers = {name: stack.enter_context(started(dataclasses.replace(job, contestant=name))) for name in names}
        loaded = {name: worker.reply() for name, worker in workers.items()}
        facts = {
            (keep, name): workers[name].ask("prepare", keep_rate=keep)
            for keep, names in asked.items()
            for name in names
        }
        ours = [os.getpid(), *(worker.process.pid for worker in workers.values())]

        def timed(name: str, what: str, **order: Any) -> Sample:
            take = lambda: workers[name].ask(what, **order)["seconds"]  # noqa: E731
            return undisturbed(take, cores=job.cores, ours=ours, retries=plan.retries)

        samples: dict[tuple[float, str], list[Sample]] = {key: [] for key in facts}
        products: dict[str, list[Sample]] = {name: [] for name in multipliers(names)}
        side = plan.side or DEVICES[job.device].side
        for turn in range(plan.repeats):
            for (keep, name), taken in samples.items():
                taken.append(timed(name, "sample", keep_rate=keep, calls=facts[keep, name]["calls"]))
            for name, taken in products.items():
                taken.append(timed(name, "product", side=side))
            dropped = sum(len(sample.dropped) for taken in samples.values() for sample in taken)
            tell(f"  round {turn + 1} of {plan.repeats}, {dropped} samples dropped so far")
    product = {"side": side} | {name: [sample.seconds for sample in taken] for name, taken in products.items()}
    about = {"device_name": loaded["jax"]["device"], "product": product}
    return [about | result(job, keep, names, facts, samples) for keep, names in asked.items()]


def multipliers(names: Iterable[str]) -> list[str]:
    """One contestant of each framework. Runtimes have no product to call on its own."""
    return list({name.partition("-")[0]: name for name in names if name not in RUNTIMES}.values())


@dataclasses.dataclass(frozen=True)
class Sample:
    """Seconds of one call.

    `others` is the share of the cores that others used meanwhile, None if not measured; `contended` is true where that
    spoils the sample. `dropped` holds the seconds of the tries thrown away before it.
    """

    seconds: float
    others: float | None
    contended: bool
    dropped: tuple[float, ...]


def undisturbed(take: Callable[[], float], *, cores: Sequence[int], ours: Sequence[int], retries: int) -> Sample:
    """A sample in which nobody else used the cores. If all `retries` were disturbed too: the last, marked contended."""
    dropped: list[float] = []
    while True:
        seconds, window = machine.watched(take, cores=cores, ours=ours)
        if not window.contended or len(dropped) == retries:
            return Sample(seconds, window.share, window.contended, tuple(dropped))
        dropped.append(seconds)
        machine.await_quiet(cores=cores, ours=ours, patience=PATIENCE)


def result(
    job: Job,
    keep: float,
    names: Sequence[str],
    facts: Mapping[tuple[float, str], Mapping[str, Any]],
    samples: Mapping[tuple[float, str], Sequence[Sample]],
) -> dict[str, Any]:
    """One keep rate's raw result, ready for JSON."""
    import numpy as np

    model = blank(job.config())
    outputs = {name: np.array(facts[keep, name]["numbers"]) for name in names}
    contestants = {}
    for name in names:
        known = {key: value for key, value in facts[keep, name].items() if key != "numbers"}
        taken = samples[keep, name]
        contestants[name] = known | {
            "seconds": [sample.seconds for sample in taken],
            "others_share": [sample.others for sample in taken],
            "dropped": sum(len(sample.dropped) for sample in taken),
            "contended": sum(sample.contended for sample in taken),
            "difference": float(np.abs(outputs[name] - outputs["jax"]).max()),
        }
    fields = ("work", "family", "size", "frames", "batch", "dtype", "device")
    return {field: getattr(job, field) for field in fields} | {
        "method": job.method,
        "keep_rate": keep,
        "gmacs": PASSES[job.work] * macs(model, reduced(model, job.method, keep)) / 1e9,
        "contestants": contestants,
    }


class Worker:
    """A running `convert.benchmark.worker` and the pipe to it."""

    def __init__(self, job: Job):
        command = [sys.executable, "-m", f"{__package__}.worker", json.dumps(dataclasses.asdict(job))]
        self.name = job.contestant
        environment = os.environ | DEVICES[job.device].environment | NO_CACHES
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str, **order: Any) -> dict[str, Any]:
        """Sends an order and waits for its answer."""
        assert self.process.stdin is not None
        print(json.dumps({"do": what} | order), file=self.process.stdin, flush=True)
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """The next answer.

        Raises `RuntimeError` if the worker reports an error or has died, `ValueError` if hardware or a package is
        missing here.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.name} worker ended early (exit code {self.process.wait()})")
        answer = json.loads(line)
        if "unavailable" in answer:
            raise ValueError(answer["unavailable"])
        if "error" in answer:
            raise RuntimeError(f"the {self.name} worker failed: {answer['error']}")
        return answer


@contextmanager
def started(job: Job) -> Iterator[Worker]:
    """A worker that is stopped at the end of the block."""
    worker = Worker(job)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


@functools.cache
def blank(config: ModelConfig) -> Classifier:
    """The model without its numbers, which is all that its cost depends on."""
    return abstract(config)


def smallest(families: Sequence[str]) -> str:
    """A size all families are published in, the smallest."""
    shared = [size for size in SIZES if all(size in FAMILY_SIZES.get(family, ()) for family in families)]
    if not shared:
        raise ValueError(f"no size is shared by {', '.join(families)}; name one with --size")
    return shared[0]
