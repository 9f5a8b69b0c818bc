"""Collects a model's answers to every clip under several policies. Each clip is read and turned to log-mel once.

`jaxprune.evaluation.evaluate` adds up as it goes. Here clips stay apart. So policies can be compared clip by clip, and
patches counted in each. Ablations and sweeps use these answers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.config import Card
from jaxprune.data.batches import Batch, Batches
from jaxprune.evaluation.forward_pass import Started, check_classes, finite_rows, forward_pass
from jaxprune.evaluation.metrics import rank_of_class, ranking
from jaxprune.features import STATIC, model_input
from jaxprune.models import Classifier, for_inference
from jaxprune.reduction.policy import Policy

# The number of patches that each clip of a batch kept, by policy name and pruning block.
Kept = Mapping[str, Mapping[int, Int[Array, "b"]]]
# Makes the policy for a batch. It gets the clips' places in the split (-1: none) and the counts that earlier policies
# kept of the batch.
PolicyFor = Callable[[Int[Array, "b"], Kept], Policy]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers to the usable clips, in the order of the split. `index` holds their places in it.

    `ranks`, `logits` and `kept` are by policy name. If every clip has one class, `ranks` counts the classes that rank
    above it and `logits` is empty; else `logits` holds the scores and `ranks` is empty. `kept` counts the patches that
    each pruning block left. `unusable` maps left-out files to the reason.
    """

    index: Int[np.ndarray, "clips"]
    targets: Bool[np.ndarray, "clips y"]
    ranks: Mapping[str, Int[np.ndarray, "clips"]]
    logits: Mapping[str, Float[np.ndarray, "clips y"]]
    kept: Mapping[str, Mapping[int, Int[np.ndarray, "clips"]]]
    unusable: Mapping[str, str]

    @property
    def clips(self) -> int:
        """Number of clips."""
        return len(self.index)

    def metrics(self, name: str, *, among: Bool[np.ndarray, "clips"] | None = None) -> dict[str, float]:
        """Metrics of the clips `among` (None: all), named as in `evaluate`. Empty if there is no clip."""
        among = np.ones(self.clips, bool) if among is None else among
        if not among.any():
            return {}
        if self.ranks:
            ranks = self.ranks[name][among]
            return {"top1": float(np.mean(ranks < 1)), "top5": float(np.mean(ranks < 5))}
        found = ranking(self.logits[name][among], self.targets[among])
        return {
            "mean_average_precision": found.mean_average_precision,
            "auc": found.auc,
            "d_prime": found.d_prime,
        }


def answer(
    model: Classifier,
    batches: Batches,
    *,
    card: Card,
    policies: Mapping[str, PolicyFor],
    single_label: bool,
    watch: Callable[[int], None] = lambda clips: None,
) -> Answers:
    """Runs every remaining batch through the model under each policy, in their order.

    Features compile once, the model once for each structure of a policy. `watch` gets the number of clips done. Raises
    `ValueError` if there is no policy or no usable clip, if the model has another number of classes, and if scores are
    not finite.
    """
    if not policies:
        raise ValueError("there is nothing to ask; give at least one policy")
    check_classes(model, batches)
    graph, state = nnx.split(for_inference(model))
    program = _program(graph)
    rows: list[dict[str, Any]] = []
    sound = {
        "frames": model.config.frames,
        "mean": card.mean,
        "std": card.std,
        "padding": card.padding,
        "mels": model.config.mels,
    }

    def start(batch: Batch, placed: tuple[Array, ...]) -> Started[dict[str, _Found]]:
        waveforms, lengths, targets, weights = placed
        mel = _features(waveforms, lengths, **sound)
        indices, found, finite = jnp.asarray(batch.indices), {}, {}
        for name, policy_for in policies.items():
            kept = {before: one.kept for before, one in found.items()}
            found[name], finite[f"under {name}"] = program(state, mel, targets, weights, policy_for(indices, kept))
        return Started(found, finite)

    def collect(batch: Batch, placed: tuple[Array, ...], found: Mapping[str, _Found]) -> None:
        rows.append(_rows(batch, found, single_label=single_label))

    done = forward_pass(batches, place=jax.device_put, start=start, collect=collect, watch=watch).clips
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    if not len(joined["index"]):
        raise ValueError(f"none of the {done} clips could be used, so there is nothing to report")
    return Answers(**joined, unusable=dict(batches.unusable))


@struct.dataclass
class _Found:
    """One policy's results for a batch."""

    logits: Float[Array, "b y"]
    rank: Int[Array, "b"]
    kept: dict[int, Int[Array, "b"]]


_features = jax.jit(model_input, static_argnames=STATIC)


@functools.lru_cache(maxsize=8)
def _program(graph: nnx.GraphDef) -> Callable[..., tuple[_Found, Bool[Array, "b"]]]:
    """`(state, mel, targets, weights, policy) -> _Found, finite` for every model of this structure."""

    @jax.jit
    def run(state, mel, targets, weights, policy):
        output = nnx.merge(graph, state)(mel, policy)
        kept = {block: output.trace[block].alive.sum(axis=1) for block in policy.stages}
        found = _Found(output.logits, rank_of_class(output.logits, targets), kept)
        return found, finite_rows(output.logits, weights)

    return run


def _rows(batch: Batch, found: Mapping[str, _Found], *, single_label: bool) -> dict[str, Any]:
    """A batch's real rows on the host. Waits for the device. Holds logits only if a metric needs them."""
    real = np.flatnonzero(batch.weights > 0)

    def rows(values: Any) -> Any:
        return jax.tree.map(lambda array: np.asarray(array)[real], values)

    return {
        "index": batch.indices[real],
        "targets": batch.targets[real] > 0.5,
        "ranks": {name: rows(one.rank) for name, one in found.items()} if single_label else {},
        "logits": {} if single_label else {name: rows(one.logits) for name, one in found.items()},
        "kept": {name: rows(one.kept) for name, one in found.items()},
    }
