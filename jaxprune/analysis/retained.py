"""Statistics of kept patches: their intensities, attention and places on the spectrogram; agreement of kept sets.

Functions of plain arrays over all clips; `jaxprune.analysis.analyze` takes the arrays from an extraction. Kept sets are
masks `(clips, n)` by original position. Unless said otherwise, means are over clips, and every clip counts the same.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune.analysis.bootstrap import Bootstrap, Estimate, mean, ratio
from jaxprune.analysis.extraction import members, on_grid
from jaxprune.analysis.kendall import pair_counts
from jaxprune.config import ModelConfig
from jaxprune.positions import patch_corners
from jaxprune.reduction.selection import keep_count

BINS = 20  # as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histograms:
    """Counts of the patches of all clips by (mean, std), `before` pruning and `after` its last stage, (bins, bins).

    The mean is the first axis. Bins are even from the lowest to the highest value before pruning. The last one includes
    its upper edge.
    """

    before: Int[np.ndarray, "bins bins"]
    after: Int[np.ndarray, "bins bins"]
    mean_edges: Float[np.ndarray, "edges"]
    std_edges: Float[np.ndarray, "edges"]

    def log_density(self, counts: Int[np.ndarray, "bins bins"]) -> Float[np.ndarray, "bins bins"]:
        """log(1 + density), as the paper draws it. The density's integral is 1."""
        area = np.outer(np.diff(self.mean_edges), np.diff(self.std_edges))
        return np.log1p(counts / (counts.sum() * area))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterCounts:
    """Counts of the patches of all clips by intensity cluster, lowest first.

    `entering` (K,) are those that enter the model, `kept` (stages, K) those left after each pruning block. `share`
    (stages, K) is kept over entering, all clips together.
    """

    entering: Int[np.ndarray, "K"]
    kept: Int[np.ndarray, "stages K"]
    share: Estimate

    @property
    def two_lowest(self) -> Int[np.ndarray, "stages"]:
        """Kept patches in the two lowest clusters, which the paper counts."""
        return self.kept[:, :2].sum(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """The places that are kept.

    `grid` `(time, freq)` is the share of clips that keep each patch, low frequencies first. The other fields are shares
    of the patches kept: of a mel band `(freq,)`, of a time step `(time,)`, of those that hold `sound`, of those that
    hold only `padding`. They are NaN where there are no such patches.
    """

    grid: Float[np.ndarray, "time freq"]
    by_band: Estimate
    by_time: Estimate
    sound: Estimate
    padding: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """Attention of the patches that pruning retains, beside those it drops, `(blocks,)`.

    `retained` and `pruned` are mean scores, in multiples of the mean over all patches of the clip in the block. `auc`
    is the chance that a retained patch scores above a pruned patch of the same clip. Ties count half. At 0.5 the score
    tells nothing; at 1 it parts the two wholly. NaN where a block has no pruned patches left.
    """

    retained: Estimate
    pruned: Estimate
    auc: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """Agreement of two kept sets of a clip.

    `shared` is the share of the smaller set that lies in the other. `jaccard` is intersection over union. `chance` is
    `shared` for sets drawn at random.
    """

    shared: Estimate
    jaccard: Estimate
    chance: Float[np.ndarray, "..."]


def histograms(
    patch_mean: Float[np.ndarray, "clips n"],
    patch_std: Float[np.ndarray, "clips n"],
    kept: Bool[np.ndarray, "clips n"],
    *,
    bins: int = BINS,
) -> Histograms:
    """2-d histograms of all patches and of the kept ones."""
    before, mean_edges, std_edges = np.histogram2d(patch_mean.ravel(), patch_std.ravel(), bins=bins)
    after, _, _ = np.histogram2d(patch_mean[kept], patch_std[kept], bins=(mean_edges, std_edges))
    return Histograms(
        before=before.astype(np.int64), after=after.astype(np.int64), mean_edges=mean_edges, std_edges=std_edges
    )


def kept_per_cluster(
    ranks: Int[np.ndarray, "clips n"], kept: Sequence[Bool[np.ndarray, "clips n"]], *, levels: int, bootstrap: Bootstrap
) -> ClusterCounts:
    """Counts for each pruning block's kept set. `ranks` lie in 0 ... levels - 1."""
    entering = _per_level(ranks, np.ones(ranks.shape, bool), levels)  # clips K
    left = np.stack([_per_level(ranks, mask, levels) for mask in kept], axis=1)  # clips stages K
    share = ratio(left, np.broadcast_to(entering[:, None], left.shape), bootstrap=bootstrap)
    return ClusterCounts(entering=entering.sum(axis=0), kept=left.sum(axis=0), share=share)


def places(
    kept: Bool[np.ndarray, "clips n"], config: ModelConfig, *, frames: Int[np.ndarray, "clips"], bootstrap: Bootstrap
) -> Places:
    """`Places` of kept sets, which are in the order of `config`'s family. `frames` of each clip hold sound."""
    grid = on_grid(kept, config)  # clips time freq
    empty = patch_corners(config)[:, 0] >= frames[:, None]  # clips n
    parts = {  # of each part of the spectrogram, its kept patches and all of its patches
        "by_band": (grid.sum(axis=1), np.full((len(kept), config.grid[1]), config.grid[0])),
        "by_time": (grid.sum(axis=2), np.full((len(kept), config.grid[0]), config.grid[1])),
        "sound": ((kept & ~empty).sum(axis=1), (~empty).sum(axis=1)),
        "padding": ((kept & empty).sum(axis=1), empty.sum(axis=1)),
    }
    numerator, denominator = (np.column_stack([part[side] for part in parts.values()]) for side in (0, 1))
    found = ratio(numerator, denominator, bootstrap=bootstrap)
    bands, steps = config.grid[1], sum(config.grid)
    return Places(
        grid=grid.mean(axis=0),
        by_band=found[:bands],
        by_time=found[bands:steps],
        sound=found[steps],
        padding=found[steps + 1],
    )


def attention_contrast(
    scores: Sequence[Float[np.ndarray, "clips _"]],
    ids: Sequence[Int[np.ndarray, "clips _"]],
    retained: Bool[np.ndarray, "clips n"],
    *,
    bootstrap: Bootstrap,
) -> Contrast:
    """`Contrast` of the patches in `retained` with the others, block by block. `retained` is by original position.

    `scores` are of the patches `ids` that enter each block (-1: no patch). Retained are, for instance, the patches that
    a pruned run keeps to the end. The scores may be that run's, in which pruned patches vanish on the way. Or they are
    the unpruned model's, which sees every patch to the end.
    """
    columns = []
    for score, patch_ids in zip(scores, ids, strict=True):
        alive = patch_ids >= 0
        is_retained = alive & np.take_along_axis(retained, np.maximum(patch_ids, 0).astype(np.intp), axis=1)
        score = score.astype(np.float64)
        average = _mean_where(score, alive)
        found = [_mean_where(score, mask) / average for mask in (is_retained, alive & ~is_retained)]
        counts = pair_counts(score, is_retained.astype(np.int8), levels=2, alive=alive)
        different = counts.pairs - counts.rank_ties  # pairs of a retained and a pruned patch
        even = counts.score_ties - counts.both_ties
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((different - counts.discordant - even / 2) / different)
        columns.append(np.stack(found, axis=1))
    every = mean(np.stack(columns, axis=2), bootstrap=bootstrap)  # clips 3 blocks
    return Contrast(retained=every[0], pruned=every[1], auc=every[2])


def overlap(
    first: Bool[np.ndarray, "clips n"], second: Bool[np.ndarray, "clips n"], *, bootstrap: Bootstrap
) -> Overlap:
    """`Overlap` of two kept sets of each clip, in the same order of patches. Clips that kept nothing are left out."""
    both = (first & second).sum(axis=1)
    sizes = np.stack([first.sum(axis=1), second.sum(axis=1)])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.stack([both / sizes.min(axis=0), both / (first | second).sum(axis=1)], axis=1)
    found = mean(shares, bootstrap=bootstrap)
    chance = np.where(sizes.min(axis=0) > 0, sizes.max(axis=0), np.nan) / first.shape[1]
    return Overlap(shared=found[0], jaccard=found[1], chance=_mean_known(chance))


def block_overlap(
    scores: Sequence[Float[np.ndarray, "clips _"]],
    ids: Sequence[Int[np.ndarray, "clips _"]],
    *,
    patches: int,
    top: float,
    bootstrap: Bootstrap,
) -> Overlap:
    """Agreement of blocks on the best patches, as `Overlap` `(blocks, blocks)`.

    The best are the `ceil(top * count)` patches that a block scores highest, among the patches that enter both. Equal
    scores rank by lower position.

    `scores` and `ids` are as in `attention_contrast`. The later blocks of a pruned model see only what earlier ones
    kept. An unpruned model compares all blocks on all `patches`.
    """
    blocks, clips = len(scores), len(scores[0])
    by_patch = np.full((blocks, clips, patches + 1), -np.inf, np.float32)  # -1 points to the last
    for values, score, patch_ids in zip(by_patch, scores, ids, strict=True):
        np.put_along_axis(values, patch_ids.astype(np.intp), score.astype(np.float32), axis=1)
    by_patch = by_patch[:, :, :patches]
    shared, jaccard, chance = np.empty((3, clips, blocks, blocks), np.float32)
    entering, best = None, np.empty(0)
    for later in range(blocks):
        present = members(ids[later], patches=patches)
        if entering is None or not np.array_equal(present, entering):
            entering, count = present, present.sum(axis=1)
            kept = np.array([keep_count(top, int(patches)) for patches in range(patches + 1)])[count]
            best = np.stack([_best(np.where(present, block, -np.inf), kept) for block in by_patch])
            best = best.transpose(1, 0, 2).astype(np.float32)  # clips blocks n
        both = np.einsum("bin,bn->bi", best, best[:, later])
        with np.errstate(invalid="ignore", divide="ignore"):
            shared[:, later], jaccard[:, later] = both / kept[:, None], both / (2 * kept[:, None] - both)
            chance[:, later] = np.where(count > 0, kept / count, np.nan)[:, None]
    upper = np.triu_indices(blocks, 1)
    for values in (shared, jaccard, chance):
        values[:, upper[0], upper[1]] = values[:, upper[1], upper[0]]
    found = mean(np.stack([shared, jaccard], axis=1), bootstrap=bootstrap)
    return Overlap(shared=found[0], jaccard=found[1], chance=_mean_known(chance))


def _best(values: Float[np.ndarray, "clips n"], count: Int[np.ndarray, "clips"]) -> Bool[np.ndarray, "clips n"]:
    """True for the `count` highest of each row."""
    order = np.argsort(-values, axis=1, kind="stable")
    found = np.empty(values.shape, bool)
    np.put_along_axis(found, order, np.arange(values.shape[1]) < count[:, None], axis=1)
    return found


def _per_level(
    ranks: Int[np.ndarray, "clips n"], mask: Bool[np.ndarray, "clips n"], levels: int
) -> Int[np.ndarray, "clips K"]:
    """Counts of each clip's patches in the mask, by rank."""
    return np.stack([np.count_nonzero((ranks == level) & mask, axis=1) for level in range(levels)], axis=1)


def _mean_where(values: Float[np.ndarray, "clips n"], mask: Bool[np.ndarray, "clips n"]) -> Float[np.ndarray, "clips"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mask, values, 0).sum(axis=1) / mask.sum(axis=1)


def _mean_known(values: Float[np.ndarray, "clips ..."]) -> Float[np.ndarray, "..."]:
    """The mean over clips without NaN. NaN if every clip is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=0, dtype=np.float64) / known.sum(axis=0))
