"""The one table that pairs official PyTorch tensors with Flax leaves, read in both directions.

`to_flax` and `to_torch` are exact inverses. Every tensor is used once, every leaf filled once. Tensors are transposed,
reshaped and joined; no number changes. The keys and shapes that a checkpoint must have follow from the same table
(`official_shapes`). `read.py` finds the tensors of a file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from einops import rearrange

from jaxprune.checkpoint import fill, leaves
from jaxprune.config import Family, ModelConfig
from jaxprune.models import Classifier, abstract, build

Shape = tuple[int, ...]

BLOCK = re.compile(r"\bblocks\.(\d{1,3})\.")
PREDICTOR = re.compile(r"\bscore_predictor\.(\d{1,3})\.")


@dataclass(frozen=True, kw_only=True)
class Official:
    """A family's official tensors, as far as they differ from the other's.

    `prefix` stands before the body's names. `tokens` are the extra tokens, `norms` the LayerNorms after the last
    block, `classifier` its LayerNorm and Linear. `kernel` is the patch convolution as an einops pattern. `saved` is
    what the authors' code saves of a state dict.
    """

    prefix: str
    tokens: tuple[str, ...]
    norms: tuple[str, ...]
    classifier: tuple[str, str]
    kernel: str
    saved: Callable[[Mapping[str, Any]], dict[str, Any]]


OFFICIAL: Mapping[Family, Official] = {
    "ast": Official(
        prefix="v.",
        tokens=("cls_token", "dist_token"),
        norms=("norm",),
        classifier=("mlp_head.0", "mlp_head.1"),
        kernel="d 1 pf pt -> (pt pf) d",
        saved=lambda state: {f"module.{key}": value for key, value in state.items()},  # under DataParallel
    ),
    "audiomae": Official(
        prefix="",
        tokens=("cls_token",),
        norms=(),
        classifier=("fc_norm", "head"),
        kernel="d 1 pt pf -> (pt pf) d",
        saved=lambda state: {"model": dict(state)},
    ),
}


@dataclass(frozen=True)
class Pair:
    """Official tensors (one, or several that form one leaf), the Flax leaf, and the way there and back."""

    official: tuple[str, ...]
    leaf: str
    to_flax: Callable[..., np.ndarray]
    to_torch: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def to_flax(state: Mapping[str, Any], config: ModelConfig) -> Classifier:
    """A float32 model holding the official tensors, which are numpy arrays or PyTorch tensors on the CPU.

    A leaf whose tensors are all absent keeps its fresh initialisation; the caller reports that.
    Raises `ValueError` for a tensor that no leaf takes, or one whose shape does not fit.
    """
    table = pairs(config)
    if unused := sorted(set(state) - {key for pair in table for key in pair.official}):
        raise ValueError(f"this {config.family} model has no place for {', '.join(unused)}")
    weights = {
        pair.leaf: pair.to_flax(*(np.asarray(state[key]) for key in pair.official))
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
        tensors = pair.to_torch(np.asarray(values[pair.leaf][...]))
        state |= zip(pair.official, map(np.ascontiguousarray, tensors), strict=True)
    return state


def official_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of every official tensor of a model, in its order, from the leaves' shapes alone.

    All blocks are alike, and all predictors, so one is enough, however many a foreign file claims.
    """
    one = replace(config, depth=1, predictors=(0,) if config.predictors else ())
    found = leaves(abstract(one))
    shapes: dict[str, Shape] = {}
    for pair in pairs(one):
        leaf = jax.ShapeDtypeStruct(found[pair.leaf].shape, np.float32)
        tensors = jax.eval_shape(pair.to_torch, leaf)
        shapes |= {key: tensor.shape for key, tensor in zip(pair.official, tensors, strict=True)}
    first = {
        key: PREDICTOR.sub("score_predictor.0.", BLOCK.sub("blocks.0.", key))
        for pair in pairs(config)
        for key in pair.official
    }
    return {key: shapes[alike] for key, alike in first.items()}


