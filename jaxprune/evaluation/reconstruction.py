"""Measures masked pretraining on held-out clips: the loss that training lowers, with masks that never change.

A clip's mask is drawn from its place in the split alone. So losses of different epochs, batch sizes and devices compare
the same predictions. Compiled programs are kept and take the weights as arguments.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, Key

from jaxprune.config import Card, Padding
from jaxprune.data.batches import Batch, Batches
from jaxprune.evaluation.forward_pass import Started, forward_pass
from jaxprune.features import model_input
from jaxprune.parallel.devices import Layout
from jaxprune.pretraining.masks import Mask
from jaxprune.pretraining.model import Pretraining

SEED = 0  # of the masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The mean loss over so many clips."""

    loss: float
    clips: int


def held_out_loss(
    model: Pretraining, batches: Batches, *, card: Card, mask: Mask, normalise: bool, layout: Layout | None = None
) -> HeldOut:
    """The loss on every remaining clip, without augmentation and dropout. Rows of weight 0 do not count.

    `card` normalises the features. The devices of `layout` (default: one) hold the weights and share each batch. Raises
    `ValueError` if no clip is usable, if the devices cannot share a batch, and if a loss is not finite.
    """
    layout = Layout(jax.local_devices()[:1]) if layout is None else layout
    layout.check(len(layout.shapes(batches.blank.weights)))
    graph, state = nnx.split(model)
    program = _program(graph, mask, normalise, padding=card.padding, whole=layout.whole)
    total, clips = 0.0, 0

    def start(batch: Batch, placed: tuple[Array, ...]) -> Started[tuple[Array, Array]]:
        waveforms, lengths, _, weights = placed
        found, finite = program(state, waveforms, lengths, weights, layout.share(batch.indices), card.mean, card.std)
        return Started(found, {"": finite})

    def collect(batch: Batch, placed: tuple[Array, ...], found: tuple[Array, Array]) -> None:
        nonlocal total, clips
        total, clips = total + float(found[0]), clips + int(found[1])

    forward_pass(batches, place=layout.share, start=start, collect=collect)
    if not clips:
        raise ValueError("none of the held-out clips could be used, so there is nothing to report")
    return HeldOut(loss=total / clips, clips=clips)


def mask_keys(indices: Int[Array, "b"]) -> Key[Array, "b"]:
    """The keys of clips' masks, by their places in the split."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(SEED), index))(indices)


@functools.lru_cache(maxsize=8)
def _program(
    graph: nnx.GraphDef, mask: Mask, normalise: bool, *, padding: Padding, whole: NamedSharding
) -> Callable[..., Any]:
    """The compiled sum of a batch's losses, its clips, and which of them have a finite loss."""

    @functools.partial(jax.jit, out_shardings=whole)
    def run(state, waveforms, lengths, weights, indices, mean, std):
        model = nnx.merge(graph, jax.lax.with_sharding_constraint(state, whole))
        config = model.config
        mel = model_input(
            waveforms, lengths, frames=config.frames, mean=mean, std=std, padding=padding, mels=config.mels
        )
        losses = model.losses(mel, mask.draw(mask_keys(indices), config), normalise=normalise)
        real = weights > 0
        return (jnp.sum(losses, where=real), real.sum()), jnp.isfinite(losses) | ~real

    return run
