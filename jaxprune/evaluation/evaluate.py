"""Measures quality and cost of a model on a data set at several keep rates, in one pass over the clips.

Every clip is read, decoded and turned to log-mel once. Batches come from `jaxprune.data.batches.eval_batches`, the loop
from `forward_pass`, the metrics from `metrics`. Compiled programs are kept and take the weights as arguments. So a
training run that evaluates each epoch compiles only in the first. `jaxprune evaluate` and `jaxprune.training.loop` use
this module.
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
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float

from jaxprune.amounts import Amount, in_words
from jaxprune.config import Activation, Card
from jaxprune.cost import macs
from jaxprune.data.batches import Batch, Batches
from jaxprune.evaluation.forward_pass import Started, check_classes, finite_rows, forward_pass
from jaxprune.evaluation.metrics import LOSS_OF, Accuracy, Scores
from jaxprune.features import STATIC, model_input
from jaxprune.models import Classifier, for_inference, topk
from jaxprune.parallel.devices import Layout, on_host
from jaxprune.reduction.policy import Policy, at_blocks
from jaxprune.registry import MethodName, reduced

Name = Amount | str  # of a policy


def named(name: Name) -> str:
    """A name in words, such as `keep rate 0.7` or `saving 0.3`."""
    return f"keep rate {name:g}" if isinstance(name, float | int) else name if isinstance(name, str) else in_words(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateResult:
    """One policy's cost and quality.

    `metrics` are shares from 0 to 1, except d_prime. The one to choose by comes first. They are top1 and top5 if every
    clip has one class, else mean_average_precision, auc and d_prime. `loss` is the mean over clips: cross-entropy if
    the model's card says softmax, else binary cross-entropy. `macs` are for one clip, as `jaxprune.cost.macs` counts.
    """

    macs: int
    saving: float
    loss: float
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Results of one pass over a split, by keep rate or other amount (`jaxprune.amounts`) in the order asked for.

    All metrics are from the same `clips`. `classes_present` of the `classes` have a clip, and mAP is the mean over
    those. `unusable` maps each left-out file to the reason.

    `seconds` is the whole time. `compiling` is the part before the first file was read. `clips_per_second` counts the
    rest, from files to answers of all rates together. `waited` is the seconds of it spent waiting for data.
    `device_idle` is the share of it in which the devices had no work because data was missing
    (`jaxprune.data.prefetch.Feed` measures it). Each of several processes reports its own unusable files and speed.
    """

    rates: Mapping[Name, RateResult]
    clips: int
    classes: int
    classes_present: int
    unusable: Mapping[str, str]
    seconds: float
    compiling: float
    clips_per_second: float
    waited: float
    device_idle: float

    def to_json(self) -> dict[str, Any]:
        """Everything in JSON's types. A number that is not finite becomes None."""
        rows = [
            {
                "keep_rate": amount if isinstance(amount, float | int) else None,
                "asked": amount if isinstance(amount, str) else in_words(amount),
                "gmacs": found.macs / 1e9,
                "saving": found.saving,
                **{name: value if math.isfinite(value) else None for name, value in found.metrics.items()},
                "loss": found.loss if math.isfinite(found.loss) else None,
                "clips": self.clips,
            }
            for amount, found in self.rates.items()
        ]
        rest = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "rates"}
        return {"rates": rows} | rest | {"unusable": dict(self.unusable)}


