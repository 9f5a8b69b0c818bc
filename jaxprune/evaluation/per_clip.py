"""What a model answers to every clip under several policies, each clip read and turned to log-mel once.

`jaxprune.evaluation.evaluate` adds up as it goes; here clips stay apart, so that policies can be compared clip by clip,
patches counted in each clip, and clips looked at by themselves. Ablations and sweeps are counted from this.
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
from jaxprune.data.batches import Batches
from jaxprune.evaluation.metrics import rank_of_class, ranking
from jaxprune.features import model_input
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy

# How many patches each clip of a batch kept, by name of the policy and pruning block.
Kept = Mapping[str, Mapping[int, Int[Array, "b"]]]
# The policy for a batch, from its clips' places in the split (-1: none) and what policies before it kept of the batch.
PolicyFor = Callable[[Int[Array, "b"], Kept], Policy]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """The usable clips' answers, in the order of the split; `index` are their places in it.

    By name of the policy: `ranks`, how many classes stand before the clip's own (where every clip has one), or else
    `logits`; and `kept`, how many patches each pruning block left. `unusable` maps left-out files to the reason.
    """

    index: Int[np.ndarray, "clips"]
    targets: Bool[np.ndarray, "clips y"]
    ranks: Mapping[str, Int[np.ndarray, "clips"]]
    logits: Mapping[str, Float[np.ndarray, "clips y"]]
    kept: Mapping[str, Mapping[int, Int[np.ndarray, "clips"]]]
    unusable: Mapping[str, str]

    @property
    def clips(self) -> int:
        return len(self.index)

    def metrics(self, name: str, *, among: Bool[np.ndarray, "clips"] | None = None) -> dict[str, float]:
        """As `jaxprune.evaluation.evaluate` names them, of the clips `among` (None: all); nothing where those are
        none."""
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
    """Runs every batch that is left through the model under each policy, in their order.

    One compilation for the features and one for each policy of another structure. `watch` is told how many clips are
    done. Raises `ValueError` for no policies, another number of classes than the model's, no usable clip, and logits
    that are not numbers.
    """
    if not policies:
        raise ValueError("there is nothing to ask; give at least one policy")
    graph, state = nnx.split(model)
    program = _program(graph)
    rows: list[dict[str, Any]] = []
    done, running = 0, None
    for batch in batches:
        if batch.targets.shape[1] != model.config.classes:
            raise ValueError(
                f"the clips are labelled with {batch.targets.shape[1]} classes, but the model has "
                f"{model.config.classes}"
            )
        waveforms, lengths, targets = jax.device_put(batch[:3])
        config = model.config
        mel = _features(waveforms, lengths, frames=config.frames, mean=card.mean, std=card.std, mels=config.mels)
        indices, found = jnp.asarray(batch.indices), {}
        for name, policy_for in policies.items():
            kept = {before: one.kept for before, one in found.items()}
            found[name] = program(state, mel, targets, policy_for(indices, kept))
        if running:  # the batch before is collected only now, so that the device need not wait for the host
            rows.append(_rows(*running, single_label=single_label))
        running = batch, found
        done += int((batch.indices >= 0).sum())
        watch(done)
    if running:
        rows.append(_rows(*running, single_label=single_label))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    if not len(joined["index"]):
        raise ValueError(f"none of the {done} clips could be used, so there is nothing to report")
    if broken := {name: int(found.sum()) for name, found in joined.pop("broken").items() if found.any()}:
        name = next(iter(broken))
        raise ValueError(
            f"{broken[name]} of {len(joined['index'])} clips have scores that are not numbers under {name}"
        )
    return Answers(**joined, unusable=dict(batches.unusable))


@struct.dataclass
class _Found:
    """What one policy makes of a batch."""

    logits: Float[Array, "b y"]
    rank: Int[Array, "b"]
    broken: Bool[Array, "b"]
    kept: dict[int, Int[Array, "b"]]


_features = jax.jit(model_input, static_argnames=("frames", "mels"))


@functools.lru_cache(maxsize=8)
def _program(graph: nnx.GraphDef) -> Callable[..., _Found]:
    """`(state, mel, targets, policy) -> _Found` for every model of this structure: weights are arguments."""

    @jax.jit
    def run(state, mel, targets, policy):
        output = nnx.merge(graph, state)(mel, policy)
        kept = {block: output.trace[block].alive.sum(axis=1) for block in policy.stages}
        broken = jnp.isnan(output.logits).any(axis=1)
        return _Found(output.logits, rank_of_class(output.logits, targets), broken, kept)

    return run


def _rows(batch: Any, found: Mapping[str, _Found], *, single_label: bool) -> dict[str, Any]:
    """A batch's real rows on the host, waiting for the device; logits only where a metric needs them."""
    real = np.flatnonzero(batch.weights > 0)

    def rows(values: Any) -> Any:
        return jax.tree.map(lambda array: np.asarray(array)[real], values)

    return {
        "index": batch.indices[real],
        "targets": batch.targets[real] > 0.5,
        "ranks": {name: rows(one.rank) for name, one in found.items()} if single_label else {},
        "logits": {} if single_label else {name: rows(one.logits) for name, one in found.items()},
        "kept": {name: rows(one.kept) for name, one in found.items()},
        "broken": {name: rows(one.broken) for name, one in found.items()},
    }
