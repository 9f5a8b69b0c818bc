"""Saving and loading a pretraining model: a checkpoint as `jaxprune.checkpoint` writes it, with the decoder.

The card's `decoder` tells such a checkpoint from a classifier's. It has no classes, so only pretraining goes on from
it. Fine-tuning takes its encoder (`encoder_weights`).
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune import checkpoint
from jaxprune.config import Card
from jaxprune.json_files import fit
from jaxprune.positions import adapt_positions
from jaxprune.pretraining.decoders import DecoderConfig, PlainDecoder, WindowDecoder
from jaxprune.pretraining.model import Pretraining, PretrainingConfig

KINDS = {"plain": PlainDecoder, "window": WindowDecoder}
# Of its weights, those that the classifier has by the same names.
SHARED = ("patch_embed.", "extra_tokens", "positions", "encoder.")


def save(directory: str | os.PathLike, model: Pretraining, *, card: Card, overwrite: bool = False) -> Path:
    """Writes a model and its card, to which the decoder is added. Raises as `jaxprune.checkpoint.save`."""
    card = dataclasses.replace(card, decoder=described(model.settings.decoder))
    return checkpoint.save(directory, model, card=card, overwrite=overwrite)


def load(directory: str | os.PathLike, *, dtype: Any = jnp.float32) -> Pretraining:
    """The model saved in a directory, or by the run in it, computing in `dtype`.

    Raises `ValueError` for a classifier's checkpoint, and as `jaxprune.checkpoint.load`.
    """
    card, saved = checkpoint.read(directory, shapes=abstract)
    return checkpoint.fill(abstract(card, dtype=dtype), saved, source=str(directory))


def of_length(model: Pretraining, *, frames: int, dtype: Any = jnp.float32) -> Pretraining:
    """The model with its position tables fitted to spectrograms of `frames`, computing in `dtype`.

    Raises `ValueError` for a length whose grid the window decoder's windows do not divide.
    """
    before, decoder = model.config, model.settings.decoder
    weights = {name: np.asarray(leaf[...]) for name, leaf in checkpoint.leaves(model).items()}
    if frames != before.frames:
        sizes = dataclasses.replace(before, width=decoder.width, heads=decoder.heads)
        weights["positions"] = adapt_positions(weights["positions"], before, frames=frames)
        weights["decoder_positions"] = adapt_positions(weights["decoder_positions"], sizes, frames=frames)
    config = dataclasses.replace(model.settings, encoder=dataclasses.replace(before, frames=frames))
    fresh = nnx.eval_shape(lambda: Pretraining(config, dtype=dtype, rngs=nnx.Rngs(0)))
    return checkpoint.fill(fresh, weights, source="the pretraining model")


def encoder_weights(directory: str | os.PathLike, *, frames: int) -> tuple[Card, dict[str, np.ndarray]]:
    """The card of a pretraining checkpoint, and its encoder's weights as the classifier names them.

    The position table is fitted to spectrograms of `frames`, and the card's model says so. Raises as `load`.
    """
    card, saved = checkpoint.read(directory, shapes=abstract)
    weights = {name: values for name, values in saved.items() if name.startswith(SHARED)}
    if frames != card.model.frames:
        weights["positions"] = adapt_positions(weights["positions"], card.model, frames=frames)
        card = dataclasses.replace(card, model=dataclasses.replace(card.model, frames=frames))
    return card, weights


def abstract(card: Card, *, dtype: Any = jnp.float32) -> Pretraining:
    """The card's model with shapes in place of arrays. Raises `DoesNotFit` where it is none of pretraining."""
    try:
        config = PretrainingConfig(encoder=card.model, decoder=decoder_of(card))
    except ValueError as error:
        raise checkpoint.DoesNotFit(f"this is no pretraining model that can be used: {error}") from error
    return nnx.eval_shape(lambda: Pretraining(config, dtype=dtype, rngs=nnx.Rngs(0)))


def described(decoder: DecoderConfig) -> dict[str, Any]:
    """A decoder in JSON's types: its kind and sizes."""
    kind = next(kind for kind, make in KINDS.items() if isinstance(decoder, make))
    return {"kind": kind} | dataclasses.asdict(decoder)


def decoder_of(card: Card) -> DecoderConfig:
    """The decoder that a card describes. Raises `ValueError` if it describes none, or one that cannot be."""
    if card.decoder is None:
        raise ValueError("it is a classifier, without a decoder")
    sizes = dict(card.decoder)
    make = KINDS.get(sizes.pop("kind", None))
    if make is None:
        raise ValueError(
            f"its decoder is of kind {card.decoder.get('kind')!r:.40}; it must be one of {', '.join(KINDS)}"
        )
    return fit(sizes, make)
