"""The one table that pairs official PyTorch tensors with Flax leaves, read in both directions.

`to_flax` and `to_torch` are exact inverses: every tensor is used once, every leaf filled once, and nothing but a
transpose, reshape or stack happens to a number. Which tensors a file holds is `convert.read`' matter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from jaxprune.checkpoint import fill, leaves
from jaxprune.config import ModelConfig
from jaxprune.models import Classifier, abstract, build


@dataclass(frozen=True)
class Pair:
    """Official tensors (one, or several that form one leaf), the Flax leaf, and the way there and back."""

    official: tuple[str, ...]
    leaf: str
    to_flax: Callable[..., np.ndarray]
    to_torch: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def to_flax(state: Mapping[str, Any], config: ModelConfig) -> Classifier:
    """A float32 model holding the official tensors, which are numpy arrays or PyTorch tensors on the CPU.

    A leaf whose tensors are all absent keeps the model's fresh initialisation; reporting that is the caller's matter.
    Raises `ValueError` for a tensor that no leaf takes, or one whose shape does not fit.
    """
    table = pairs(config)
    if unused := sorted(set(state) - {key for pair in table for key in pair.official}):
        raise ValueError(f"this {config.family} model has no place for {', '.join(unused)}")
    weights = {
        pair.leaf: pair.to_flax(*(np.asarray(state[key], np.float32) for key in pair.official))
        for pair in table
        if any(key in state for key in pair.official)
    }
    if absent := {pair.leaf for pair in table} - weights.keys():
        fresh = leaves(build(config))
        weights |= {leaf: np.asarray(fresh[leaf][...]) for leaf in absent}
    return fill(abstract(config), weights, source="the PyTorch checkpoint")


def to_torch(model: Classifier) -> dict[str, np.ndarray]:
    """The model's weights as official tensors, float32, without `module.`."""
    values = leaves(model)
    state = {}
    for pair in pairs(model.config):
        state |= zip(pair.official, pair.to_torch(np.asarray(values[pair.leaf][...])), strict=True)
    return state


def pairs(config: ModelConfig) -> list[Pair]:
    """Every tensor and leaf of a model of this configuration."""
    block = [
        pair
        for i in range(config.depth)
        for pair in (
            *norm(f"blocks.{i}.norm1", f"encoder.blocks.{i}.norm1"),
            *linear(f"blocks.{i}.attn.qkv", f"encoder.blocks.{i}.attention.qkv"),
            *linear(f"blocks.{i}.attn.proj", f"encoder.blocks.{i}.attention.out"),
            *norm(f"blocks.{i}.norm2", f"encoder.blocks.{i}.norm2"),
            *linear(f"blocks.{i}.mlp.fc1", f"encoder.blocks.{i}.mlp.fc1"),
            *linear(f"blocks.{i}.mlp.fc2", f"encoder.blocks.{i}.mlp.fc2"),
        )
    ]
    return {"ast": ast_pairs, "audiomae": audiomae_pairs}[config.family](config, block)


def ast_pairs(config: ModelConfig, blocks: list[Pair]) -> list[Pair]:
    """The blocks' pairs under `v.`, and AST's own."""
    body = [
        *patch_embed("patch_embed.proj", "d 1 pf pt -> (pt pf) d", config),
        Pair(
            ("cls_token", "dist_token"),
            "extra_tokens",
            lambda cls, dist: np.concatenate([cls, dist], axis=1)[0],
            lambda leaf: (leaf[None, :1], leaf[None, 1:]),
        ),
        reshaped("pos_embed", "positions", "1 s d -> s d"),
        *norm("norm", "norm"),
        *blocks,
    ]
    under_v = [Pair(tuple(f"v.{key}" for key in p.official), p.leaf, p.to_flax, p.to_torch) for p in body]
    return [*under_v, *norm("mlp_head.0", "head_norm"), *linear("mlp_head.1", "head")]


def audiomae_pairs(config: ModelConfig, blocks: list[Pair]) -> list[Pair]:
    """The blocks' pairs, and AudioMAE's own."""
    return [
        *patch_embed("patch_embed.proj", "d 1 pt pf -> (pt pf) d", config),
        reshaped("cls_token", "extra_tokens", "1 p d -> p d"),
        reshaped("pos_embed", "positions", "1 s d -> s d"),
        *blocks,
        *norm("fc_norm", "head_norm"),
        *linear("head", "head"),
    ]


def norm(official: str, leaf: str) -> tuple[Pair, Pair]:
    """A LayerNorm's weight and bias."""
    return reshaped(f"{official}.weight", f"{leaf}.scale", "d -> d"), bias(official, leaf)


def linear(official: str, leaf: str) -> tuple[Pair, Pair]:
    """A Linear's weight (out, in) and bias."""
    return reshaped(f"{official}.weight", f"{leaf}.kernel", "o i -> i o"), bias(official, leaf)


def patch_embed(official: str, pattern: str, config: ModelConfig) -> tuple[Pair, Pair]:
    """The patch convolution, whose image axes are the family's, as a matrix over time-major pixels."""
    kernel = reshaped(f"{official}.weight", "patch_embed.kernel", pattern, pt=config.patch, pf=config.patch)
    return kernel, bias(official, "patch_embed")


def bias(official: str, leaf: str) -> Pair:
    return reshaped(f"{official}.bias", f"{leaf}.bias", "d -> d")


def reshaped(official: str, leaf: str, pattern: str, **axes: int) -> Pair:
    """One tensor to one leaf by an einops pattern, whose reverse is the way back."""
    there, back = pattern, " -> ".join(reversed(pattern.split(" -> ")))
    return Pair(
        (official,),
        leaf,
        lambda tensor: rearrange(tensor, there, **axes),
        lambda array: (np.ascontiguousarray(rearrange(array, back, **axes)),),
    )
