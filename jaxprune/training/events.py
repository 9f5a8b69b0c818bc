"""The reports of a training: each update, each evaluation, and the clips of a loss that is not a number."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

# The loss is pretraining's.
Metric = Literal["accuracy", "mAP", "loss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One update: its number, the epoch it is in (from 0), and what it measured.

    `seconds` counts from the step before, or from the start. `waiting` is the share of them spent waiting for data.
    `compiled` is true if a new size was compiled meanwhile, for it or for the next. Its `clips_per_second` then says
    nothing.
    """

    step: int
    epoch: int
    loss: float
    gradient: float
    lr: float
    keep_rate: float
    seconds: float
    clips_per_second: float
    waiting: float
    compiled: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtRate:
    """A split's scores at one keep rate, gathered exactly, and the multiply-accumulates of a clip there.

    Shares from 0 to 1: top1 and top5 where accuracy is the data set's metric, else the ranking metrics; the others are
    None. `score` is the one to choose by.
    """

    keep_rate: float
    macs: int
    loss: float
    top1: float | None
    top5: float | None
    mean_average_precision: float | None
    auc: float | None
    d_prime: float | None
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split's scores after `step` updates: the mean over all `rates`, and each of them.

    `keep_rate` is None where there are several. `score` decides which checkpoint is best.
    """

    step: int
    keep_rate: float | None
    clips: int
    loss: float
    top1: float | None
    top5: float | None
    mean_average_precision: float | None
    auc: float | None
    d_prime: float | None
    metric: Metric
    score: float
    rates: tuple[AtRate, ...] = ()

    @classmethod
    def of(cls, rates: Sequence[AtRate], *, step: int, clips: int, metric: Metric) -> "Evaluation":
        """The evaluation that has these rates."""
        names = ("loss", "top1", "top5", "mean_average_precision", "auc", "d_prime", "score")
        return cls(
            step=step,
            keep_rate=rates[0].keep_rate if len(rates) == 1 else None,
            clips=clips,
            metric=metric,
            rates=tuple(rates),
            **{name: _mean([getattr(one, name) for one in rates]) for name in names},
        )


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


class NotFinite(ValueError):
    """A loss or gradient that is not a finite number: `step`, and the files of the clips to look at."""

    def __init__(self, message: str, *, step: int, clips: list[str]):
        super().__init__(message)
        self.step, self.clips = step, clips


def offenders(losses: Float[np.ndarray, "b"], indices: Int[np.ndarray, "b"]) -> Int[np.ndarray, "_"]:
    """The indices of clips whose loss is not finite, or of all clips where every loss is finite."""
    bad = ~np.isfinite(losses)
    return indices[bad] if bad.any() else indices


def not_finite(step: int, loss: float, *, clips: list[str]) -> NotFinite:
    """The error in words: the loss, or where that is a number the gradient."""
    what = "gradient" if math.isfinite(loss) else f"loss ({loss})"
    shown = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
    message = f"the {what} of step {step} is not finite, nothing of it was saved; the clips are {shown}"
    return NotFinite(message, step=step, clips=clips)
