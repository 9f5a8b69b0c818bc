import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.evaluation.metrics import (
    LOSSES,
    Accuracy,
    Scores,
    area_under_curve,
    average_precision,
    binary_cross_entropy,
    cross_entropy,
    rank_of_class,
    ranking,
    weighted_mean,
)

sklearn = pytest.importorskip("sklearn.metrics")
RNG = np.random.default_rng(0)
CLIPS, CLASSES = 200, 12
LOGITS = RNG.standard_normal((CLIPS, CLASSES)).astype(np.float32)
CLASS = RNG.integers(0, CLASSES, CLIPS)
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[CLASS]
MULTI_HOT = (RNG.random((CLIPS, CLASSES)) < 0.2).astype(np.float32)


def padded(batch, *, to, fill):
    return np.concatenate([batch, np.full((to - len(batch), *batch.shape[1:]), fill, batch.dtype)])


@pytest.mark.parametrize("fill", [0.0, 1e9, np.nan])
def test_accuracy_over_padded_batches_equals_scikit_learn(fill):
    counts, add = Accuracy.empty(), jax.jit(lambda c, x, y, w: c.add(x, y, weights=w))
    for start in range(0, CLIPS, 64):
        batch = slice(start, start + 64)
        weights = padded(np.ones(len(LOGITS[batch]), np.float32), to=64, fill=0)
        counts = add(counts, padded(LOGITS[batch], to=64, fill=fill), padded(ONE_HOT[batch], to=64, fill=0), weights)
    assert int(counts.clips) == CLIPS
    assert counts.top1 == sklearn.accuracy_score(CLASS, LOGITS.argmax(1))
    assert counts.top5 == sklearn.top_k_accuracy_score(CLASS, LOGITS, k=5)


def test_of_equal_scores_the_lower_class_stands_first():
    logits, labels = jnp.asarray([[1.0, 2.0, 2.0, 0.0]] * 4), jnp.eye(4)
    assert rank_of_class(logits, labels).tolist() == [2, 0, 1, 3]


def test_scores_that_are_not_numbers_are_wrong():
    logits = jnp.full((1, CLASSES), jnp.nan)
    counts = Accuracy.empty().add(logits, jnp.eye(CLASSES)[:1], weights=jnp.ones(1))
    assert (counts.top1, counts.top5, int(counts.clips)) == (0, 0, 1)


def test_no_clips_is_no_number():
    assert math.isnan(Accuracy.empty().top1)
    assert math.isnan(Accuracy.empty().top5)


def test_ranking_over_padded_batches_equals_scikit_learn():
    scores = Scores()
    for start in range(0, CLIPS, 64):
        batch = slice(start, start + 64)
        weights = padded(np.ones(len(LOGITS[batch])), to=64, fill=0)
        scores.add(padded(LOGITS[batch], to=64, fill=np.nan), padded(MULTI_HOT[batch], to=64, fill=1), weights=weights)
    found = scores.ranking()
    assert found.clips == CLIPS
    assert found.classes == CLASSES
    assert found.without_positives == found.without_negatives == 0
    np.testing.assert_allclose(
        found.mean_average_precision, sklearn.average_precision_score(MULTI_HOT, LOGITS), rtol=1e-12
    )
    auc = sklearn.roc_auc_score(MULTI_HOT, LOGITS)
    np.testing.assert_allclose(found.auc, auc, rtol=1e-12)
    from scipy.stats import norm

    np.testing.assert_allclose(found.d_prime, math.sqrt(2) * norm.ppf(auc), rtol=1e-12)


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_treated_as_scikit_learn_does(levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, 60).astype(np.float32)
    labels = rng.random(60) < 0.3
    labels[:2] = [True, False]
    np.testing.assert_allclose(
        average_precision(scores, labels), sklearn.average_precision_score(labels, scores), rtol=1e-12
    )
    np.testing.assert_allclose(area_under_curve(scores, labels), sklearn.roc_auc_score(labels, scores), rtol=1e-12)


def test_classes_that_cannot_be_ranked_are_left_out_and_counted():
    labels = MULTI_HOT > 0.5
    labels[:, 0], labels[:, 1] = False, True
    found = ranking(LOGITS, labels)
    assert (found.without_positives, found.without_negatives) == (1, 1)
    np.testing.assert_allclose(
        found.mean_average_precision, sklearn.average_precision_score(labels[:, 1:], LOGITS[:, 1:]), rtol=1e-12
    )
    np.testing.assert_allclose(found.auc, sklearn.roc_auc_score(labels[:, 2:], LOGITS[:, 2:]), rtol=1e-12)


def test_without_any_class_to_rank_the_metrics_are_no_numbers():
    found = ranking(LOGITS, np.zeros((CLIPS, CLASSES), bool))
    assert math.isnan(found.mean_average_precision)
    assert math.isnan(found.auc)
    assert math.isnan(found.d_prime)


def test_no_scores_and_broken_scores_are_refused():
    scores = Scores()
    scores.add(LOGITS[:4], MULTI_HOT[:4], weights=np.zeros(4))
    with pytest.raises(ValueError, match="no clip"):
        scores.ranking()
    scores.add(np.full((2, CLASSES), np.nan, np.float32), MULTI_HOT[:2], weights=np.ones(2))
    with pytest.raises(ValueError, match="2 of 2 clips"):
        scores.ranking()


@pytest.mark.parametrize("labels", [ONE_HOT, 0.3 * ONE_HOT + 0.7 * ONE_HOT[::-1]])
def test_losses_equal_pytorch_on_hard_and_mixed_labels(labels):
    torch = pytest.importorskip("torch")
    logits, targets = torch.from_numpy(LOGITS), torch.from_numpy(labels.astype(np.float32))
    for ours, theirs in (
        (binary_cross_entropy, torch.nn.BCEWithLogitsLoss()),
        (cross_entropy, torch.nn.CrossEntropyLoss()),
    ):
        found = ours(jnp.asarray(LOGITS), jnp.asarray(targets.numpy()))
        assert found.shape == (CLIPS,)
        np.testing.assert_allclose(found.mean(), theirs(logits, targets).item(), rtol=1e-6)
    assert LOSSES["bce"] is binary_cross_entropy
    assert LOSSES["ce"] is cross_entropy


def test_a_weighted_mean_ignores_whatever_stands_in_padded_rows():
    values, weights = jnp.asarray([1.0, 3.0, jnp.nan, jnp.inf]), jnp.asarray([1, 1, 0, 0])
    assert weighted_mean(values, weights) == 2
    assert weighted_mean(values, jnp.zeros(4)) == 0
    np.testing.assert_array_equal(jax.grad(weighted_mean)(jnp.ones(4), weights), [0.5, 0.5, 0, 0])
