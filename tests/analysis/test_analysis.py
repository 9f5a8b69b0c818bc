"""Statistics against loops in plain Python, scipy and scikit-learn, on made extractions with ties and padding."""

import csv
import functools
import itertools
import json
import math

import numpy as np
import pytest
from analysis_cases import CLIPS, EXACT, FEW, LEVELS, ranks_by_sklearn
from helpers import ROOT
from scipy import stats
from sklearn.cluster import KMeans

from jaxprune.analysis.analyze import analyze
from jaxprune.analysis.bootstrap import Bootstrap, mean, ratio, resampled
from jaxprune.analysis.clusters import k_means
from jaxprune.analysis.kendall import pair_counts
from jaxprune.analysis.retained import attention_contrast, block_overlap, histograms, overlap
from jaxprune.analysis.tables import Table

SCRIPT = ROOT / "scripts" / "analyze.py"


# k-means


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clusters", [2, 5, 8])
def test_ranks_are_scikit_learns(seed, clusters):
    random = np.random.default_rng(seed)
    values = np.concatenate([random.normal(-1, 0.2, 1500), random.gamma(1 + seed, 0.5, 2500)]).astype(np.float32)
    random.shuffle(values)
    theirs = KMeans(clusters, random_state=123).fit(values.astype(np.float64).reshape(-1, 1))
    ours = k_means(values, clusters=clusters)
    np.testing.assert_allclose(ours.centres, np.sort(theirs.cluster_centers_[:, 0]), atol=1e-9)
    np.testing.assert_array_equal(
        ours.ranks(values), np.argsort(np.argsort(theirs.cluster_centers_[:, 0]))[theirs.labels_]
    )
    np.testing.assert_array_equal(ours.counts, np.bincount(ours.ranks(values)))
    assert (ours.lowest, ours.highest) == (values.min(), values.max())


def test_a_value_on_a_bound_is_of_the_lower_cluster_and_shape_is_kept():
    found = k_means(np.array([0.0, 0.0, 2.0, 2.0]), clusters=2)
    assert found.bounds.tolist() == [1.0]
    assert found.ranks(np.array([[-9.0, 1.0], [1.0 + 1e-12, 9.0]])).tolist() == [[0, 0], [1, 1]]


