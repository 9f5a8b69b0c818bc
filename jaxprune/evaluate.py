"""How good a model is on a data set at one or several keep rates: every clip read, decoded and turned to log-mel once.

Batches come from `jaxprune.data.eval_batches`, metrics are `jaxprune.metrics`'. Weights are arguments of the compiled
programs, which are kept: evaluating each epoch of a training run compiles in the first only. `scripts/evaluate.py` is
the command.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.data import Batches
from jaxprune.features import model_input
from jaxprune.metrics import Accuracy, Scores
from jaxprune.models import Classifier, topk
from jaxprune.prune import DEFAULT_BLOCKS, Policy
from jaxprune.records import Dataset, first_few
from jaxprune.sharding import on_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One policy's cost and quality. `metrics` are shares from 0 to 1 (d_prime excepted), the one to choose by first:
    top1 and top5 where every clip has one class, else mean_average_precision, auc and d_prime.

    `macs` are for one clip, as `jaxprune.cost.macs` counts them.
    """

    macs: int
    saving: float
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over a split found, by keep rate in the order they were asked for.

    All metrics are from the same `clips`; `classes_present` of the `classes` have one: those that mAP is the mean of.
    `unusable` maps the files that were left out to the reason. `clips_per_second` is of all rates together from the
    second batch on, because the first may compile; None where there is no second. `waited` is the part of `seconds`
    that went by waiting for data. Of several processes, each tells its own unusable files and speed.
    """

    rates: Mapping[float, Measured]
    clips: int
    classes: int
    classes_present: int
    unusable: Mapping[str, str]
    seconds: float
    waited: float
    clips_per_second: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything in JSON's types; a metric that is not a finite number becomes None."""
        rows = [
            {
                "keep_rate": rate,
                "gmacs": found.macs / 1e9,
                "saving": found.saving,
                **{name: value if math.isfinite(value) else None for name, value in found.metrics.items()},
                "clips": self.clips,
            }
            for rate, found in self.rates.items()
        ]
        rest = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "rates"}
        return {"rates": rows} | rest | {"unusable": dict(self.unusable)}


def evaluate(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    policies: Mapping[float, Policy],
    single_label: bool,
    place: Callable[[Any], Any] = jax.device_put,
    watch: Callable[[int], None] = lambda clips: None,
) -> Evaluation:
    """Runs every batch that is left through the model under each policy, and counts rows of positive weight.

    `policies` are named by their keep rates, as `keep_policies` gives them. `card` normalises the features;
    `single_label` (a `Dataset` knows) decides the metrics. `place` puts a tuple of arrays with the batch first onto the
    devices that hold the weights: the default is for one device. `watch` is told how many clips are done.

    One compilation for the features and one for each policy of another structure, kept for later calls with a model of
    the same structure, whatever its weights. Raises `ValueError` for no policies, another number of classes than the
    model's, no usable clip, and scores that are not numbers.
    """
    if not policies:
        raise ValueError("there is nothing to evaluate; give at least one policy")
    graph, state = nnx.split(model)
    program = _program(graph)
    tallies = {rate: _Tally() for rate in policies}
    began, waited_before = time.perf_counter(), batches.waited
    done, first, running = 0, None, None
    for batch in batches:
        if batch.targets.shape[1] != model.config.classes:
            raise ValueError(
                f"the clips are labelled with {batch.targets.shape[1]} classes, but the model has "
                f"{model.config.classes}"
            )
        waveforms, lengths, targets, weights = place(batch[:4])
        mel = _features(waveforms, lengths, frames=model.config.frames, mean=card.mean, std=card.std)
        started = {rate: program(state, mel, targets, weights, policy) for rate, policy in policies.items()}
        if running:  # the batch before is collected only now, so that the device need not wait for the host
            _collect(*running, tallies=tallies, single_label=single_label)
        running = started, (targets, weights)
        done += int((batch.indices >= 0).sum())
        if first is None:
            jax.block_until_ready(started)
            first = done, time.perf_counter()
        watch(done)
    if running:
        _collect(*running, tallies=tallies, single_label=single_label)
    ended = time.perf_counter()
    later = done - first[0] if first else 0
    clips, present = next((tally.clips, tally.present) for tally in tallies.values())
    if not clips:
        raise ValueError(f"none of the {done} clips could be used, so there is nothing to report")
    unpruned = macs(model, topk(model, {}))
    rates = {}
    for rate, tally in tallies.items():
        if tally.broken:
            raise ValueError(f"{tally.broken} of {clips} clips have scores that are not numbers at keep rate {rate:g}")
        cost = macs(model, policies[rate])
        metrics = tally.accuracy() if single_label else tally.ranking()
        rates[rate] = Measured(macs=cost, saving=1 - cost / unpruned, metrics=metrics)
    return Evaluation(
        rates=rates,
        clips=clips,
        classes=model.config.classes,
        classes_present=int(np.sum(present)),
        unusable=dict(batches.unusable),
        seconds=ended - began,
        waited=batches.waited - waited_before,
        clips_per_second=later / (ended - first[1]) if later else None,
    )


