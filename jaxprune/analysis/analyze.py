"""The paper's statistics of an extraction: does attention follow intensity, and what does pruning keep?

`analyze` computes them all and returns plain arrays in dataclasses, for tables and pictures. Ranks come from
`jaxprune.analysis.clusters`, rank correlation from `kendall`, kept patches from `retained`, intervals from
`bootstrap`. Every statistic is of the normalised spectrograms of the extracted clips. It is computed per block and
follows the kept patches through the stages (section 5 of Lee & Lee 2025). Numpy does the work on the host: sorting and
counting are slower in XLA on a CPU. `jaxprune analyze` is the command.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxprune.analysis.bootstrap import DEFAULT, Bootstrap, Estimate, interval, resampled
from jaxprune.analysis.clusters import CLUSTERS, SEED, Clusters, k_means
from jaxprune.analysis.extraction import Extraction, check_same_clips, check_same_model, on_grid
from jaxprune.analysis.kendall import PairCounts, pair_counts
from jaxprune.analysis.retained import (
    ClusterCounts,
    Contrast,
    Histograms,
    Overlap,
    Places,
    attention_contrast,
    block_overlap,
    histograms,
    kept_per_cluster,
    overlap,
    places,
)

SIGNALS = ("mean", "std")
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """The values of a signal over all patches of all clips.

    They have a `mean`, a `std` (ddof 1), the quantiles of `QUANTILES`, and k-means `clusters`.
    """

    mean: float
    std: float
    quantiles: Float[np.ndarray, "_"]
    clusters: Clusters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kendall:
    """Rank correlation of each block's score with a signal's ranks, `(blocks,)`, and its mean over blocks.

    `published` is the paper's definition: pairs that agree, ties included, minus pairs that disagree, over all pairs,
    summed over clips. Ties lift it. `chance` `(blocks,)` is what scores that know nothing of the ranks would get, which
    is the share of tied pairs. `tau_b` is the usual coefficient, averaged over clips that have one. Its chance is 0.
    """

    published: Estimate
    published_mean: Estimate
    chance: Float[np.ndarray, "blocks"]
    tau_b: Estimate
    tau_b_mean: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptPatches:
    """The patches that a pruned model kept.

    `places` is by pruning block, and so are the rows of `clusters`. `attention` compares the patches kept to the end
    with the others. Its scores are those of the model that `attention_of` names.
    """

    histograms: Histograms
    clusters: ClusterCounts
    places: Mapping[int, Places]
    attention: Contrast
    attention_of: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """All statistics of one extraction.

    `values` and `kendall` are by signal; the signals are the mean and std of a patch's pixels. `top1` is the share of
    right answers, None where clips have several classes. `kept` is None for a model without pruning. `block_overlap`
    compares the `top` best patches of every two blocks. `overlaps` maps the name of each other extraction to the
    agreement of kept sets. It is by pruning block if both prune at the same ones, else of the last (key -1).
    """

    name: str
    clips: int
    patches: int
    score: str
    stages: tuple[int, ...]
    top1: float | None
    bootstrap: Bootstrap
    values: Mapping[str, Values]
    kendall: Mapping[str, Kendall]
    kept: KeptPatches | None
    top: float
    block_overlap: Overlap
    overlaps: Mapping[str, Mapping[int, Overlap]]

    def to_json(self) -> dict[str, Any]:
        """Everything in JSON's types. Numbers that are not finite become None, block numbers strings."""
        return _plain(self)


def analyze(
    extraction: Extraction,
    *,
    unpruned: Extraction | None = None,
    others: Sequence[Extraction] = (),
    clusters: int = CLUSTERS,
    seed: int = SEED,
    top: float = 0.5,
    bootstrap: Bootstrap = DEFAULT,
) -> Analysis:
    """All statistics of an extraction.

    `unpruned` is of the same weights and clips without pruning. Its scores then serve for the contrast of retained and
    pruned patches, which so reaches to the last block. The kept sets of `others` are compared with this one's.
    `clusters` and `seed` are k-means'.

    Raises `ValueError` for extractions that may not be compared, and for one without pruning where kept patches are
    needed.
    """
    if unpruned is not None:
        check_same_model(extraction, unpruned)
        if unpruned.stages:
            raise ValueError(f"{unpruned.path} was extracted with pruning, at blocks {list(unpruned.stages)}")
    for one in (extraction, *others) if others else ():
        one.check_pruned()
        check_same_clips(extraction, one)
    signals = {name: extraction.column(name) for name in SIGNALS}
    values = {name: patch_values(signal, clusters=clusters, seed=seed) for name, signal in signals.items()}
    ranks = {name: values[name].clusters.ranks(signal) for name, signal in signals.items()}
    blocks = range(extraction.config.depth)
    scores, ids = [extraction.score(block) for block in blocks], [extraction.scored(block) for block in blocks]
    kept = None
    if extraction.stages:
        kept = _kept(extraction, unpruned, signals, ranks, scores=scores, ids=ids, levels=clusters, bootstrap=bootstrap)
    data = extraction.manifest["data"]
    return Analysis(
        name=extraction.name,
        clips=extraction.clips,
        patches=extraction.config.patches,
        score=extraction.score_name,
        stages=extraction.stages,
        top1=_top1(extraction) if data["single_label"] else None,
        bootstrap=bootstrap,
        values=values,
        kendall=kendall(scores, ids, ranks, levels=clusters, bootstrap=bootstrap),
        kept=kept,
        top=top,
        block_overlap=block_overlap(scores, ids, patches=extraction.config.patches, top=top, bootstrap=bootstrap),
        overlaps={_label(other): kept_overlap(extraction, other, bootstrap=bootstrap) for other in others},
    )


