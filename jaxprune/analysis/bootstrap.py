"""Bootstrap confidence intervals over clips (Efron 1979): percentiles of a statistic over clips drawn with replacement.

Every statistic here is a ratio of sums over clips. A mean is such a ratio, with the number of clips below. All
statistics of a call are resampled with the same draws, in one matrix product. The draws are those of
scipy.stats.bootstrap for the same seed.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Num

AT_A_TIME = 256  # resamples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Settings of the intervals: the number of `resamples`, the `confidence` from 0 to 1, the `seed` of the draws."""

    resamples: int = 9999
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"resamples is {self.resamples} and confidence {self.confidence}; resamples must be at least 1, "
                "confidence between 0 and 1"
            )


DEFAULT = Bootstrap()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Values and the ends of their intervals, of one shape. NaN where no clip has a value."""

    value: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]

    def __getitem__(self, key: Any) -> "Estimate":
        value, low, high = (np.asarray(ends[key]) for ends in (self.value, self.low, self.high))
        return Estimate(value=value, low=low, high=high)


def ratio(
    numerator: Num[np.ndarray, "clips ..."], denominator: Num[np.ndarray, "clips ..."], *, bootstrap: Bootstrap
) -> Estimate:
    """The sum of `numerator` over clips, divided by that of `denominator`, for each place on the other axes."""
    value, draws = resampled(numerator, denominator, bootstrap=bootstrap)
    return interval(value, draws, confidence=bootstrap.confidence)


def mean(values: Num[np.ndarray, "clips ..."], *, bootstrap: Bootstrap) -> Estimate:
    """The mean over the clips whose value is a number, for each place on the other axes."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0), known.astype(int), bootstrap=bootstrap)


def resampled(
    numerator: Num[np.ndarray, "clips ..."], denominator: Num[np.ndarray, "clips ..."], *, bootstrap: Bootstrap
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "resamples ..."]]:
    """The ratio and its value in every resample, for statistics that combine several ratios.

    NaN where a denominator is 0. Raises `ValueError` without clips.
    """
    clips, shape = len(numerator), numerator.shape[1:]
    if not clips:
        raise ValueError("there are no clips to draw from")
    columns = np.concatenate([part.reshape(clips, -1).astype(np.float64) for part in (numerator, denominator)], axis=1)
    random = np.random.default_rng(bootstrap.seed)
    draws = np.empty((bootstrap.resamples, *shape))
    for first in range(0, bootstrap.resamples, AT_A_TIME):
        part = draws[first : first + AT_A_TIME]
        drawn = random.integers(0, clips, (len(part), clips)) + clips * np.arange(len(part))[:, None]
        times = np.bincount(drawn.ravel(), minlength=len(part) * clips).reshape(len(part), clips)
        part[:] = _divided(times.astype(np.float64) @ columns, shape)
    return np.asarray(_divided(columns.sum(axis=0, keepdims=True), shape)[0]), draws


def interval(
    value: Float[np.ndarray, "..."], draws: Float[np.ndarray, "resamples ..."], *, confidence: float
) -> Estimate:
    """The percentile interval of resampled values. NaN among them are left out."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    known = ~np.isnan(value)
    ends = np.full((2, *value.shape), np.nan)
    told = draws[:, known]
    quantile = np.nanquantile if np.isnan(told).any() else np.quantile
    if known.any():
        ends[:, known] = quantile(told, tails, axis=0)
    return Estimate(value=np.asarray(value), low=np.asarray(ends[0]), high=np.asarray(ends[1]))


def _divided(sums: Float[np.ndarray, "rows _"], shape: tuple[int, ...]) -> Float[np.ndarray, "rows ..."]:
    """The first half of the columns over the second."""
    above, below = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan).reshape(len(sums), *shape)