def test_values_that_cannot_be_clustered_are_refused():
    with pytest.raises(ValueError, match="there are 2 different values, too few for 5 clusters"):
        k_means(np.array([1.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        k_means(np.array([1.0, np.nan, 1.0]), clusters=2)
    with pytest.raises(ValueError, match="clusters is 0; it must be from 1 to 127"):
        k_means(np.array([1.0]), clusters=0)


# Kendall


def loop(score, rank):
    """Published and tau-b of one clip, pair by pair; differences as the definition writes them, in float64."""
    agree = disagree = concordant = score_ties = rank_ties = pairs = 0
    for i, j in itertools.combinations(range(len(score)), 2):
        product = (float(score[i]) - float(score[j])) * (int(rank[i]) - int(rank[j]))
        agree, disagree, pairs = agree + (product >= 0), disagree + (product < 0), pairs + 1
        concordant += product > 0
        score_ties += score[i] == score[j]
        rank_ties += rank[i] == rank[j]
    loose = (pairs - score_ties) * (pairs - rank_ties)
    tau_b = (concordant - disagree) / math.sqrt(loose) if loose else math.nan
    return (agree - disagree) / pairs, tau_b


def cases():
    random = np.random.default_rng(5)
    score = random.standard_normal((12, 40)).astype(np.float32)
    score[1:6] = np.round(score[1:6], 1)  # many ties, some of them of 0.0 and -0.0
    score[6] = 0.25
    score[7] *= 1e-40  # subnormal
    rank = random.integers(0, LEVELS, score.shape).astype(np.int8)
    rank[8] = 3
    rank[9] = np.clip(np.round(2 * score[9]), 0, 4)
    return score, rank


def test_kendall_is_the_loops_and_scipys():
    score, rank = cases()
    found = pair_counts(score, rank, levels=LEVELS)
    expected = np.array([loop(*clip) for clip in zip(score, rank, strict=True)])
    np.testing.assert_allclose(found.agreement / found.pairs, expected[:, 0], atol=EXACT)
    np.testing.assert_allclose(found.tau_b, expected[:, 1], atol=EXACT)
    scipys = [stats.kendalltau(*clip).statistic for clip in zip(score, rank, strict=True)]
    np.testing.assert_allclose(found.tau_b, scipys, atol=EXACT)
    assert np.isnan(found.tau_b[[6, 8]]).all()
    assert (found.agreement[6], found.agreement[8]) == (780, 780)  # all tied: all agree


def test_dead_patches_make_no_pairs():
    score, rank = cases()
    alive = np.random.default_rng(1).random(score.shape) < 0.6
    alive[2] = False
    alive[3, 1:] = False
    score[~alive] = np.nan
    found = pair_counts(score, rank, levels=LEVELS, alive=alive)
    for i in range(len(score)):
        if i not in (2, 3):
            own = pair_counts(score[i : i + 1, alive[i]], rank[i : i + 1, alive[i]], levels=LEVELS)
            for name in ("pairs", "discordant", "score_ties", "rank_ties", "both_ties"):
                assert getattr(found, name)[i] == getattr(own, name)[0], name
    assert found.pairs[2:4].tolist() == [0, 0]


def test_the_published_definition_is_lifted_by_ties_to_its_chance_level():
    random = np.random.default_rng(2)
    score, rank = random.random((400, 30)), random.integers(0, 3, (400, 30))
    found = pair_counts(score, rank, levels=3)
    published, chance = (count.sum() / found.pairs.sum() for count in (found.agreement, found.ties))
    assert chance == pytest.approx(1 / 3, abs=0.01)
    assert published == pytest.approx(chance, abs=0.01)
    assert found.tau_b.mean() == pytest.approx(0, abs=0.01)


def test_what_cannot_be_ranked_is_refused():
    score, rank = cases()
    with pytest.raises(ValueError, match="ranks go from 0 to 4; they must lie in 0 to 2"):
        pair_counts(score, rank, levels=3)
    score[3, 4] = np.nan
    with pytest.raises(ValueError, match="some scores are not numbers"):
        pair_counts(score, rank, levels=LEVELS)


@pytest.mark.parametrize("which", ["unpruned", "pruned"])
def test_kendall_by_block_follows_the_kept_patches(extractions, which):
    extraction = extractions[which]
    found = analyze(extraction, bootstrap=FEW)
    for signal in ("mean", "std"):
        ranks = ranks_by_sklearn(extraction.column(signal))
        ours, published, tau_b = found.kendall[signal], [], []
        for block in range(4):
            above, below, taus = 0, 0, []
            for clip in range(CLIPS):
                ids = extraction.scored(block)[clip]
                one, tau = loop(extraction.score(block)[clip], ranks[clip, ids])
                pairs = len(ids) * (len(ids) - 1) // 2
                above, below, taus = above + one * pairs, below + pairs, [*taus, tau]
            published.append(above / below)
            tau_b.append(sum(taus) / CLIPS)
        np.testing.assert_allclose(ours.published.value, published, atol=1e-9)
        np.testing.assert_allclose(ours.tau_b.value, tau_b, atol=1e-9)
        assert ours.published_mean.value == pytest.approx(sum(published) / 4, abs=1e-9)
        assert ours.tau_b_mean.value == pytest.approx(sum(tau_b) / 4, abs=1e-9)
        assert (ours.published.low <= ours.published.value).all()
        assert (ours.published.value <= ours.published.high).all()
        assert ours.published_mean.low < ours.published_mean.value < ours.published_mean.high
    assert found.kendall["mean"].tau_b_mean.low > 0  # the scores were made to lean on intensity


# Intervals


def test_intervals_are_scipys():
    values = np.random.default_rng(3).gamma(2, 1, (40, 3))
    ours = mean(values, bootstrap=Bootstrap(resamples=600, confidence=0.9, seed=7))
    for i in range(3):
        theirs = stats.bootstrap(
            (values[:, i],), np.mean, n_resamples=600, confidence_level=0.9, method="percentile",
            rng=np.random.default_rng(7),
        ).confidence_interval  # fmt: skip
        assert (ours.low[i], ours.high[i]) == pytest.approx((theirs.low, theirs.high), abs=EXACT)
    np.testing.assert_allclose(ours.value, values.mean(axis=0), atol=EXACT)
    alone = mean(values[:, 1], bootstrap=Bootstrap(resamples=600, confidence=0.9, seed=7))  # one number, no axes
    assert alone.value.shape == alone.low.shape == alone.high.shape == ()
    # Some processors sum one column in another order than three.
    found = (ours.value[1], ours.low[1], ours.high[1])
    assert (float(alone.value), float(alone.low), float(alone.high)) == pytest.approx(found, abs=EXACT)


def test_ratios_are_resampled_together_and_clips_without_a_value_left_out():
    random = np.random.default_rng(4)
    above, below = random.random((30, 2, 2)), random.integers(1, 9, (30, 2, 2)).astype(float)
    value, draws = resampled(above, below, bootstrap=Bootstrap(resamples=300, seed=2))
    drawn = np.random.default_rng(2).integers(0, 30, (300, 30))
    np.testing.assert_allclose(draws, above[drawn].sum(axis=1) / below[drawn].sum(axis=1), atol=EXACT)
    np.testing.assert_allclose(value, above.sum(axis=0) / below.sum(axis=0), atol=EXACT)
    values = random.random((30, 2))
    values[:10, 0], values[:, 1] = np.nan, np.nan
    found = mean(values, bootstrap=FEW)
    assert found.value[0] == pytest.approx(values[10:, 0].mean(), abs=EXACT)
    assert found.low[0] < found.value[0] < found.high[0]
    assert np.isnan([found.value[1], found.low[1], found.high[1]]).all()
    with pytest.raises(ValueError, match="there are no clips"):
        ratio(above[:0], below[:0], bootstrap=FEW)
    with pytest.raises(ValueError, match=r"resamples is 5 and confidence 1\.5"):
        Bootstrap(resamples=5, confidence=1.5)


def test_clips_that_kept_nothing_are_left_out_of_means():
    full, none = np.ones((1, 6), bool), np.zeros((1, 6), bool)
    found = overlap(np.vstack([full, none]), np.vstack([full, full]), bootstrap=FEW)
    assert (found.shared.value, found.jaccard.value, found.chance) == (1, 0.5, 1)
    score = np.array([[0.5, 0.1, 0.4], [0.3, 0.3, 0.4]], np.float32)
    ids = np.array([[2, -1, 0], [-1, -1, -1]], np.int16)
    contrast = attention_contrast([score], [ids], np.array([[True, False, False]] * 2), bootstrap=FEW)
    assert contrast.retained.value == pytest.approx([0.4 / 0.45])
    assert contrast.auc.value == pytest.approx([0.0])
    blocks = block_overlap([score] * 2, [ids] * 2, patches=3, top=0.5, bootstrap=FEW)
    np.testing.assert_allclose(blocks.shared.value, np.ones((2, 2)))
    assert histograms(score, score, np.zeros(score.shape, bool)).after.sum() == 0


def test_bad_input_is_one_sentence(extractions):
    unpruned, pruned, mae = (extractions[name] for name in ("unpruned", "pruned", "mae"))
    assert analyze(unpruned, bootstrap=FEW).kept is None
    for arguments, why in [
        ({"unpruned": pruned}, r"pruned was extracted with pruning, at blocks \[1, 2\]"),
        ({"unpruned": mae}, "mae is of another model than .*pruned: weights m+, not a+"),
        ({"others": [unpruned]}, "unpruned was extracted without pruning, so it has no kept patches"),
    ]:
        with pytest.raises(ValueError, match=why):
            analyze(pruned, bootstrap=FEW, **arguments)
    with pytest.raises(ValueError, match="unpruned was extracted without pruning"):
        analyze(unpruned, others=[pruned], bootstrap=FEW)


# The command line


@pytest.fixture
def run(run_script):
    """Runs the script in this process: `run(*arguments) -> (exit code, stdout, stderr)`."""
    return functools.partial(run_script, SCRIPT)


def test_the_command_prints_tables_and_writes_json_and_csv(extractions, tmp_path, run):
    paths = {name: extraction.path for name, extraction in extractions.items()}
    others = ["--others", paths["harder"], paths["mae"]]
    options = ["--out", tmp_path / "out", "--bootstrap.resamples", 50]
    code, printed, said = run(paths["pruned"], "--unpruned", paths["unpruned"], *others, *options)
    assert code == 0, said
    for title in ("Kendall", "clusters", "retained to the end", "harder", "mel band", "would get"):
        assert title in printed
    expected = analyze(
        extractions["pruned"],
        unpruned=extractions["unpruned"],
        others=[extractions["harder"], extractions["mae"]],
        bootstrap=FEW,
    )
    saved = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert saved["kendall"]["std"]["tau_b"]["value"] == pytest.approx(expected.kendall["std"].tau_b.value.tolist())
    assert saved["kept"]["attention"]["auc"]["value"][3] is not None
    with open(tmp_path / "out" / "kendall.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 * (4 + 1) + 4)
    first = next(row for row in rows if (row["signal"], row["definition"], row["block"]) == ("mean", "published", "2"))
    assert float(first["value"]) == expected.kendall["mean"].published.value[2]
    names = {"kendall", "values", "clusters", "places", "attention", "overlap", "block_overlap"}
    assert {path.stem for path in (tmp_path / "out").glob("*.csv")} == names
    code, printed, said = run(paths["unpruned"], *options[:2], *options[2:])
    assert (code, "without pruning" in said) == (0, True)
    code, _, said = run(paths["unpruned"], "--others", paths["pruned"], *options)
    assert code == 2
    assert said.startswith(f"error: {paths['unpruned']} was extracted without pruning")


def test_a_cell_that_a_spreadsheet_would_run_is_quoted():
    table = Table(columns=("=name", "x"), rows=(("=1+1", -0.5), ("@a", float("nan")), ("-cmd", 1), ("plain", "-")))
    assert table.to_csv() == "'=name,x\n'=1+1,-0.5\n'@a,\n'-cmd,1\nplain,-\n"
