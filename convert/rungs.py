"""The rungs that `jaxprune validate` climbs: two arrays, a stage with its kept patches forced, a stage run free.

A rung is one comparison with its tolerance. `validate.py` has their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxprune.models import Output

from . import torch_methods, torch_reference

GAP = 1e-6  # between the last kept and the first dropped score; below it a different choice is a tie, not an error


@dataclass(frozen=True)
class Rung:
    """One comparison, at a keep rate, or at another amount in words.

    `overlap` is the share of kept patches in common, of the clip with the smallest. `gap` is the smallest distance
    between the last kept and the first dropped score. Both are None where nothing is dropped.
    """

    stage: str
    keep_rate: float | str
    max_difference: float
    mean_difference: float
    tolerance: float
    passed: bool
    overlap: float | None = None
    gap: float | None = None
    remark: str = ""


def forced_rungs(
    theirs: torch_reference.Reference, ours: Output, *, blocks: Sequence[int], keep_rate: float | str, tolerance: float
) -> Iterator[Rung]:
    """Tokens that leave each pruning block, and logits, with JAX forced to keep the reference's patches."""
    for block in sorted(blocks):
        yield compare_tokens(
            theirs.blocks[block],
            ours.trace[block].tokens,
            stage=f"block {block}, forced",
            keep_rate=keep_rate,
            tolerance=tolerance,
        )
    yield compare(theirs.logits, ours.logits, stage="logits, forced", keep_rate=keep_rate, tolerance=tolerance)


def free_rungs(
    theirs: torch_reference.Reference, ours: Output, *, blocks: Sequence[int], keep_rate: float | str, tolerance: float
) -> Iterator[Rung]:
    """Scores and kept sets of two free runs, then logits of the clips that kept the same.

    A clip that chose otherwise within `GAP` is a tie. From there on it is another sequence, so it is left out.
    """
    same = np.ones(len(theirs.logits), bool)
    for block in sorted(blocks):
        reference, trace = theirs.patch_ids[block].numpy(), ours.trace[block]
        gaps = score_gaps(theirs.scores[block].numpy(), reference.shape[1])
        overlaps = np.array([share(a, b) for a, b in zip(reference, np.asarray(trace.patch_ids), strict=True)])
        wrong = same & (overlaps < 1) & (gaps > GAP)
        tied = same & (overlaps < 1) & (gaps <= GAP)
        rung = compare(
            by_patch(theirs.scores[block].numpy(), before(theirs, block))[same],
            by_patch(np.asarray(trace.score), np.asarray(trace.scored_ids))[same],
            stage=f"scores and choice at block {block}, free",
            keep_rate=keep_rate,
            tolerance=tolerance * float(theirs.scores[block].max()),
        )
        remark = (
            f"{tied.sum()} clips tied" if tied.any() else f"{wrong.sum()} clips chose otherwise" if wrong.any() else ""
        )
        yield replace(
            rung,
            passed=rung.passed and not wrong.any(),
            overlap=float(overlaps[same].min(initial=1)),
            gap=smallest if np.isfinite(smallest := float(gaps[same].min(initial=np.inf))) else None,
            remark=remark,
        )
        same &= overlaps == 1
    logits = theirs.logits.numpy()[same], np.asarray(ours.logits)[same]
    yield compare(*logits, stage="logits, free", keep_rate=keep_rate, tolerance=tolerance)


