"""Settings of learning: the two published optimisers, their learning rates, and a teacher, as frozen dataclasses.

`jaxprune.training.optim` and `jaxprune.training.schedules` turn them into functions; the other settings of a recipe are
in `jaxprune.training.settings`.
"""

import dataclasses
import math

from jaxprune.training.checks import below_one, factor, not_negative, share, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AudioMAE's optimiser: decoupled weight decay, and learning rates that fall from the head to the embeddings."""

    # Learning rate for a batch of 256; the rate used is this times batch / 256.
    base_lr: float = 1e-3
    # Decay of the gradient's running mean.
    b1: float = 0.9
    # Decay of the squared gradient's running mean.
    b2: float = 0.95
    # Decoupled weight decay; none on 1-d parameters, extra tokens and position tables.
    weight_decay: float = 1e-4
    # Factor on the learning rate per layer, from the head down; 1 for one rate everywhere.
    layer_decay: float = 0.75
    # Largest global gradient norm; 0 for no clipping.
    clip: float = 0.0

    def __post_init__(self):
        check_optimizer(self)
        factor("layer_decay", self.layer_decay)

    def peak_lr(self, batch: int) -> float:
        """Learning rate after warm-up, for `batch` clips an update."""
        return self.base_lr * batch / 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamL2:
    """AST's optimiser: Adam with the L2 penalty's gradient added before the moments, as torch's `weight_decay` does."""

    # Learning rate after warm-up, whatever the batch.
    base_lr: float = 1e-4
    # Decay of the gradient's running mean.
    b1: float = 0.95
    # Decay of the squared gradient's running mean.
    b2: float = 0.999
    # L2 penalty on every parameter.
    weight_decay: float = 5e-7
    # Largest global gradient norm; 0 for no clipping.
    clip: float = 0.0

    def __post_init__(self):
        check_optimizer(self)

    def peak_lr(self, batch: int) -> float:
        """Learning rate after warm-up, the same for every batch."""
        return self.base_lr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """AudioMAE's learning rate: linear warm-up, then half a cosine, both by the position within the epoch."""

    # Epochs of warm-up from 0; may be a fraction.
    warmup_epochs: float = 4.0
    # Learning rate at the very end.
    floor: float = 1e-5

    def __post_init__(self):
        not_negative("warmup_epochs", self.warmup_epochs)
        not_negative("floor", self.floor)

    def check(self, *, epochs: int, peak: float) -> None:
        """Raises `ValueError` where a run of so many epochs and this peak leaves no course."""
        if self.warmup_epochs >= epochs:
            raise ValueError(f"a warm-up of {self.warmup_epochs} epochs leaves nothing of a run of {epochs}")
        if self.floor > peak:
            raise ValueError(
                f"the learning rate would end at {self.floor}, above its peak of {peak}; lower the floor or raise "
                "base_lr"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepDecay:
    """AST's learning rate: an optional warm-up by steps, then a factor after every few epochs."""

    # Steps of warm-up from 0; 0 for none.
    warmup_steps: int = 0
    # Steps between changes of the rate during warm-up; 50 as released, so the first 50 steps learn nothing.
    warmup_every: int = 50
    # Completed epochs after which the factor first applies.
    first: int = 5
    # Epochs between one use of the factor and the next.
    every: int = 1
    # Factor on the learning rate.
    factor: float = 0.85

    def __post_init__(self):
        whole_number("warmup_steps", self.warmup_steps, least=0)
        whole_number("warmup_every", self.warmup_every, least=1)
        whole_number("first", self.first, least=0)
        whole_number("every", self.every, least=1)
        factor("factor", self.factor)


ITSELF = "self"  # the teacher of `Distill` that is no checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """A teacher, whose answers are learned beside the labels (Hinton et al. 2015)."""

    # Checkpoint that teaches, usually the model before pruning; self: with prune.sample, its own highest rate; or none.
    teacher: str = ""
    # Share of the loss that is the teacher's; the labels have the rest.
    weight: float = 0.5
    # Temperature that the logits of both are divided by; above 1 it brings out what is less likely.
    temperature: float = 1.0

    def __post_init__(self):
        share("distill.weight", self.weight, most=1.0)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"distill.temperature is {self.temperature}; it must be positive")


def check_optimizer(settings: AdamW | AdamL2) -> None:
    """Raises `ValueError` for a setting outside its range."""
    if not 0 < settings.base_lr < math.inf:
        raise ValueError(f"base_lr is {settings.base_lr}; it must be positive")
    for name in ("b1", "b2"):
        below_one(name, getattr(settings, name))
    for name in ("weight_decay", "clip"):
        not_negative(name, getattr(settings, name))
