"""Statistics of kept patches against set arithmetic and loops in plain Python."""

import itertools
import math

import numpy as np
import pytest
from analysis_cases import CLIPS, EXACT, FEW, LEVELS, ranks_by_sklearn

from jaxprune.analysis.analyze import QUANTILES, analyze, kept_overlap, patch_values
from jaxprune.positions import patch_corners
from jaxprune.reduction.selection import keep_count

# What is kept


def kept_sets(extraction, block):
    return [set(row.tolist()) for row in extraction.kept(block)]


def test_values_and_histograms_are_plain_counts(extractions):
    extraction = extractions["pruned"]
    mean, std = extraction.column("mean"), extraction.column("std")
    found = patch_values(mean)
    flat = mean.astype(np.float64).ravel()
    assert (found.mean, found.std) == pytest.approx((flat.mean(), flat.std(ddof=1)), abs=EXACT)
    np.testing.assert_allclose(found.quantiles, np.quantile(flat, QUANTILES), atol=EXACT)
    kept = analyze(extraction, bootstrap=FEW).kept.histograms
    assert kept.before.sum() == mean.size
    last = kept_sets(extraction, 2)
    after = np.zeros((20, 20), int)
    for clip in range(CLIPS):
        for patch in last[clip]:
            places = []
            for edges, value in ((kept.mean_edges, mean[clip, patch]), (kept.std_edges, std[clip, patch])):
                places.append(max(i for i in range(20) if edges[i] <= value))
            after[tuple(places)] += 1
    np.testing.assert_array_equal(kept.after, after)
    density, _, _ = np.histogram2d(mean.ravel(), std.ravel(), bins=20, density=True)
    np.testing.assert_allclose(kept.log_density(kept.before), np.log(1 + density), atol=1e-9)


def test_the_share_kept_of_each_cluster_is_a_plain_count(extractions):
    extraction = extractions["pruned"]
    ranks = ranks_by_sklearn(extraction.column("mean"))
    found = analyze(extraction, bootstrap=FEW).kept.clusters
    np.testing.assert_array_equal(found.entering, np.bincount(ranks.ravel(), minlength=LEVELS))
    for stage, block in enumerate((1, 2)):
        kept = [ranks[clip, patch] for clip, patches in enumerate(kept_sets(extraction, block)) for patch in patches]
        np.testing.assert_array_equal(found.kept[stage], np.bincount(kept, minlength=LEVELS))
        assert found.two_lowest[stage] == sum(rank < 2 for rank in kept)
    np.testing.assert_allclose(found.share.value, found.kept / found.entering, atol=EXACT)