def patch_values(signal: Float[np.ndarray, "clips n"], *, clusters: int = CLUSTERS, seed: int = SEED) -> Values:
    """`Values` of a signal. Raises as `k_means`."""
    exact = signal.astype(np.float64)
    return Values(
        mean=float(exact.mean()),
        std=float(exact.std(ddof=1)),
        quantiles=np.quantile(exact, QUANTILES),
        clusters=k_means(exact, clusters=clusters, seed=seed),
    )


def kendall(
    scores: Sequence[Float[np.ndarray, "clips _"]],
    ids: Sequence[np.ndarray],
    ranks: Mapping[str, np.ndarray],
    *,
    levels: int,
    bootstrap: Bootstrap,
) -> dict[str, Kendall]:
    """`Kendall` of each signal. `ranks` `(clips, n)` are by original position. `scores` are of the patches `ids` that
    enter each block (-1: no patch)."""
    above, below, chances = [], [], []  # of the ratios: signals, blocks, definitions, clips
    for rank in ranks.values():
        counts = [_pair_counts(score, patch_ids, rank, levels) for score, patch_ids in zip(scores, ids, strict=True)]
        taus = [np.nan_to_num(found.tau_b) for found in counts]
        above.append([(found.agreement, tau) for found, tau in zip(counts, taus, strict=True)])
        below.append([(found.pairs, ~np.isnan(found.tau_b)) for found in counts])
        chances.append(np.array([found.ties.sum() / found.pairs.sum() for found in counts]))
    numerator, denominator = (np.array(part, np.float64).transpose(3, 0, 2, 1) for part in (above, below))
    value, draws = resampled(numerator, denominator, bootstrap=bootstrap)  # signals definitions blocks
    each = interval(value, draws, confidence=bootstrap.confidence)
    overall = interval(value.mean(axis=-1), draws.mean(axis=-1), confidence=bootstrap.confidence)
    return {
        name: Kendall(
            published=each[i, 0],
            published_mean=overall[i, 0],
            chance=chances[i],
            tau_b=each[i, 1],
            tau_b_mean=overall[i, 1],
        )
        for i, name in enumerate(ranks)
    }


def _pair_counts(score: np.ndarray, patch_ids: np.ndarray, rank: np.ndarray, levels: int) -> PairCounts:
    """`PairCounts` of the patches that enter a block."""
    alive = patch_ids >= 0
    here = np.take_along_axis(rank, np.maximum(patch_ids, 0).astype(np.intp), axis=1)
    return pair_counts(score, here, levels=levels, alive=None if alive.all() else alive)


def kept_overlap(first: Extraction, second: Extraction, *, bootstrap: Bootstrap = DEFAULT) -> dict[int, Overlap]:
    """Agreement of the kept sets of two extractions of the same clips, at other keep rates, by other scores or models.

    It is by pruning block if both prune at the same ones, else after the last of each (key -1). Patches are compared by
    place, so the orders of the families may differ. Raises `ValueError` for other clips or sizes and for unpruned
    models.
    """
    for extraction in (first, second):
        extraction.check_pruned()
    check_same_clips(first, second)
    pairs = {-1: (first.stages[-1], second.stages[-1])}
    if first.stages == second.stages:
        pairs = {block: (block, block) for block in first.stages}

    def kept(extraction: Extraction, block: int) -> np.ndarray:
        return on_grid(extraction.kept_mask(block), extraction.config).reshape(extraction.clips, -1)

    return {
        key: overlap(kept(first, mine), kept(second, theirs), bootstrap=bootstrap)
        for key, (mine, theirs) in pairs.items()
    }


def _kept(
    extraction: Extraction,
    unpruned: Extraction | None,
    signals: Mapping[str, np.ndarray],
    ranks: Mapping[str, np.ndarray],
    *,
    scores: Sequence[np.ndarray],
    ids: Sequence[np.ndarray],
    levels: int,
    bootstrap: Bootstrap,
) -> KeptPatches:
    """The statistics that need kept patches."""
    masks = {block: extraction.kept_mask(block) for block in extraction.stages}
    last, frames = masks[extraction.stages[-1]], extraction.column("frames")
    seen, attention_of = extraction, "the pruned model"
    if unpruned is not None:
        seen, attention_of = unpruned, "the unpruned model"
        scores, ids = zip(*((seen.score(block), seen.scored(block)) for block in range(seen.config.depth)), strict=True)
    return KeptPatches(
        histograms=histograms(signals["mean"], signals["std"], last),
        clusters=kept_per_cluster(ranks["mean"], list(masks.values()), levels=levels, bootstrap=bootstrap),
        places={
            block: places(mask, extraction.config, frames=frames, bootstrap=bootstrap) for block, mask in masks.items()
        },
        attention=attention_contrast(scores, ids, last, bootstrap=bootstrap),
        attention_of=attention_of,
    )


def _top1(extraction: Extraction) -> float:
    right = extraction.column("logits").argmax(axis=1) == extraction.column("target").argmax(axis=1)
    return float(right.mean())


def _label(extraction: Extraction) -> str:
    return f"{extraction.path.name}: {extraction.name}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
