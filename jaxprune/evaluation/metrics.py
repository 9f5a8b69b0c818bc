"""Losses and metrics: top-1 and top-5 accuracy, average precision, AUC and d-prime.

Losses and accuracy are sums inside a jitted step. Average precision and AUC need every score at once, so `Scores`
collects scores on the host. Rows of weight 0 (padding of a last batch) never count. Every result carries its number of
clips. Labels are `(b, y)`: one-hot, multi-hot, or mixed.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num
from scipy.special import ndtri
from scipy.stats import rankdata


def binary_cross_entropy(logits: Float[Array, "b y"], labels: Float[Array, "b y"]) -> Float[Array, "b"]:
    """Each clip's binary cross-entropy, averaged over classes. Labels lie in [0, 1]."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=1)


def cross_entropy(logits: Float[Array, "b y"], labels: Float[Array, "b y"]) -> Float[Array, "b"]:
    """Each clip's cross-entropy of the softmax. Labels add to 1, also after mixing."""
    return optax.softmax_cross_entropy(logits, labels)


LOSSES = {"bce": binary_cross_entropy, "ce": cross_entropy}
# The training loss, by how logits become probabilities.
LOSS_OF = {"sigmoid": binary_cross_entropy, "softmax": cross_entropy}


def weighted_mean(values: Float[Array, "b"], weights: Num[Array, "b"]) -> Float[Array, ""]:
    """The mean over rows of positive weight, or 0 without any. The other rows may hold anything."""
    total = jnp.sum(values, where=weights > 0)
    return total / jnp.maximum(jnp.sum(weights > 0), 1)


@struct.dataclass
class Accuracy:
    """Counts of clips, and of those whose class has the highest score or one of the five highest.

    The class is the label's largest entry. Of equal scores the lower class ranks higher, as in argmax. A clip whose
    scores are not numbers counts as wrong. Begin with `Accuracy.empty()`, `add` under jit, then read `top1` and `top5`.
    """

    first: Int[Array, ""]
    among_five: Int[Array, ""]
    clips: Int[Array, ""]

    @classmethod
    def empty(cls) -> "Accuracy":
        """The counts before the first batch."""
        return cls(jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def add(self, logits: Float[Array, "b y"], labels: Float[Array, "b y"], *, weights: Num[Array, "b"]) -> "Accuracy":
        """The counts with one more batch."""
        rank, real = rank_of_class(logits, labels), weights > 0
        return Accuracy(
            self.first + jnp.sum((rank < 1) & real),
            self.among_five + jnp.sum((rank < 5) & real),
            self.clips + jnp.sum(real),
        )

    @property
    def top1(self) -> float:
        """Share of clips, 0 to 1; not a number without clips."""
        return int(self.first) / int(self.clips) if self.clips else math.nan

    @property
    def top5(self) -> float:
        """Share of clips, 0 to 1; not a number without clips."""
        return int(self.among_five) / int(self.clips) if self.clips else math.nan


def rank_of_class(logits: Float[Array, "b y"], labels: Float[Array, "b y"]) -> Int[Array, "b"]:
    """The number of classes that rank above the clip's own. 0 is best."""
    own = labels.argmax(axis=1, keepdims=True)
    score = jnp.take_along_axis(logits, own, axis=1)
    behind = (logits < score) | ((logits == score) & (jnp.arange(logits.shape[1])[None] > own))
    return logits.shape[1] - 1 - behind.sum(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """Metrics of the order that scores give the clips of each class, averaged over classes.

    `mean_average_precision` is over the classes with a positive clip, `auc` over those that also have a negative one.
    `without_positives` and `without_negatives` count the other classes. `d_prime` is sqrt(2) times the normal quantile
    of the mean AUC, as AudioSet's authors and AST report it. The first two are shares from 0 to 1. A metric is not a
    number if no class counts.
    """

    mean_average_precision: float
    auc: float
    d_prime: float
    clips: int
    classes: int
    without_positives: int
    without_negatives: int


class Scores:
    """Scores and labels of an evaluation, batch by batch, on the host."""

    def __init__(self):
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []

    def add(
        self,
        logits: Float[Array | np.ndarray, "b y"],
        labels: Num[Array | np.ndarray, "b y"],
        *,
        weights: Num[Array | np.ndarray, "b"],
    ) -> None:
        """Adds a batch. Logits may be probabilities or anything of the same order."""
        real = np.asarray(weights) > 0
        self.batches.append((np.asarray(logits)[real], np.asarray(labels)[real] > 0.5))

    def ranking(self) -> Ranking:
        """The metrics of everything added. Raises `ValueError` for no clip and for scores that are not numbers."""
        if not any(len(scores) for scores, _ in self.batches):
            raise ValueError("no clip was evaluated; add at least one batch with a clip in it")
        scores, labels = (np.concatenate(column) for column in zip(*self.batches, strict=True))
        return ranking(scores, labels)


def ranking(scores: Float[np.ndarray, "clips y"], labels: Bool[np.ndarray, "clips y"]) -> Ranking:
    """`Ranking` of scores against true labels. Raises `ValueError` for scores that are not numbers."""
    if bad := int(np.isnan(scores).any(axis=1).sum()):
        raise ValueError(f"{bad} of {len(scores)} clips have scores that are not numbers")
    positives = labels.sum(axis=0)
    found = positives > 0
    both = found & (positives < len(labels))
    precision = [average_precision(scores[:, y], labels[:, y]) for y in np.flatnonzero(found)]
    area = [area_under_curve(scores[:, y], labels[:, y]) for y in np.flatnonzero(both)]
    auc = float(np.mean(area)) if area else math.nan
    return Ranking(
        mean_average_precision=float(np.mean(precision)) if precision else math.nan,
        auc=auc,
        d_prime=float(math.sqrt(2) * ndtri(auc)),
        clips=len(labels),
        classes=labels.shape[1],
        without_positives=int((~found).sum()),
        without_negatives=int((positives == len(labels)).sum()),
    )


def average_precision(scores: Float[np.ndarray, "clips"], labels: Bool[np.ndarray, "clips"]) -> float:
    """The sum over thresholds of precision times the recall added, as in scikit-learn. Needs a positive label.

    It does not interpolate. Equal scores share a threshold.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(labels[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # the end of each run of equal scores
    precision = hits[last] / (last + 1)
    return float(np.sum(precision * np.diff(hits[last], prepend=0)) / hits[-1])


def area_under_curve(scores: Float[np.ndarray, "clips"], labels: Bool[np.ndarray, "clips"]) -> float:
    """The chance that a positive clip scores above a negative one. Ties count half. Needs one clip of each."""
    ranks, positives = rankdata(scores), int(labels.sum())
    above = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(labels) - positives)))
