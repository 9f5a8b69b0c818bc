"""Pretrained AudioMAE checkpoints with their decoder: PyTorch's tensors to a `Pretraining` model and back."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from einops import EinopsError
from flax import nnx

from jaxprune.checkpoint import fill, leaves
from jaxprune.config import ModelConfig
from jaxprune.features import MELS
from jaxprune.pretraining import PlainDecoder, Pretraining, PretrainingConfig, WindowDecoder

from .containers import Container
from .errors import CheckpointError, first_sentence
from .grids import infer_grid
from .hub import open_source
from .mapping import Pair, block, linear, norm, patch_embed, reshaped
from .read import why_unusable

# The tensors that tell the model's sizes, and their axes.
SIZED = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "decoder_embed.weight": 2,
}
NO_GRID: Mapping[str, int | None] = MappingProxyType({})


def load_pretraining(
    path: str | os.PathLike, *, num_heads: int | None = None, decoder_heads: int | None = None
) -> Pretraining:
    """The pretraining model in a PyTorch AudioMAE checkpoint (`{'model': ...}`), encoder and decoder, float32.

    `num_heads` defaults to width / 64. `decoder_heads` defaults to the file's in the window decoder, and to 16, as
    published, in the plain one. Raises `CheckpointError`, a
    `ValueError`, where the file holds no decoder, lacks a tensor, or has one that the model has no place for.
    """
    return read_pretraining(open_source(path), num_heads=num_heads, decoder_heads=decoder_heads)


def has_decoder(container: Container) -> bool:
    """True for a pretrained AudioMAE that kept its decoder. One with a classifier, too, is taken for a classifier."""
    tensors = container.weights.tensors
    return "decoder_embed.weight" in tensors and "head.weight" not in tensors


def read_pretraining(
    container: Container, *, num_heads: int | None, decoder_heads: int | None, grid: Mapping[str, int | None] = NO_GRID
) -> Pretraining:
    """The model in an open file; see `load_pretraining`. `grid` is what is known of it, for `infer_grid`."""
    tensors, path = container.weights.tensors, container.path
    if bad := {key: reason for key, tensor in tensors.items() if (reason := why_unusable(tensor))}:
        raise CheckpointError(path, "holds what cannot be a weight:", [f"{key}: {why}" for key, why in bad.items()])
    state = {key: tensor.detach().float().numpy() for key, tensor in tensors.items()}
    try:
        config = _config(path, state, num_heads=num_heads, decoder_heads=decoder_heads, grid=grid)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(path, f"cannot be read as AudioMAE's pretraining: {error}") from error
    table = pairs(config)
    known = {key for pair in table for key in pair.official}
    problems = [f"{key}: missing" for key in sorted(known - state.keys())]
    problems += [f"{key}: unexpected" for key in sorted(state.keys() - known)]
    if problems:
        raise CheckpointError(path, "looks like AudioMAE's pretraining, but does not fit it:", problems)
    try:
        weights = {pair.leaf: pair.to_flax(*(state[key] for key in pair.official)) for pair in table}
    except EinopsError as error:  # a tensor with another number of axes
        raise CheckpointError(path, f"holds a tensor of another shape: {first_sentence(error)}") from error
    model = nnx.eval_shape(lambda: Pretraining(config, rngs=nnx.Rngs(0)))
    return fill(model, weights, source=str(path))


def from_pretraining(model: Pretraining) -> dict[str, np.ndarray]:
    """The model's weights as official tensors, float32. The authors' code loads them as `{"model": ...}`."""
    values = leaves(model)
    state = {}
    for pair in pairs(model.settings):
        state |= zip(pair.official, pair.to_torch(np.asarray(values[pair.leaf][...])), strict=True)
    return state


def _config(
    path: Path,
    state: Mapping[str, np.ndarray],
    *,
    num_heads: int | None,
    decoder_heads: int | None,
    grid: Mapping[str, int | None],
) -> PretrainingConfig:
    for key, axes in SIZED.items():
        if key not in state:
            raise CheckpointError(path, f"is not a pretrained AudioMAE with its decoder; it has no {key}")
        if state[key].ndim != axes or not state[key].size:
            raise CheckpointError(path, f"holds {key} with shape {state[key].shape}; it must have {axes} axes")
    width, decoder_width = state["cls_token"].shape[-1], state["decoder_embed.weight"].shape[0]
    patch = state["patch_embed.proj.weight"].shape[-1]
    found = infer_grid(state["pos_embed"].shape[1] - 1, family="audiomae", patch=patch, **grid)
    encoder = ModelConfig(
        family="audiomae",
        width=width,
        depth=_depth(state, "blocks"),
        heads=num_heads or _published_heads(width),
        classes=1,
        frames=found.frames,
        mels=grid.get("mels") or MELS,
        patch=patch,
        time_stride=found.time_stride,
        freq_stride=found.freq_stride,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
    temperatures = state.get("decoder_blocks.0.attn.tau")  # one a head
    decoder = PlainDecoder if temperatures is None else WindowDecoder
    told = 16 if temperatures is None else temperatures.size
    return PretrainingConfig(
        encoder=encoder,
        decoder=decoder(width=decoder_width, depth=_depth(state, "decoder_blocks"), heads=decoder_heads or told),
    )


def _published_heads(width: int) -> int:
    if width % 64:
        raise ValueError(f"its width {width} is no multiple of 64, so its heads are unknown; give them (--num-heads)")
    return width // 64


def _depth(state: Mapping[str, np.ndarray], blocks: str) -> int:
    """Blocks, by the highest index among the keys."""
    return 1 + max((int(m[1]) for key in state if (m := re.match(rf"{blocks}\.([0-9]{{1,3}})\.", key))), default=-1)


def pairs(config: PretrainingConfig) -> list[Pair]:
    """Every tensor and leaf of a pretraining model."""
    window = isinstance(config.decoder, WindowDecoder)
    decoder_block = _window_block if window else block
    return [
        *patch_embed("patch_embed.proj", "d 1 pt pf -> (pt pf) d", config.encoder),
        reshaped("cls_token", "extra_tokens", "1 p d -> p d"),
        reshaped("pos_embed", "positions", "1 s d -> s d"),
        *(p for i in range(config.encoder.depth) for p in block(f"blocks.{i}", f"encoder.blocks.{i}")),
        *norm("norm", "norm"),
        *linear("decoder_embed", "decoder_embed"),
        reshaped("mask_token", "mask_token", "1 1 d -> d"),
        reshaped("decoder_pos_embed", "decoder_positions", "1 s d -> s d"),
        *(p for i in range(config.decoder.depth) for p in decoder_block(f"decoder_blocks.{i}", f"decoder.blocks.{i}")),
        *norm("decoder_norm", "decoder_norm"),
        *linear("decoder_pred", "predict"),
    ]


def _window_block(official: str, leaf: str) -> tuple[Pair, ...]:
    return (
        *block(official, leaf),
        reshaped(f"{official}.attn.tau", f"{leaf}.attention.temperature", "h -> h"),
        *linear(f"{official}.attn.meta_mlp.fc1", f"{leaf}.attention.meta1"),
        *linear(f"{official}.attn.meta_mlp.fc2", f"{leaf}.attention.meta2"),
    )
