"""k-means of single numbers, and each number's rank: the cluster it falls in, counted from the lowest.

The paper ranks patches so (5 clusters, seed 123). The clusters are those of scikit-learn's
`KMeans(clusters, random_state=seed)` on the same float64 values (n_init 1); the tests compare them. Its seeding is
repeated draw for draw. On a line, Lloyd's steps only move the bounds between neighbours, so here they cost a few
look-ups in sorted values. scikit-learn walks through all values in every step, and would be a dependency for this one
function.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int, Int8

CLUSTERS, SEED = 5, 123  # as published
STEPS, TOLERANCE = 300, 1e-4  # scikit-learn's defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clusters:
    """Clusters on a line, lowest first.

    They have `centres` (K,) and the inner `bounds` (K - 1,) halfway between them. `counts` (K,) says how many of the
    clustered values each holds. `lowest` and `highest` are the ends of the values.
    """

    centres: Float[np.ndarray, "K"]
    bounds: Float[np.ndarray, "gaps"]  # not "K-1": the fields of a file are checked one by one
    counts: Int[np.ndarray, "K"]
    lowest: float
    highest: float

    def ranks(self, values: Float[np.ndarray, "..."]) -> Int8[np.ndarray, "..."]:
        """Each value's cluster, from 0. A value on a bound belongs to the lower one."""
        return np.searchsorted(self.bounds, values.astype(np.float64, copy=False), side="left").astype(np.int8)


def k_means(values: Float[np.ndarray, "..."], *, clusters: int = CLUSTERS, seed: int = SEED) -> Clusters:
    """Clusters of all values, in float64. As in scikit-learn, the order of the values decides which are the seeds.

    The one difference is a cluster that becomes empty on the way. Here it keeps its place; in scikit-learn it moves to
    the farthest value. Raises `ValueError` for fewer different values than clusters and for values that are not finite.
    """
    flat = values.astype(np.float64).ravel()
    if not 1 <= clusters <= 127:
        raise ValueError(f"clusters is {clusters}; it must be from 1 to 127")
    if not np.isfinite(flat).all():
        raise ValueError(f"{(~np.isfinite(flat)).sum()} of {len(flat)} values are not finite numbers")
    ordered = np.sort(flat)
    different = 1 + np.count_nonzero(ordered[1:] > ordered[:-1]) if len(flat) else 0
    if different < clusters:
        raise ValueError(f"there are {different} different values, too few for {clusters} clusters")
    mean = flat.mean()
    centres = np.sort(_seeds(flat - mean, clusters=clusters, seed=seed))
    centres, counts = _lloyd(ordered - mean, centres)
    centres = centres + mean
    return Clusters(
        centres=centres,
        bounds=(centres[1:] + centres[:-1]) / 2,
        counts=counts,
        lowest=float(ordered[0]),
        highest=float(ordered[-1]),
    )


def _seeds(values: Float[np.ndarray, "_"], *, clusters: int, seed: int) -> Float[np.ndarray, "_"]:
    """k-means++ with several tries for each seed (Arthur & Vassilvitskii 2007), drawn as scikit-learn draws."""
    random = np.random.RandomState(seed)
    tries = 2 + int(math.log(clusters))
    even = np.ones(len(values))
    seeds = [values[random.choice(len(values), p=even / even.sum())]]
    distance = (values - seeds[0]) ** 2  # to the nearest seed so far
    for _ in range(1, clusters):
        cumulative = np.cumsum(distance)
        drawn = np.searchsorted(cumulative, random.uniform(size=tries) * distance.sum())
        candidates = values[np.minimum(drawn, len(values) - 1)]
        left = [np.minimum(distance, (values - candidate) ** 2) for candidate in candidates]
        best = int(np.argmin([found.sum() for found in left]))
        seeds.append(candidates[best])
        distance = left[best]
    return np.array(seeds)


def _lloyd(
    ordered: Float[np.ndarray, "_"], centres: Float[np.ndarray, "K"]
) -> tuple[Float[np.ndarray, "K"], Int[np.ndarray, "K"]]:
    """Moves centres to the means of their nearest values, until nothing changes, they hardly move, or after 300 steps.

    Returns them, and the number of values nearest to each.
    """
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    before = None
    for _ in range(STEPS):
        ends = _ends(ordered, centres)
        counts = np.diff(ends)
        moved = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
        shift, centres = np.sum((moved - centres) ** 2), moved
        if np.array_equal(ends, before) or shift <= TOLERANCE * ordered.var():
            break
        before = ends
    return centres, np.diff(_ends(ordered, centres))


def _ends(ordered: Float[np.ndarray, "_"], centres: Float[np.ndarray, "K"]) -> Int[np.ndarray, "_"]:
    """The K + 1 places among the sorted values where each centre's values begin and end."""
    inner = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [len(ordered)]])
