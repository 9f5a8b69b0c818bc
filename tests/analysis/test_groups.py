"""Extractions of methods that make one token of several patches: groups, and the analysis and pictures made of them."""

import numpy as np
import pytest
from extract_cases import CLIPS, RATES, make, run_once
from quick import quick_compiling  # noqa: F401
from training_runs import corpus

import jaxprune
from jaxprune.analysis.analyze import analyze
from jaxprune.analysis.bootstrap import Bootstrap
from jaxprune.plots.clips import retained_patches_figure
from jaxprune.report.clips import examples

PATCHES = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"), clips=1, tests=CLIPS)


@pytest.fixture(scope="module")
def fused(tmp_path_factory, dataset):
    policy = jaxprune.evit(make()[0], RATES)
    return run_once(tmp_path_factory.mktemp("extracted") / "evit", dataset, policy=policy, mel="float32")


@pytest.fixture(scope="module")
def merged(tmp_path_factory, dataset):
    policy = jaxprune.tome(make()[0], [6, 5])
    return run_once(tmp_path_factory.mktemp("extracted") / "tome", dataset, policy=policy, mel="float32")


def test_a_fused_token_holds_what_was_not_kept(fused):
    assert fused.stages == fused.grouped == (0, 1)
    kept = fused.kept(0)
    assert kept.shape == (CLIPS, 24)  # 0.7 of 32, and the fused one
    assert (kept[:, -1] == -1).all()
    groups = fused.groups(0)
    assert (groups >= 0).all()
    np.testing.assert_array_equal(groups == 23, ~fused.kept_mask(0))
    for clip in range(CLIPS):
        assert groups[clip, kept[clip, :-1]].tolist() == list(range(23))


def test_merged_patches_are_no_tokens_of_their_own(merged):
    for block, left in ((0, 26), (1, 21)):
        groups = merged.groups(block)
        assert groups.max() == left - 1
        for clip in range(CLIPS):
            tokens, sizes = np.unique(groups[clip], return_counts=True)
            alone = np.isin(groups[clip], tokens[sizes == 1])
            np.testing.assert_array_equal(merged.kept_mask(block)[clip], alone)
    assert merged.scored(1).shape == merged.score(1).shape == (CLIPS, 26)


def test_groups_of_plain_pruning_follow_from_what_was_kept(tmp_path, dataset):
    found = run_once(tmp_path / "topk", dataset)
    assert found.grouped == ()
    groups, kept = found.groups(1), found.kept(1)
    for clip in range(CLIPS):
        expected = np.full(PATCHES, -1)
        expected[kept[clip]] = np.arange(kept.shape[1])
        assert groups[clip].tolist() == expected.tolist()


@pytest.mark.parametrize("which", ["fused", "merged"])
def test_analysis_and_pictures_are_made_of_them(which, request):
    extraction = request.getfixturevalue(which)
    found = analyze(extraction, bootstrap=Bootstrap(resamples=20))
    alone = [extraction.kept_mask(block).sum() for block in extraction.stages]
    assert found.kept.clusters.kept.sum(axis=1).tolist() == alone
    results = examples(extraction, count=2)
    figure = retained_patches_figure(results, extraction.config)
    titles = [panel.get_title() for row in figure.subfigs for panel in row.axes if panel.images]
    tokens = {"fused": (24, 13), "merged": (26, 21)}[which]
    assert titles[1:3] == [
        f"after block {block}: {count} tokens of {PATCHES} patches" for block, count in enumerate(tokens)
    ]