def method_rung(
    theirs: torch_methods.Reduced, ours: Output, *, method: str, keep_rate: float | str, tolerance: float
) -> Rung:
    """Who holds whom after every block, and the logits of the clips in which that is the same.

    A clip in which it is not, though another choice was as near as `GAP`, is a tie.
    """
    overlaps = np.ones(len(theirs.logits))
    for held, trace in zip(theirs.holds, ours.trace, strict=True):
        groups = np.where(held.any(dim=1), held.argmax(dim=1), -1)
        same = lowest_members(groups) == lowest_members(np.asarray(trace.groups))
        overlaps = np.minimum(overlaps, same.mean(axis=1))
    gaps, same = theirs.gap.numpy(), overlaps == 1
    wrong, tied = ~same & (gaps > GAP), ~same & (gaps <= GAP)
    logits = theirs.logits.numpy()[same], np.asarray(ours.logits)[same]
    rung = compare(*logits, stage=f"groups and logits, {method}", keep_rate=keep_rate, tolerance=tolerance)
    remark = f"{wrong.sum()} clips chose otherwise" if wrong.any() else f"{tied.sum()} clips tied" if tied.any() else ""
    passed = rung.passed and not wrong.any()
    smallest = float(gaps.min())
    gap = smallest if np.isfinite(smallest) else None
    return replace(rung, passed=passed, overlap=float(overlaps.min()), gap=gap, remark=remark or rung.remark)


def lowest_members(groups: np.ndarray) -> np.ndarray:
    """For every patch the lowest one in its token, -1 where none holds it: `(b, n0)`, whatever the tokens' order."""
    lowest = np.full(groups.shape, -1)
    for clip, row in enumerate(groups):
        for token in np.unique(row[row >= 0]):
            members = np.flatnonzero(row == token)
            lowest[clip, members] = members[0]
    return lowest


def compare(theirs: ArrayLike, ours: ArrayLike, *, stage: str, keep_rate: float | str, tolerance: float) -> Rung:
    """The largest and the mean absolute difference of two arrays of one shape. Empty ones pass: every clip had a tie.

    The largest is held to the tolerance as it stands, however large the values are.
    """
    difference = np.abs(np.asarray(theirs, np.float64) - np.asarray(ours, np.float64))
    if difference.size == 0:
        return Rung(stage, keep_rate, 0.0, 0.0, tolerance, passed=True, remark="every clip had a tie")
    largest = float(difference.max())
    return Rung(stage, keep_rate, largest, float(difference.mean()), tolerance, passed=largest <= tolerance)


def compare_tokens(theirs: ArrayLike, ours: ArrayLike, *, stage: str, keep_rate: float | str, tolerance: float) -> Rung:
    """`compare` with a tolerance that grows with the largest of their values, if that exceeds 1."""
    largest = max(1.0, float(np.abs(np.asarray(theirs)).max()))
    return compare(theirs, ours, stage=stage, keep_rate=keep_rate, tolerance=tolerance * largest)


def ranks(reference: torch_reference.Reference, patches: int) -> jax.Array:
    """Scores by original position, `(blocks, b, n0)`, by which a policy keeps the reference's patches in its order."""
    values = np.zeros((len(reference.patch_ids), len(reference.logits), patches), np.float32)
    for block, ids in enumerate(reference.patch_ids):
        k = ids.shape[1]
        np.put_along_axis(values[block], ids.numpy(), np.arange(k, 0, -1, dtype=np.float32)[None], axis=1)
    return jnp.asarray(values)


def before(reference: torch_reference.Reference, block: int) -> np.ndarray:
    """Original positions of the patches that enter a block, `(b, n)`."""
    if block:
        return reference.patch_ids[block - 1].numpy()
    scores = reference.scores[0]
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)


def by_patch(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Scores in rising order of original position, so that an earlier swap does not misalign them."""
    return np.take_along_axis(scores, np.argsort(ids, axis=1), axis=1)


def score_gaps(scores: np.ndarray, kept: int) -> np.ndarray:
    """The last kept score minus the first dropped one of each clip. Infinite where nothing is dropped."""
    if kept == scores.shape[1]:
        return np.full(len(scores), np.inf)
    falling = -np.sort(-scores, axis=1)
    return falling[:, kept - 1] - falling[:, kept]


def share(a: np.ndarray, b: np.ndarray) -> float:
    """The share of kept patches that both sets have."""
    return len(np.intersect1d(a, b)) / len(a)
