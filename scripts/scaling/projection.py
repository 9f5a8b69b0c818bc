"""Worked out, not measured: how long a training step takes on many accelerators, and how fast its clips must come.

What goes in: multiply-accumulates (`jaxprune.cost`), the bytes of the compiled step's collectives
(`scripts.scaling.collectives`), CPU time per clip (`scripts/scaling/loading.py`), and an accelerator's public
specification. What is assumed is an `Assumptions`. `scripts/scaling/page.py` prints the tables of docs/scaling.md from
these.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxprune.config import ModelConfig
from jaxprune.cost import macs_of_stages
from jaxprune.features import SAMPLE_RATE
from jaxprune.reduction.policy import stage_rates, top_k_stages
from jaxprune.training.settings import Cosine, Recipe

AUDIOSET_CLIPS = 2_000_000  # AS-2M; what copies hold differs by some percent
CLIP_BYTES = 10 * SAMPLE_RATE * 2  # 10 s of int16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """An accelerator by its public specifications: dense bfloat16 `flops` a second, and the bytes a second that a
    device of a ring sends. `inside` is when all devices are in one `node`, `across` when the ring goes through several.
    """

    name: str
    flops: float
    node: int
    inside: float
    across: float
    source: str

    def bandwidth(self, devices: int) -> float:
        return self.inside if devices <= self.node else self.across


ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {
        "h100": Accelerator(
            name="H100 SXM",
            flops=989e12,
            node=8,
            inside=450e9,
            across=400e9,
            source="NVIDIA's H100 and DGX H100 data sheets: 989 TFLOP/s dense bfloat16; NVLink 900 GB/s, both "
            "directions together; eight 400 Gb/s network cards in a node of 8, which eight rings share: 8 x 50 GB/s",
        ),
        "h100-slow": Accelerator(
            name="H100, one network card a node",
            flops=989e12,
            node=8,
            inside=450e9,
            across=50e9,
            source="the same with a single 400 Gb/s card a node",
        ),
        "tpu-v5p": Accelerator(
            name="TPU v5p",
            flops=459e12,
            node=8960,
            inside=600e9,
            across=600e9,
            source="Google's TPU v5p page: 459 TFLOP/s bfloat16; interconnect 1200 GB/s, both directions together; "
            "pods of 8960 chips",
        ),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Shares that nobody has measured here: `utilisation` of the peak that the arithmetic reaches, and `link` of the
    specified bandwidth that a collective reaches."""

    utilisation: float = 0.4
    link: float = 0.7

    def __post_init__(self):
        if not (0 < self.utilisation <= 1 and 0 < self.link <= 1):
            raise ValueError(f"{self}: both must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step. `compute` is forward and backward; the gradients' exchange, `communication`, can go on during
    the backward pass, two thirds of it."""

    devices: int
    clips: int
    compute: float
    communication: float

    @property
    def overlapped(self) -> float:
        """The step when what can overlap does, perfectly."""
        return self.compute + max(0.0, self.communication - self.compute * 2 / 3)

    @property
    def sequential(self) -> float:
        """The step when nothing overlaps."""
        return self.compute + self.communication

    @property
    def efficiency(self) -> tuple[float, float]:
        """The share of one device's speed that each of many has: overlapped and not."""
        return self.compute / self.overlapped, self.compute / self.sequential

    @property
    def clips_per_second(self) -> float:
        """Clips a second of all devices, overlapped, which the input must deliver."""
        return self.devices * self.clips / self.overlapped


def step_time(
    config: ModelConfig,
    keep_rate: float,
    *,
    devices: int,
    clips: int,
    reduced_bytes: int,
    accelerator: Accelerator,
    assumptions: Assumptions = Assumptions(),
) -> StepTime:
    """The time of a step with `clips` on each device and whole weights, which all-reduces `reduced_bytes`. The backward
    pass costs twice the forward's arithmetic. Left out are the optimiser, the features, the latency of messages and the
    one clip that a device sends its neighbour for mixup.
    """
    stages = top_k_stages(stage_rates(keep_rate, depth=config.depth))
    operations = 3 * 2 * macs_of_stages(config, stages) * clips
    wire = 2 * (devices - 1) / devices * reduced_bytes
    return StepTime(
        devices=devices,
        clips=clips,
        compute=operations / (accelerator.flops * assumptions.utilisation),
        communication=wire / (accelerator.bandwidth(devices) * assumptions.link),
    )


def reduced_bytes(steps: list[Mapping[str, Any]], recipe: str) -> int:
    """The all-reduced bytes of a recipe's step with whole weights, as `scripts/scaling/collectives.py` has saved them.

    Raises `ValueError` where there is none, where anything is gathered or scattered, and where the bytes depend on the
    number of devices or clips: then they tell nothing of other numbers.
    """
    chosen = [step for step in steps if (step["recipe"], step["weights"]) == (recipe, "whole")]
    if not chosen:
        raise ValueError(f"there is no step of {recipe} with whole weights; run scripts/scaling/collectives.py")
    known = {"all-reduce", "collective-permute"}
    if others := {kind for step in chosen for kind in step["collectives"]} - known:
        raise ValueError(f"the step of {recipe} also has {', '.join(sorted(others))}, which is not worked out")
    for kind in known:
        found = {step["collectives"].get(kind, {"bytes": 0})["bytes"] for step in chosen}
        if max(found) - min(found) > 1e-3 * max(found):
            raise ValueError(f"the bytes of {recipe} are {sorted(found)}, not the same for all devices and clips")
    return max(step["collectives"]["all-reduce"]["bytes"] for step in chosen)


def cores(clips_per_second: float, cpu_ms: float) -> int:
    """Cores that decode so many clips a second, at so much CPU time each."""
    return math.ceil(clips_per_second * cpu_ms / 1e3)


def steady(recipe: Recipe, *, size: str | None = None, keep_rate: float, accumulate: int = 1) -> Recipe:
    """The recipe as it is once its keep rate has arrived: at `keep_rate` from the first step on, no patches masked.

    The learning rate may fall to 0, because a batch of a few clips has a peak below a recipe's floor.
    """
    prune, schedule = recipe.prune, recipe.schedule
    return dataclasses.replace(
        recipe,
        start=dataclasses.replace(recipe.start, size=size or recipe.start.size),
        augment=recipe.augment.while_shrinking(),
        schedule=dataclasses.replace(schedule, floor=0.0) if isinstance(schedule, Cosine) else schedule,
        prune=dataclasses.replace(prune, keep_rate=keep_rate, shrink_start=prune.first_epoch, shrink_epochs=0),
        loop=dataclasses.replace(recipe.loop, accumulate=accumulate, batch=accumulate),
    )