def evaluate(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    policies: Mapping[Name, Policy],
    single_label: bool,
    layout: Layout | None = None,
    watch: Callable[[int], None] = lambda clips: None,
) -> EvaluationResult:
    """Runs every remaining batch through the model under each policy. Counts rows of positive weight.

    `policies` are named by their keep rates, as `keep_policies` gives them, by other amounts, or in words. `card`
    normalises the features and decides the loss. `single_label` (a `Dataset` knows it) decides the metrics. The devices
    of `layout` (default: one) hold the weights and share each batch. `watch` gets the number of clips on their way or
    done.

    Features compile once, the model once for each structure of a policy. Later calls with a model of the same structure
    use the same programs, whatever its weights. Raises `ValueError` if there is no policy or no usable clip, if the
    model has another number of classes, if the devices cannot share a batch, and if scores are not finite.
    """
    if not policies:
        raise ValueError("there is nothing to evaluate; give at least one policy")
    check_classes(model, batches)
    layout = Layout(jax.local_devices()[:1]) if layout is None else layout
    shapes = layout.shapes(batches.blank[:4])
    layout.check(len(shapes[3]))
    began = time.perf_counter()
    programs = _Programs(model, card=card, policies=policies, layout=layout)
    programs.compile(shapes)
    compiling = time.perf_counter() - began
    tallies = {rate: _Tally() for rate in policies}
    collect = _count if single_label else _count_and_rank
    run = forward_pass(
        batches,
        place=layout.share,
        start=programs.start,
        collect=functools.partial(collect, tallies=tallies),
        watch=watch,
    )
    first = next(iter(tallies.values()))
    if not first.clips:
        raise ValueError(f"none of the {run.clips} clips could be used, so there is nothing to report")
    return EvaluationResult(
        rates=_measured(model, policies, tallies=tallies, single_label=single_label),
        clips=first.clips,
        classes=model.config.classes,
        classes_present=int(np.sum(first.present)),
        unusable=dict(batches.unusable),
        seconds=compiling + run.seconds,
        compiling=compiling,
        clips_per_second=run.clips / run.seconds,
        waited=run.waited,
        device_idle=run.idle / run.seconds,
    )


def keep_policies(
    model: Classifier, keep_rates: Iterable[float], *, blocks: Iterable[int] = (), method: MethodName = "topk"
) -> dict[float, Policy]:
    """The policies of a method at each keep rate, by default of the published one. All `blocks` use the same rate.

    The default blocks are those of 3, 6 and 9 that the model has. Raises `ValueError` for no rate, a rate or block
    given twice, a rate outside (0, 1], a block the model lacks and an unknown method.
    """
    keep_rates, blocks = tuple(keep_rates), tuple(blocks)
    if not keep_rates or len(set(keep_rates)) < len(keep_rates):
        raise ValueError(f"the keep rates are {list(keep_rates)}; name at least one, and each once")
    return {rate: reduced(model, method, at_blocks(blocks, rate)) for rate in keep_rates}


@struct.dataclass
class _Sums:
    """One policy's results for a batch, added up: the losses, and counts of right answers.

    `present` marks the classes that have a clip. It is summed here because here the rows of all processes meet.
    """

    loss: Float[Array, ""]
    accuracy: Accuracy
    present: Bool[Array, "y"]


# A batch's logits, and its sums.
_Answers = tuple[Float[Array, "b y"], _Sums]


class _Programs:
    """The compiled programs of one evaluation: features, and the model under each policy."""

    def __init__(self, model: Classifier, *, card: Card, policies: Mapping[Name, Policy], layout: Layout):
        graph, self._state = nnx.split(for_inference(model))
        self._model = _program(graph, card.activation, whole=layout.whole, rows=layout.rows)
        self._features = _features(layout.rows)
        config = model.config
        self._sound = {
            "frames": config.frames,
            "mean": card.mean,
            "std": card.std,
            "padding": card.padding,
            "mels": config.mels,
        }
        self._asked = {rate: jax.tree.flatten(policy) for rate, policy in policies.items()}

    def compile(self, shapes: tuple[Any, ...]) -> None:
        """Compiles all programs before any file is read. The reported speed then holds no compiling."""
        waveforms, lengths, targets, weights = shapes
        lowered = self._features.lower(waveforms, lengths, **self._sound)
        lowered.compile()
        mel = jax.ShapeDtypeStruct(lowered.out_info.shape, lowered.out_info.dtype, sharding=waveforms.sharding)
        for numbers, structure in self._asked.values():
            self._model.lower(self._state, mel, targets, weights, numbers, policy=structure).compile()

    def start(self, batch: Batch, placed: tuple[Array, ...]) -> Started[dict[Name, _Answers]]:
        """Starts a batch under every policy."""
        waveforms, lengths, targets, weights = placed
        mel = self._features(waveforms, lengths, **self._sound)
        answers, finite = {}, {}
        for rate, (numbers, structure) in self._asked.items():
            answers[rate], finite[f"at {named(rate)}"] = self._model(
                self._state, mel, targets, weights, numbers, policy=structure
            )
        return Started(answers, finite)


