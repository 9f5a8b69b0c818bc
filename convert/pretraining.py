"""Pretrained AudioMAE checkpoints with their decoder: PyTorch's tensors to a `Pretraining` model and back."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from jaxprune.checkpoint import fill, leaves
from jaxprune.config import ModelConfig
from jaxprune.pretraining import PlainDecoder, Pretraining, PretrainingConfig, WindowDecoder

from .containers import open_container
from .errors import CheckpointError
from .grids import infer_grid
from .mapping import Pair, block, linear, norm, patch_embed, reshaped


def load_pretraining(
    path: str | os.PathLike, *, num_heads: int | None = None, decoder_heads: int | None = None
) -> Pretraining:
    """The pretraining model in a PyTorch AudioMAE checkpoint (`{'model': ...}`), encoder and decoder, float32.

    `num_heads` defaults to width / 64 and `decoder_heads` to 16, as published. Raises `CheckpointError`, a
    `ValueError`, where the file holds no decoder, lacks a tensor, or has one that the model has no place for.
    """
    container = open_container(path)
    state = {key: np.asarray(tensor.float()) for key, tensor in container.weights.tensors.items()}
    config = _config(container.path, state, num_heads=num_heads, decoder_heads=decoder_heads)
    table = pairs(config)
    known = {key for pair in table for key in pair.official}
    problems = [f"{key}: missing" for key in sorted(known - state.keys())]
    problems += [f"{key}: unexpected" for key in sorted(state.keys() - known)]
    if problems:
        raise CheckpointError(container.path, "looks like AudioMAE's pretraining, but does not fit it:", problems)
    weights = {pair.leaf: pair.to_flax(*(state[key] for key in pair.official)) for pair in table}
    model = nnx.eval_shape(lambda: Pretraining(config, rngs=nnx.Rngs(0)))
    return fill(model, weights, source="the PyTorch checkpoint")


def from_pretraining(model: Pretraining) -> dict[str, np.ndarray]:
    """The model's weights as official tensors, float32. The authors' code loads them as `{"model": ...}`."""
    values = leaves(model)
    state = {}
    for pair in pairs(model.settings):
        state |= zip(pair.official, pair.to_torch(np.asarray(values[pair.leaf][...])), strict=True)
    return state


def _config(
    path: Path, state: Mapping[str, np.ndarray], *, num_heads: int | None, decoder_heads: int | None
) -> PretrainingConfig:
    for key in ("cls_token", "pos_embed", "patch_embed.proj.weight", "decoder_embed.weight", "blocks.0.mlp.fc1.weight"):
        if key not in state:
            raise CheckpointError(path, f"is not a pretrained AudioMAE with its decoder; it has no {key}")
    width, decoder_width = state["cls_token"].shape[-1], state["decoder_embed.weight"].shape[0]
    patch = state["patch_embed.proj.weight"].shape[-1]
    grid = infer_grid(state["pos_embed"].shape[1] - 1, family="audiomae", patch=patch)
    encoder = ModelConfig(
        family="audiomae",
        width=width,
        depth=_depth(state, "blocks"),
        heads=num_heads or width // 64,
        classes=1,
        frames=grid.frames,
        patch=patch,
        time_stride=grid.time_stride,
        freq_stride=grid.freq_stride,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
    decoder = WindowDecoder if "decoder_blocks.0.attn.tau" in state else PlainDecoder
    return PretrainingConfig(
        encoder=encoder,
        decoder=decoder(width=decoder_width, depth=_depth(state, "decoder_blocks"), heads=decoder_heads or 16),
    )


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
