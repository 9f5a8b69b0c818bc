"""Joins a sweep's measurements to points: the loss, cost and time of each setting. Marks the points worth having.

`jaxprune.experiments.sweep` measures, `jaxprune.plots.pareto` draws.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxprune.analysis.bootstrap import DEFAULT, Bootstrap, mean
from jaxprune.cost import macs
from jaxprune.experiments.ablation import Setting, unpruned
from jaxprune.experiments.sweep import Candidate, Store, quality_key, time_key, with_unpruned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate under one setting at one batch size.

    `quality` is top1 or mean_average_precision, a share. `drop` is its loss against the first candidate without
    pruning, with the ends of its interval. The ends are not numbers if clips have several classes.

    `speed_up` is the median unpruned time divided by this setting's. Both are forward passes from spectrogram to
    logits, timed in turn. `milliseconds`, for a clip, is the median of all unpruned calls divided by the speed-up. So
    settings timed apart compare. `gain` is the speed-up divided by the ratio of multiply-accumulates. `pays` is true if
    pruning pays in time. `unsteady` is the distance between the quartiles of the unpruned model's calls, over their
    median. It is large if the machine had other things to do.

    `best_by_macs` and `best_by_time` are true if no point of this batch size is at least as good and cheaper.
    """

    candidate: str
    score: str
    keep: str
    blocks: str
    batch: int
    clips: int
    metric: str
    quality: float
    drop: float
    drop_low: float
    drop_high: float
    gmacs: float
    macs_ratio: float
    milliseconds: float
    clips_per_second: float
    speed_up: float
    gain: float
    pays: bool
    unsteady: float
    best_by_macs: bool
    best_by_time: bool


def points(
    store: Store,
    candidates: Sequence[Candidate],
    *,
    settings: Mapping[str, Sequence[Setting]],
    batches: Iterable[int],
    device: str,
    share: float,
    bootstrap: Bootstrap = DEFAULT,
) -> list[Point]:
    """The points asked for, measured before or now. `settings` are by candidate name.

    Pruning pays if the speed-up is at least 1 and at least `share` of the ratio of multiply-accumulates.
    """
    drops = _drops(store, candidates, settings, bootstrap=bootstrap)
    found = []
    for batch in batches:
        keys = {
            (candidate.name, one.name): time_key(one, batch=batch, device=device)
            for candidate in candidates
            for one in with_unpruned(candidate, settings[candidate.name])
        }
        usual, unsteady = _unpruned_call(store, keys.values())
        here = []
        for candidate in candidates:
            for setting in with_unpruned(candidate, settings[candidate.name]):
                key = quality_key(candidate, setting)
                timed = store.seconds[keys[candidate.name, setting.name]]
                clock = {"batch": batch, "usual": usual, "unsteady": unsteady, "share": share}
                here.append(_point(candidate, setting, store.quality[key], timed, drop=drops[key], **clock))
        found += _with_fronts(here)
    return found


def _unpruned_call(store: Store, keys: Iterable[str]) -> tuple[float, float]:
    """The median of the unpruned model's calls, and the distance between their quartiles as a share of it."""
    calls = [call for key in dict.fromkeys(keys) for call in store.seconds[key]["unpruned_seconds"]]
    low, usual, high = np.quantile(calls, (0.25, 0.5, 0.75)).tolist()
    return usual, (high - low) / usual