@functools.lru_cache(maxsize=8)
def _features(rows: NamedSharding) -> Callable[..., Float[Array, "b t f"]]:
    """Compiled `jaxprune.features.model_input`. Its rows lie on the devices of the waveforms' rows."""
    return jax.jit(model_input, static_argnames=STATIC, out_shardings=rows)


@functools.lru_cache(maxsize=8)
def _program(
    graph: nnx.GraphDef, activation: Activation, *, whole: NamedSharding, rows: NamedSharding
) -> Callable[..., tuple[_Answers, Bool[Array, "b"]]]:
    """`(state, mel, targets, weights, numbers, policy) -> _Answers, finite` for every model of this structure.

    Weights are arguments, and so are a policy's numbers. Its structure is fixed.
    """

    @functools.partial(jax.jit, static_argnames="policy", out_shardings=((rows, whole), whole))
    def run(state, mel, targets, weights, numbers, *, policy):
        state = jax.lax.with_sharding_constraint(state, whole)  # XLA might gather activations rather than weights
        logits = nnx.merge(graph, state)(mel, jax.tree.unflatten(policy, numbers)).logits
        real = weights > 0
        loss = jnp.sum(LOSS_OF[activation](logits, targets), where=real)
        present = ((targets > 0) & real[:, None]).any(axis=0)
        sums = _Sums(loss, Accuracy.empty().add(logits, targets, weights=weights), present)
        return (logits, sums), finite_rows(logits, weights)

    return run


class _Tally:
    """One policy's results so far, on the host."""

    def __init__(self):
        self.first = self.among_five = self.clips = 0
        self.loss = 0.0
        self.present = False  # of each class, from the first batch on
        self.scores = Scores()

    def count(self, sums: _Sums) -> None:
        accuracy = sums.accuracy
        first, among_five, clips = map(int, jax.device_get((accuracy.first, accuracy.among_five, accuracy.clips)))
        self.present = self.present | np.asarray(sums.present)
        self.loss += float(sums.loss)
        self.first += first
        self.among_five += among_five
        self.clips += clips

    def accuracy(self) -> dict[str, float]:
        return {"top1": self.first / self.clips, "top5": self.among_five / self.clips}

    def ranking(self) -> dict[str, float]:
        found = self.scores.ranking()
        return {
            "mean_average_precision": found.mean_average_precision,
            "auc": found.auc,
            "d_prime": found.d_prime,
        }


def _count(
    batch: Batch,
    placed: tuple[Array, ...],
    answers: Mapping[Name, _Answers],
    *,
    tallies: Mapping[Name, _Tally],
) -> None:
    """Adds a batch's sums to the tallies."""
    for rate, (_, sums) in answers.items():
        tallies[rate].count(sums)


def _count_and_rank(
    batch: Batch,
    placed: tuple[Array, ...],
    answers: Mapping[Name, _Answers],
    *,
    tallies: Mapping[Name, _Tally],
) -> None:
    """Adds a batch's sums to the tallies, and its logits: metrics of several labels need them."""
    targets, weights = map(on_host, placed[2:])
    for rate, (logits, sums) in answers.items():
        tallies[rate].count(sums)
        tallies[rate].scores.add(on_host(logits), targets, weights=weights)


def _measured(
    model: Classifier,
    policies: Mapping[Name, Policy],
    *,
    tallies: Mapping[Name, _Tally],
    single_label: bool,
) -> dict[Name, RateResult]:
    """Each policy's cost and quality."""
    unpruned = macs(model, topk(model, {}))
    found = {}
    for rate, tally in tallies.items():
        cost = macs(model, policies[rate])
        metrics = tally.accuracy() if single_label else tally.ranking()
        found[rate] = RateResult(macs=cost, saving=1 - cost / unpruned, loss=tally.loss / tally.clips, metrics=metrics)
    return found