def pairs(config: ModelConfig) -> list[Pair]:
    """Every tensor and leaf of a model of this configuration."""
    names = OFFICIAL[config.family]
    head_norm, head = names.classifier
    body = [
        *patch_embed("patch_embed.proj", names.kernel, config),
        extra_tokens(names.tokens),
        reshaped("pos_embed", "positions", "1 s d -> s d"),
        *(pair for name in names.norms for pair in norm(name, name)),
        *(pair for i in range(config.depth) for pair in block(f"blocks.{i}", f"encoder.blocks.{i}")),
        *predictor_pairs(len(config.predictors)),
    ]
    prefixed = [replace(pair, official=tuple(names.prefix + key for key in pair.official)) for pair in body]
    return [*prefixed, *norm(head_norm, "head_norm"), *linear(head, "head")]


def extra_tokens(names: tuple[str, ...]) -> Pair:
    """The extra tokens, each `(1, 1, d)`, one below the other."""
    return Pair(
        names,
        "extra_tokens",
        lambda *tokens: np.concatenate(tokens, axis=1)[0],
        lambda leaf: tuple(leaf[None, i : i + 1] for i in range(len(names))),
    )


def block(official: str, leaf: str) -> tuple[Pair, ...]:
    """A transformer block's norms, attention and MLP."""
    return (
        *norm(f"{official}.norm1", f"{leaf}.norm1"),
        *linear(f"{official}.attn.qkv", f"{leaf}.attention.qkv"),
        *linear(f"{official}.attn.proj", f"{leaf}.attention.out"),
        *norm(f"{official}.norm2", f"{leaf}.norm2"),
        *linear(f"{official}.mlp.fc1", f"{leaf}.mlp.fc1"),
        *linear(f"{official}.mlp.fc2", f"{leaf}.mlp.fc2"),
    )


def predictor_pairs(count: int) -> list[Pair]:
    """DynamicViT's predictors, by the names of the original code."""
    return [
        pair
        for stage in range(count)
        for pair in (
            *norm(f"score_predictor.{stage}.in_conv.0", f"predictors.{stage}.norm"),
            *linear(f"score_predictor.{stage}.in_conv.1", f"predictors.{stage}.embed"),
            *linear(f"score_predictor.{stage}.out_conv.0", f"predictors.{stage}.hidden1"),
            *linear(f"score_predictor.{stage}.out_conv.2", f"predictors.{stage}.hidden2"),
            *linear(f"score_predictor.{stage}.out_conv.4", f"predictors.{stage}.decide"),
        )
    ]


def norm(official: str, leaf: str) -> tuple[Pair, Pair]:
    """A LayerNorm's weight and bias."""
    return reshaped(f"{official}.weight", f"{leaf}.scale", "d -> d"), bias(official, leaf)


def linear(official: str, leaf: str) -> tuple[Pair, Pair]:
    """A Linear's weight (out, in) and bias."""
    return reshaped(f"{official}.weight", f"{leaf}.kernel", "o i -> i o"), bias(official, leaf)


def patch_embed(official: str, pattern: str, config: ModelConfig) -> tuple[Pair, Pair]:
    """The patch convolution as a matrix over time-major pixels. `pattern` has the family's image axes."""
    kernel = reshaped(f"{official}.weight", "patch_embed.kernel", pattern, pt=config.patch, pf=config.patch)
    return kernel, bias(official, "patch_embed")


def bias(official: str, leaf: str) -> Pair:
    """A bias, which is the same on both sides."""
    return reshaped(f"{official}.bias", f"{leaf}.bias", "d -> d")


def reshaped(official: str, leaf: str, pattern: str, **axes: int) -> Pair:
    """One tensor to one leaf by an einops pattern. Its reverse is the way back."""
    there, back = pattern, " -> ".join(reversed(pattern.split(" -> ")))
    return Pair(
        (official,),
        leaf,
        lambda tensor: rearrange(tensor, there, **axes),
        lambda array: (rearrange(array, back, **axes),),
    )