def test_places_are_on_the_grid_and_padding_is_apart(extractions):
    for name in ("pruned", "mae"):
        extraction = extractions[name]
        config, frames = extraction.config, extraction.column("frames")
        found = analyze(extraction, bootstrap=FEW).kept.places[2]
        grid, counts = np.zeros(config.grid), {"sound": [0, 0], "padding": [0, 0]}
        for clip, kept in enumerate(kept_sets(extraction, 2)):
            for patch, (frame, bin) in enumerate(patch_corners(config)):
                grid[frame // 16, bin // 16] += (patch in kept) / CLIPS
                count = counts["padding" if frame >= frames[clip] else "sound"]
                count[0] += patch in kept
                count[1] += 1
        np.testing.assert_allclose(found.grid, grid, atol=EXACT)
        np.testing.assert_allclose(found.by_band.value, grid.mean(axis=0), atol=EXACT)
        np.testing.assert_allclose(found.by_time.value, grid.mean(axis=1), atol=EXACT)
        for part, (above, below) in counts.items():
            estimate = getattr(found, part)
            assert estimate.value == pytest.approx(above / below, abs=EXACT)
            assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("seen", ["pruned", "unpruned"])
def test_attention_of_retained_and_pruned_patches_is_a_loop(extractions, seen):
    pruned, unpruned = extractions["pruned"], extractions["unpruned"]
    found = analyze(pruned, unpruned=unpruned if seen == "unpruned" else None, bootstrap=FEW).kept
    assert found.attention_of == f"the {seen} model"
    extraction, last = extractions[seen], kept_sets(pruned, 2)
    for block in range(4):
        means, areas = [], []
        for clip in range(CLIPS):
            score = extraction.score(block)[clip].astype(float) / extraction.score(block)[clip].astype(float).mean()
            stays = [patch in last[clip] for patch in extraction.scored(block)[clip]]
            inside, outside = score[stays], score[np.logical_not(stays)]
            means.append((inside.mean(), outside.mean() if len(outside) else math.nan))
            wins = [(a > b) + (a == b) / 2 for a in inside for b in outside]
            areas.append(sum(wins) / len(wins) if wins else math.nan)
        ours = found.attention
        assert ours.retained.value[block] == pytest.approx(np.mean([m for m, _ in means]), abs=1e-9)
        if seen == "pruned" and block > 2:
            assert np.isnan([ours.pruned.value[block], ours.auc.value[block]]).all()
        else:
            assert ours.pruned.value[block] == pytest.approx(np.mean([m for _, m in means]), abs=1e-9)
            assert ours.auc.value[block] == pytest.approx(np.mean(areas), abs=1e-9)
    # the score of the last stage is what chose: below it nothing is retained
    if seen == "pruned":
        assert found.attention.auc.value[2] > 0.98


def test_overlap_of_kept_sets_is_set_arithmetic(extractions):
    first, second, mae = (extractions[name] for name in ("pruned", "harder", "mae"))
    for block, found in kept_overlap(first, second, bootstrap=FEW).items():
        pairs = list(zip(kept_sets(first, block), kept_sets(second, block), strict=True))
        assert found.shared.value == pytest.approx(np.mean([len(a & b) / min(len(a), len(b)) for a, b in pairs]))
        assert found.jaccard.value == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
        assert found.chance == pytest.approx(max(len(pairs[0][0]), len(pairs[0][1])) / 64)
    assert list(kept_overlap(first, extractions["once"], bootstrap=FEW)) == [-1]
    # Other orders of patches: by place.
    place = [[tuple(corner) for corner in patch_corners(e.config)] for e in (first, mae)]
    shares = []
    for a, b in zip(kept_sets(first, 2), kept_sets(mae, 2), strict=True):
        shares.append(len({place[0][i] for i in a} & {place[1][i] for i in b}) / len(a))
    assert kept_overlap(first, mae, bootstrap=FEW)[2].shared.value == pytest.approx(np.mean(shares))
    itself = kept_overlap(first, first, bootstrap=FEW)[1]
    assert (itself.shared.value, itself.jaccard.value) == (1, 1)


@pytest.mark.parametrize("which", ["unpruned", "pruned"])
def test_overlap_between_blocks_is_set_arithmetic(extractions, which):
    extraction = extractions[which]
    found = analyze(extraction, top=0.3, bootstrap=FEW).block_overlap
    for i, j in itertools.product(range(4), range(4)):
        early, late = sorted((i, j))
        shares, chances = [], []
        for clip in range(CLIPS):
            common = set(extraction.scored(late)[clip].tolist())
            count = keep_count(0.3, len(common))
            best = []
            for block in (early, late):
                scored = zip(extraction.score(block)[clip], extraction.scored(block)[clip], strict=True)
                ordered = sorted((-float(score), int(patch)) for score, patch in scored if patch in common)
                best.append({patch for _, patch in ordered[:count]})
            shares.append(len(best[0] & best[1]) / count)
            chances.append(count / len(common))
        assert found.shared.value[i, j] == pytest.approx(np.mean(shares), abs=1e-6), (i, j)
        assert found.chance[i, j] == pytest.approx(np.mean(chances), abs=1e-6)
    np.testing.assert_allclose(np.diag(found.jaccard.value), 1)
