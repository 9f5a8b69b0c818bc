"""How good a model is on a data set at one or several keep rates: every clip read, decoded and turned to log-mel once.

Batches come from `jaxprune.data.batches.eval_batches` through a `jaxprune.data.prefetch.Feed`, so that the devices need
not wait; metrics are `jaxprune.evaluation.metrics`'. Weights are arguments of the compiled programs, which are kept:
evaluating each epoch of a training run compiles in the first only. `scripts/evaluate.py` is the command,
`jaxprune.training.loop` the other user.
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
from jaxtyping import Array, Bool, Float, Int

from jaxprune.config import Activation, Card
from jaxprune.cost import macs
from jaxprune.data.batches import Batches
from jaxprune.data.prefetch import Feed
from jaxprune.evaluation.metrics import LOSS_OF, Accuracy, Scores
from jaxprune.features import model_input
from jaxprune.models import Classifier, topk
from jaxprune.parallel.devices import Layout, on_host
from jaxprune.reduction.policy import DEFAULT_BLOCKS, Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One policy's cost and quality. `metrics` are shares from 0 to 1 (d_prime excepted), the one to choose by first:
    top1 and top5 where every clip has one class, else mean_average_precision, auc and d_prime.

    `loss` is the clips' mean of what the model was trained with: cross-entropy where its card says softmax, else the
    binary one. `macs` are for one clip, as `jaxprune.cost.macs` counts them.
    """

    macs: int
    saving: float
    loss: float
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over a split found, by keep rate in the order they were asked for.

    All metrics are from the same `clips`; `classes_present` of the `classes` have one: those that mAP is the mean of.
    `unusable` maps the files that were left out to the reason.

    `seconds` are all it took, of which `compiling` came before anything was read. From then to the last answer it went
    at `clips_per_second`, from files to answers of all rates together; `waited` are the seconds of it that went by
    waiting for data, and `device_idle` its share in which the devices had no work queued because data was awaited, as
    `jaxprune.data.prefetch.Feed` measures it. Of several processes, each tells its own unusable files and speed.
    """

    rates: Mapping[float, Measured]
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
        """Everything in JSON's types; a number that is not finite becomes None."""
        rows = [
            {
                "keep_rate": rate,
                "gmacs": found.macs / 1e9,
                "saving": found.saving,
                **{name: value if math.isfinite(value) else None for name, value in found.metrics.items()},
                "loss": found.loss if math.isfinite(found.loss) else None,
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
    layout: Layout | None = None,
    watch: Callable[[int], None] = lambda clips: None,
) -> Evaluation:
    """Runs every batch that is left through the model under each policy, and counts rows of positive weight.

    `policies` are named by their keep rates, as `keep_policies` gives them. `card` normalises the features and decides
    the loss; `single_label` (a `Dataset` knows) decides the metrics. The devices of `layout` (default: one) share each
    batch, and the weights lie on them. `watch` is told how many clips are on their way or done.

    One compilation for the features and one for each policy of another structure, kept for later calls with a model of
    the same structure, whatever its weights. Raises `ValueError` for no policies, another number of classes than the
    model's, a batch that the devices cannot share, no usable clip, and scores that are not numbers.
    """
    if not policies:
        raise ValueError("there is nothing to evaluate; give at least one policy")
    layout = Layout(jax.local_devices()[:1]) if layout is None else layout
    shapes = layout.shapes(batches.blank[:4])
    clips, labelled = shapes[2].shape
    if labelled != model.config.classes:
        raise ValueError(f"the clips are labelled with {labelled} classes, but the model has {model.config.classes}")
    layout.check(clips)
    started = time.perf_counter()
    graph, state = nnx.split(model)
    program = _program(graph, card.activation, whole=layout.whole, rows=layout.rows)
    config = model.config
    features = functools.partial(
        _features(layout.rows), frames=config.frames, mean=card.mean, std=card.std, mels=config.mels
    )
    asked = {rate: jax.tree.flatten(policy) for rate, policy in policies.items()}
    _compile(program, features, state, shapes=shapes, asked=asked)
    began = time.perf_counter()
    tallies = {rate: _Tally() for rate in policies}
    done, running = 0, None
    with Feed(batches, place=layout.share) as feed:
        for batch, (waveforms, lengths, targets, weights) in feed:
            mel = features(waveforms, lengths)
            answers = {
                rate: program(state, mel, targets, weights, numbers, policy=structure)
                for rate, (numbers, structure) in asked.items()
            }
            feed.queued(answers)
            if running:  # the batch before is collected only now, so that the devices need not wait for the host
                _collect(*running, tallies=tallies, single_label=single_label)
            running = answers, (targets, weights)
            done += int((batch.indices >= 0).sum())
            watch(done)
        if running:
            _collect(*running, tallies=tallies, single_label=single_label)
        ended = time.perf_counter()
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
        rates[rate] = Measured(macs=cost, saving=1 - cost / unpruned, loss=tally.loss / clips, metrics=metrics)
    return Evaluation(
        rates=rates,
        clips=clips,
        classes=model.config.classes,
        classes_present=int(np.sum(present)),
        unusable=dict(batches.unusable),
        seconds=ended - started,
        compiling=began - started,
        clips_per_second=done / (ended - began),
        waited=feed.waited,
        device_idle=feed.idle / (ended - began),
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


@struct.dataclass
class _Sums:
    """What one policy makes of a batch, added up: the losses, counts of right answers, and of real rows with a NaN.

    `present` says which classes have a clip; it is here to be counted over the rows of all processes.
    """

    loss: Float[Array, ""]
    accuracy: Accuracy
    broken: Int[Array, ""]
    present: Bool[Array, "y"]


# A batch's logits, and its sums.
_Answers = tuple[Float[Array, "b y"], _Sums]


@functools.lru_cache(maxsize=8)
def _features(rows: NamedSharding) -> Callable[..., Float[Array, "b t f"]]:
    """`jaxprune.features.model_input`, its rows where the waveforms' are."""
    return jax.jit(model_input, static_argnames=("frames", "mels"), out_shardings=rows)


@functools.lru_cache(maxsize=8)
def _program(
    graph: nnx.GraphDef, activation: Activation, *, whole: NamedSharding, rows: NamedSharding
) -> Callable[..., _Answers]:
    """`(state, mel, targets, weights, numbers, policy) -> _Answers` for every model of this structure: weights are
    arguments, and so are a policy's numbers; its structure is fixed."""

    @functools.partial(jax.jit, static_argnames="policy", out_shardings=(rows, whole))
    def run(state, mel, targets, weights, numbers, *, policy):
        state = jax.lax.with_sharding_constraint(state, whole)  # XLA might gather activations rather than weights
        logits = nnx.merge(graph, state)(mel, jax.tree.unflatten(policy, numbers)).logits
        real = weights > 0
        loss = jnp.sum(LOSS_OF[activation](logits, targets), where=real)
        broken = jnp.sum(jnp.isnan(logits).any(axis=1) & real)
        present = ((targets > 0) & real[:, None]).any(axis=0)
        return logits, _Sums(loss, Accuracy.empty().add(logits, targets, weights=weights), broken, present)

    return run


def _compile(program: Any, features: Any, state: Any, *, shapes: tuple[Any, ...], asked: Mapping[float, Any]) -> None:
    """Compiles all that is not yet compiled, before anything is read: the speed that is told is then all reading and
    computing."""
    waveforms, lengths, targets, weights = shapes
    lowered = features.func.lower(waveforms, lengths, **features.keywords)
    lowered.compile()
    mel = jax.ShapeDtypeStruct(lowered.out_info.shape, lowered.out_info.dtype, sharding=waveforms.sharding)
    for numbers, structure in asked.values():
        program.lower(state, mel, targets, weights, numbers, policy=structure).compile()


class _Tally:
    """What one policy has answered so far, on the host."""

    def __init__(self):
        self.first = self.among_five = self.clips = self.broken = 0
        self.loss = 0.0
        self.present = False  # of each class, from the first batch on
        self.scores = Scores()

    def count(self, sums: _Sums) -> None:
        accuracy = sums.accuracy
        counts = jax.device_get((accuracy.first, accuracy.among_five, accuracy.clips, sums.broken))
        first, among_five, clips, broken = map(int, counts)
        self.present = self.present | np.asarray(sums.present)
        self.loss += float(sums.loss)
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
    answers: Mapping[float, _Answers],
    truth: tuple[Float[Array, "b y"], Float[Array, "b"]],
    *,
    tallies: Mapping[float, _Tally],
    single_label: bool,
) -> None:
    """Adds a batch's answers to the tallies, waiting for them; the logits themselves only where a metric needs them."""
    targets, weights = (None, None) if single_label else map(on_host, truth)
    for rate, (logits, sums) in answers.items():
        tallies[rate].count(sums)
        if not single_label:
            tallies[rate].scores.add(on_host(logits), targets, weights=weights)
