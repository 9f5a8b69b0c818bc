"""The course of a run: its keep rate, the sizes that the model is compiled for on the way, and its learning rate.

The keep rate is a host-side number, because it decides token counts before the call. The learning rate is an optax
schedule, a function of the update's number inside the jitted step. Settings are `jaxprune.training.pruning` and
`jaxprune.training.learning`. Steps are updates, counted from 0.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxprune.config import ModelConfig
from jaxprune.registry import Stages, by_name
from jaxprune.training.learning import AdamL2, AdamW, Cosine, StepDecay
from jaxprune.training.pruning import Draw, Prune
from jaxprune.training.settings import Passes

LearningRate = Callable[[int | Int[Array, ""]], Float[Array, ""]]


@runtime_checkable
class Course(Protocol):
    """The part of a recipe that decides the course of a training, whatever its task."""

    optimizer: AdamW | AdamL2
    schedule: Cosine | StepDecay
    loop: Passes

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepRateSchedule:
    """The keep rate at each step: 1 until `start`, then half a cosine down to `target`, which it keeps.

    After `start` it is target + (1 - target) (cos(pi p) + 1) / 2, where p is the share of `length` steps gone by (EViT,
    Liang et al. 2022), in Python floats. It is computed at every multiple of `hold` steps and held in between: 1 is
    EViT's every step, an epoch's steps is the released audio code's once an epoch.
    """

    target: float
    start: int
    length: int
    hold: int = 1

    def __call__(self, step: int) -> float:
        """The rate in a step, in [target, 1]."""
        gone = step // self.hold * self.hold - self.start
        if gone < 0:
            return 1.0
        if gone >= self.length:
            return float(self.target)
        return self.target + (1 - self.target) * (math.cos(math.pi * (gone / self.length)) + 1) / 2

    def shrinking(self, step: int) -> bool:
        """True from the beginning of the fall, when SpecAugment and patch masking stop. False where the target is 1."""
        return self.target < 1 and step >= self.start


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledKeepRate:
    """A keep rate drawn anew for each step, from the seed and the step's number alone.

    So a run that goes on draws as if it had not been interrupted, and processes that train together draw alike. One
    training for all rates is the idea of slimmable networks (Yu et al. 2019), here with tokens in place of channels.
    """

    draws: tuple[Draw, ...]
    seed: int

    def __call__(self, step: int) -> float:
        """The rate in a step, in [low, high] of one of the draws."""
        which, where = np.random.default_rng([self.seed, step]).random(2)
        weights = np.cumsum([draw.weight for draw in self.draws])
        draw = self.draws[int(np.searchsorted(weights, which * weights[-1], side="right"))]
        return draw.low + (draw.high - draw.low) * float(where)

    def shrinking(self, step: int) -> bool:
        """False: nothing falls, so all augmentation stays on. Counts are of the patches that masking leaves."""
        return False


def keep_rate_schedule(prune: Prune, *, steps_per_epoch: int, seed: int = 0) -> KeepRateSchedule | SampledKeepRate:
    """The keep rate at each step of a recipe's run: drawn with `seed` where the recipe samples, else its schedule.

    `prune.shrink_start` counts epochs from `prune.first_epoch`. Raises `ValueError` for less than one step an epoch.
    """
    check_steps(steps_per_epoch)
    if prune.draws:
        return SampledKeepRate(draws=prune.draws, seed=seed)
    return KeepRateSchedule(
        target=prune.keep_rate,
        start=(prune.shrink_start - prune.first_epoch) * steps_per_epoch,
        length=prune.shrink_epochs * steps_per_epoch,
        hold={"epoch": steps_per_epoch, "step": 1}[prune.update],
    )


def stages_at(rate: float, prune: Prune, *, config: ModelConfig, patches: int) -> Stages:
    """The stages of the recipe's method that reduce exactly as it does at `rate`, in one of few compiled sizes.

    The rates of `prune.exact` gather exactly: the highest and the lowest, and each of a list of at most ten. Between
    the ends, [lowest, highest] is cut into `prune.buckets` equal slices. A rate computes on the counts of its slice's
    upper end and masks the surplus, so every rate of a slice shares one compilation. Thus a whole run compiles the step
    at most `buckets + 2` times, and once more if patches are masked out before the shrinking: ten with the default 7,
    whatever the rates and the schedule's length. Over the shrinking, top-k computes at most 3.2 % more than exact
    gathering on the way to 0.7 and 5.2 % to 0.5 (`test_slices_cost_little`).

    A rate just under 1 keeps every patch but sorts them, which changes nothing but float rounding. `patches` are those
    that enter block 0: fewer than the model's where some are masked out. Raises `ValueError` for a rate outside
    [lowest, highest].
    """
    if not prune.lowest <= rate <= prune.highest:
        raise ValueError(f"keep rate {rate} does not occur between {prune.highest:g} and {prune.lowest:g}")
    method = by_name(prune.method)
    own, low, high = (
        dict.fromkeys(sorted(prune.blocks), one)
        for one in (rate, min(rate, slice_start(rate, prune)), slice_end(rate, prune))
    )
    if rate in prune.exact:
        return method.exact(config, own, patches)
    return method.between(config, own, (low, high), patches)


def slice_end(rate: float, prune: Prune) -> float:
    """The upper end of the slice of [lowest, highest] that a rate lies in. A rate between two is in the higher."""
    return prune.highest - _slices_above(rate, prune) * ((prune.highest - prune.lowest) / prune.buckets)


def slice_start(rate: float, prune: Prune) -> float:
    """The lower end of that slice."""
    below = (_slices_above(rate, prune) + 1) * ((prune.highest - prune.lowest) / prune.buckets)
    return max(prune.lowest, prune.highest - below)


def _slices_above(rate: float, prune: Prune) -> int:
    """Whole slices between a rate and the highest."""
    width = (prune.highest - prune.lowest) / prune.buckets
    return max(0, math.floor((prune.highest - rate) / width - 1e-9)) if width else 0


def compilations(rates: Sequence[float], prune: Prune, *, config: ModelConfig, patches: int) -> int:
    """The number of sizes that a sequence of keep rates compiles, with the same `patches` entering block 0."""
    return len({jax.tree.structure(stages_at(rate, prune, config=config, patches=patches)) for rate in set(rates)})


def learning_rate(recipe: Course, *, steps_per_epoch: int) -> LearningRate:
    """The recipe's learning rate as an optax schedule of the update's number.

    Raises `ValueError` for less than one step an epoch.
    """
    check_steps(steps_per_epoch)
    match recipe.schedule:
        case Cosine() as cosine:
            return warmup_cosine(
                recipe.peak_lr,
                floor=cosine.floor,
                warmup=cosine.warmup_epochs * steps_per_epoch,
                steps=recipe.loop.epochs * steps_per_epoch,
            )
        case StepDecay() as decay:
            return warmup_step_decay(recipe.peak_lr, decay, steps_per_epoch=steps_per_epoch)


def warmup_cosine(peak: float, *, floor: float, warmup: float, steps: int) -> LearningRate:
    """Rises from 0 to `peak` in `warmup` steps, then falls by half a cosine to `floor` at `steps` (AudioMAE).

    The first update has rate 0, as in the original. The last one is not quite at the floor, which an update after it
    would reach.
    """

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        fallen = floor + (peak - floor) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup, peak * step / max(warmup, 1), fallen)

    return rate


def warmup_step_decay(peak: float, decay: StepDecay, *, steps_per_epoch: int) -> LearningRate:
    """`peak`, times the factor after `first` completed epochs and after every `every` more (AST).

    During `warmup_steps` the rate is peak * step / warmup_steps at each multiple of `warmup_every` steps and stays in
    between, as the original's does. A warm-up that lasts beyond the first use of the factor is multiplied by it, too.
    The original would overwrite it, but its recipes end the warm-up long before.
    """

    def rate(step):
        step = jnp.asarray(step, jnp.int32)
        uses = jnp.maximum(0, (step // steps_per_epoch - decay.first) // decay.every + 1)
        value = peak * jnp.float32(decay.factor) ** uses
        if decay.warmup_steps:
            held = step // decay.warmup_every * decay.warmup_every
            value = value * jnp.minimum(held / decay.warmup_steps, 1)
        return value

    return rate


def check_steps(steps_per_epoch: int) -> None:
    """Refuses an epoch without a step."""
    if steps_per_epoch < 1:
        raise ValueError(
            f"an epoch has {steps_per_epoch} steps; it needs at least 1 (is the batch larger than the data set?)"
        )