def keep_policies(
    model: Classifier, keep_rates: Iterable[float], *, blocks: Iterable[int] = DEFAULT_BLOCKS
) -> dict[float, Policy]:
    """The published pruning at each keep rate, the same in all `blocks`, for `evaluate`.

    Raises `ValueError` for no rate or block, one given twice, a rate outside (0, 1] and a block the model lacks.
    """
    keep_rates, blocks = tuple(keep_rates), tuple(blocks)
    for name, values in (("keep rates", keep_rates), ("blocks", blocks)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"the {name} are {list(values)}; name at least one, and each once")
    return {rate: topk(model, dict.fromkeys(blocks, rate)) for rate in keep_rates}


def check_labels(card: Card, dataset: Dataset) -> None:
    """Raises `ValueError` unless a model's outputs mean the data set's classes: the same names in the same order.

    A card without names passes on the number of classes alone: the caller should say so.
    """
    if card.model.classes != len(dataset.labels):
        raise ValueError(f"the checkpoint has {card.model.classes} classes, but {dataset.name} {len(dataset.labels)}")
    if not card.labels or card.labels == dataset.labels:
        return
    pairs = zip(card.labels, dataset.labels, strict=True)
    different = [f"{y} is {mine!r}, not {theirs!r}" for y, (mine, theirs) in enumerate(pairs) if mine != theirs]
    if sorted(card.labels) == sorted(dataset.labels):
        why = "has the same classes in another order (a label file in the checkpoint's order mends that)"
    else:
        why = "has other classes"
    raise ValueError(f"{dataset.name} {why}; in the checkpoint class {first_few(different)}")


@struct.dataclass
class _Answers:
    """What one policy makes of a batch: its logits, counts of right answers, and of real rows with a NaN.

    `present` says which classes have a clip; it is here to be counted over the rows of all processes.
    """

    logits: Float[Array, "b y"]
    accuracy: Accuracy
    broken: Int[Array, ""]
    present: Bool[Array, "y"]


_features = jax.jit(model_input, static_argnames="frames")


@functools.lru_cache(maxsize=8)
def _program(graph: nnx.GraphDef) -> Callable[..., _Answers]:
    """`(state, mel, targets, weights, policy) -> _Answers` for every model of this structure: weights are arguments."""

    @jax.jit
    def run(state, mel, targets, weights, policy):
        logits = nnx.merge(graph, state)(mel, policy).logits
        real = weights > 0
        broken = jnp.sum(jnp.isnan(logits).any(axis=1) & real)
        present = ((targets > 0) & real[:, None]).any(axis=0)
        return _Answers(logits, Accuracy.empty().add(logits, targets, weights=weights), broken, present)

    return run


class _Tally:
    """What one policy has answered so far, on the host."""

    def __init__(self):
        self.first = self.among_five = self.clips = self.broken = 0
        self.present = False  # of each class, from the first batch on
        self.scores = Scores()

    def count(self, answers: _Answers) -> None:
        accuracy = answers.accuracy
        counts = jax.device_get((accuracy.first, accuracy.among_five, accuracy.clips, answers.broken))
        first, among_five, clips, broken = map(int, counts)
        self.present = self.present | np.asarray(answers.present)
        self.first += first
        self.among_five += among_five
        self.clips += clips
        self.broken += broken

    def accuracy(self) -> dict[str, float]:
        return {"top1": self.first / self.clips, "top5": self.among_five / self.clips}

    def ranking(self) -> dict[str, float]:
        found = self.scores.ranking()
        return {
            "mean_average_precision": found.mean_average_precision,
            "auc": found.auc,
            "d_prime": found.d_prime,
        }


def _collect(
    started: Mapping[float, _Answers],
    truth: tuple[Float[Array, "b y"], Float[Array, "b"]],
    *,
    tallies: Mapping[float, _Tally],
    single_label: bool,
) -> None:
    """Adds a batch's answers to the tallies, waiting for them; the logits themselves only where a metric needs them."""
    targets, weights = (None, None) if single_label else map(on_host, truth)
    for rate, answers in started.items():
        tallies[rate].count(answers)
        if not single_label:
            tallies[rate].scores.add(on_host(answers.logits), targets, weights=weights)
