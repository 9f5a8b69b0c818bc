"""The rungs of a pretrained AudioMAE with its decoder: mask, both halves block by block, prediction, loss, and back.

`validate.py` is the command and has the rungs of the sound. `torch_pretraining.py` is the reference.
"""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
import torch
from flax import nnx

from jaxprune.pretraining import Pretrained, Pretraining, draw_noise, random_visible
from jaxprune.pretraining.masks import visible_count

from .about import Facts
from .containers import Container
from .pretraining import from_pretraining, read_pretraining
from .pretraining_command import pretraining_card
from .rungs import Rung, compare, compare_tokens
from .sounds import Sounds, Subject, feature_rungs, input_rung, our_input, their_input
from .torch_pretraining import Reference

LOSSES = {"loss, normalised pixels": True, "loss, pixels as they are": False}


def pretraining(
    container: Container, *, facts: Facts, mask_ratio: float, decoder_heads: int | None, tolerance: float
) -> Subject:
    """A pretrained AudioMAE to compare. Raises `ValueError` for one that cannot be read, and for a mask ratio that is
    out of range or leaves nothing."""
    model = read_pretraining(container, num_heads=facts.num_heads, decoder_heads=decoder_heads, grid=facts.grid)
    card = pretraining_card(model, about=facts, source=container.path.name)
    visible_count(mask_ratio, model.config.patches)
    state = {key: tensor.detach().float().numpy() for key, tensor in container.weights.tensors.items()}

    def climb(sounds: Sounds) -> list[Rung]:
        mel = our_input(card, sounds)
        return [
            *feature_rungs(sounds, mels=card.model.mels),
            input_rung(their_input(card, sounds), mel, card=card),
            *pretraining_rungs(model, state, mel, mask_ratio=mask_ratio, tolerance=tolerance),
        ]

    return Subject(card=card, layout="AudioMAE, pretrained, with its decoder", climb=climb)


def pretraining_rungs(
    model: Pretraining, state: Mapping[str, np.ndarray], mel: jax.Array, *, mask_ratio: float, tolerance: float
) -> Iterator[Rung]:
    """Every rung from the mask on, of a model and the official tensors it was made of, on normalised spectrograms.

    A clip's patches are drawn as published, at random. The keep rate of a rung is the share of them that is seen.
    """
    noise = draw_noise(jax.random.key(0), clips=len(mel), count=model.config.patches)
    visible = random_visible(noise, ratio=mask_ratio)
    order = torch.tensor(np.asarray(noise)).argsort(dim=1)[:, : visible.shape[1]]
    share = visible.shape[1] / model.config.patches
    yield compare(order, visible, stage="patches seen, in their order", keep_rate=share, tolerance=0)
    reference, heard = Reference(state, model.settings), torch.tensor(np.asarray(mel))
    ours, losses = _climbed(model, mel, visible)
    with torch.inference_mode():
        theirs = reference(heard, order)
        expected = {
            name: reference.loss(heard, theirs.prediction, order, normalise=how) for name, how in LOSSES.items()
        }
    stages = {
        "patch embedding": (theirs.embedded, ours.tokens_in),
        **{f"encoder block {i}": pair for i, pair in enumerate(zip(theirs.blocks, ours.blocks, strict=True))},
        "latent": (theirs.latent, ours.latent),
        "decoder, embedded": (theirs.mixed, ours.mixed),
        **{
            f"decoder block {i}": pair
            for i, pair in enumerate(zip(theirs.decoder_blocks, ours.decoder_blocks, strict=True))
        },
        "prediction": (theirs.prediction, ours.prediction),
        **{name: (expected[name], losses[name]) for name in LOSSES},
    }
    for stage, pair in stages.items():
        yield compare_tokens(*pair, stage=stage, keep_rate=share, tolerance=tolerance)
    back = from_pretraining(model)
    changed = [float(not np.array_equal(value, back.get(key))) for key, value in state.items()]
    yield compare(np.zeros(len(state)), changed, stage="tensors, there and back", keep_rate=share, tolerance=0)


@nnx.jit
def _climbed(model: Pretraining, mel: jax.Array, visible: jax.Array) -> tuple[Pretrained, dict[str, jax.Array]]:
    """The model's output, and its losses."""
    return model(mel, visible), {name: model.loss(mel, visible, normalise=how) for name, how in LOSSES.items()}