def _point(
    candidate: Candidate,
    setting: Setting,
    quality: Mapping[str, Any],
    timed: Mapping[str, Sequence[float]],
    *,
    drop: tuple[float, float, float],
    batch: int,
    usual: float,
    unsteady: float,
    share: float,
) -> Point:
    """One setting's point, not yet compared with the others."""
    metric, value = next(iter(quality["metrics"].items()))
    spent, before = (statistics.median(timed[name]) for name in ("seconds", "unpruned_seconds"))
    cost, speed_up = _macs(candidate, setting), before / spent
    ratio = _macs(candidate, unpruned(candidate.model)) / cost
    return Point(
        candidate=candidate.name,
        score=setting.score,
        keep=setting.keep,
        blocks=",".join(map(str, setting.blocks)),
        batch=batch,
        clips=quality["clips"],
        metric=metric,
        quality=value,
        drop=drop[0],
        drop_low=drop[1],
        drop_high=drop[2],
        gmacs=cost / 1e9,
        macs_ratio=ratio,
        milliseconds=1e3 * usual / speed_up / batch,
        clips_per_second=batch * speed_up / usual,
        speed_up=speed_up,
        gain=speed_up / ratio,
        pays=ratio == 1 or speed_up >= max(1.0, share * ratio),
        unsteady=unsteady,
        best_by_macs=False,
        best_by_time=False,
    )


def _with_fronts(found: Sequence[Point]) -> list[Point]:
    """The points of one batch size. Marks those that no other beats."""
    quality = np.array([point.quality for point in found])
    fronts = [pareto(np.array([getattr(p, name) for p in found]), quality) for name in ("gmacs", "milliseconds")]
    return [
        dataclasses.replace(point, best_by_macs=bool(by_macs), best_by_time=bool(by_time))
        for point, by_macs, by_time in zip(found, *fronts, strict=True)
    ]


def pareto(cost: Float[np.ndarray, "points"], quality: Float[np.ndarray, "points"]) -> Bool[np.ndarray, "points"]:
    """True for points that no other beats. A point beats one if it is cheaper or better, and neither dearer nor worse.

    Equal points do not beat each other.
    """
    order = np.lexsort((-quality, cost))
    best, front = -np.inf, np.zeros(len(cost), bool)
    for i in order:
        if quality[i] > best:
            best, last = quality[i], cost[i]
            front[i] = True
        elif quality[i] == best and cost[i] == last:
            front[i] = True
    return front


def fastest(found: Iterable[Point], *, max_drop: float) -> dict[int, Point]:
    """The fastest point of each batch size that loses at most `max_drop` (a share). It may be the unpruned model."""
    chosen: dict[int, Point] = {}
    for point in found:
        good = point.drop <= max_drop + 1e-9
        if good and (point.batch not in chosen or point.clips_per_second > chosen[point.batch].clips_per_second):
            chosen[point.batch] = point
    return chosen


def _macs(candidate: Candidate, setting: Setting) -> int:
    return macs(candidate.model, setting.policy_for(jnp.arange(1), {}))


def _drops(
    store: Store, candidates: Sequence[Candidate], settings: Mapping[str, Sequence[Setting]], *, bootstrap: Bootstrap
) -> dict[str, tuple[float, float, float]]:
    """The share lost against the first candidate without pruning, and its interval, by quality key.

    The interval is counted clip by clip. It needs one class a clip and the same clips in both.
    """
    base = store.quality[quality_key(candidates[0], unpruned(candidates[0].model))]
    keys = [
        quality_key(candidate, setting)
        for candidate in candidates
        for setting in with_unpruned(candidate, settings[candidate.name])
    ]
    metric, before = next(iter(base["metrics"].items()))
    found = {key: (before - store.quality[key]["metrics"][metric], float("nan"), float("nan")) for key in keys}
    paired = [key for key in found if _comparable(base, store.quality[key])]
    if paired:
        lost = [_right(base) - _right(store.quality[key]) for key in paired]
        ends = mean(np.stack(lost, axis=1), bootstrap=bootstrap)
        for i, key in enumerate(paired):
            found[key] = found[key][0], float(ends.low[i]), float(ends.high[i])
    return found


def _comparable(base: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return base["right"] is not None and other["right"] is not None and base["clips"] == other["clips"]


def _right(quality: Mapping[str, Any]) -> Float[np.ndarray, "clips"]:
    """An array with a 1 for each clip answered rightly."""
    bits = np.frombuffer(bytes.fromhex(quality["right"]), np.uint8)
    return np.unpackbits(bits, count=quality["clips"]).astype(float)
