"""Runs a model over a data set: batches in, results on the host out, one batch behind.

`evaluate`, `per_clip` and `jaxprune.analysis.extract` share this loop. A caller passes three functions: one places a
batch's arrays, one starts the work, one takes the results. While the devices compute a batch, the host reads the
results of the one before and a `Feed` prepares the next.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxprune.data.batches import Batch, Batches
from jaxprune.data.prefetch import Feed
from jaxprune.models import Classifier
from jaxprune.parallel.devices import on_host

Placed = TypeVar("Placed")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Started(Generic[Found]):
    """Results of one batch, not yet computed. `found` is for the caller. `finite` is checked before `found` is read.

    `finite` marks the clips with finite scores, for each policy. Its keys end a sentence: "at keep rate 0.7", or "" for
    a single policy.
    """

    found: Found
    finite: Mapping[str, Bool[Array, "b"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """A finished pass. `clips` includes unusable ones. `Feed` counted the seconds `waited` and `idle`."""

    clips: int
    seconds: float
    waited: float
    idle: float


def forward_pass(
    batches: Batches,
    *,
    place: Callable[[tuple], Placed],
    start: Callable[[Batch, Placed], Started[Found]],
    collect: Callable[[Batch, Placed, Found], None],
    watch: Callable[[int], None] = lambda clips: None,
) -> Pass:
    """Runs every remaining batch: `place` its first four arrays, `start` the work, and a batch later `collect`.

    `place` runs in a thread, right after its batch was read. `watch` gets the number of clips on their way or done.
    Raises `ValueError` if scores are not finite.
    """
    began = time.perf_counter()
    clips, behind = 0, None
    with Feed(batches, place=place) as feed:
        for batch, placed in feed:
            started = start(batch, placed)
            feed.queued((started.found, started.finite))
            if behind:
                _finish(*behind, batches=batches, collect=collect)
            behind = batch, placed, started
            clips += int((batch.indices >= 0).sum())
            watch(clips)
        if behind:
            _finish(*behind, batches=batches, collect=collect)
        seconds = time.perf_counter() - began
    return Pass(clips=clips, seconds=seconds, waited=feed.waited, idle=feed.idle)


def check_classes(model: Classifier, batches: Batches) -> None:
    """Raises `ValueError` if clips and model differ in their number of classes."""
    labelled = batches.blank.targets.shape[1]
    if labelled != model.config.classes:
        raise ValueError(f"the clips are labelled with {labelled} classes, but the model has {model.config.classes}")


def finite_rows(logits: Float[Array, "b y"], weights: Float[Array, "b"] | None = None) -> Bool[Array, "b"]:
    """Clips whose scores are all finite. Rows of weight 0 hold no clip and count as finite."""
    finite = jnp.isfinite(logits).all(axis=1)
    return finite if weights is None else finite | (weights == 0)


def _finish(
    batch: Batch,
    placed: Placed,
    started: Started[Found],
    *,
    batches: Batches,
    collect: Callable[[Batch, Placed, Found], None],
) -> None:
    """Waits for a batch, checks its scores and hands its results on."""
    for under, finite in started.finite.items():
        _check_finite(on_host(finite), batch, batches=batches, under=under)
    collect(batch, placed, started.found)


def _check_finite(finite: Bool[np.ndarray, "b"], batch: Batch, *, batches: Batches, under: str) -> None:
    """Raises `ValueError` with the name of the first clip whose scores are not finite.

    `finite` may span the rows of all processes, in their order. Only the clips of this process have names here.
    """
    rows = len(batch.weights)
    first = jax.process_index() * rows if len(finite) > rows else 0
    real = np.ones(len(finite), bool)
    real[first : first + rows] = batch.weights > 0
    broken = np.flatnonzero(~finite & real)
    if not len(broken):
        return
    own = [row - first for row in broken if first <= row < first + rows]
    name = batches.names(batch.indices[own[:1]])[0] if own else "read by another process"
    clips = "1 clip has" if len(broken) == 1 else f"{len(broken)} clips of a batch have"
    where = f" {under}" if under else ""
    raise ValueError(
        f"{clips} scores that are not finite numbers{where}, the first is {name}; "
        "check the checkpoint, or compute in float32"
    )
