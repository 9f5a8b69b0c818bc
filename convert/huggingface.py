"""Hugging Face's way to store an AST: its key names against the official ones (Gong et al.), and its JSON files.

One table of names serves both directions. Every file on the hub has the layout `legacy`, which transformers 5 saves by
default. `v5` has the module names of transformers 5, which saves them for a model that it loaded from such a file.
transformers 5 loads both. Callers read and write the files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jaxprune.config import ModelConfig

KeyLayout = Literal["v5", "legacy"]
BODY = "audio_spectrogram_transformer."  # in front of everything but the classifier; absent in files of a bare ASTModel


@dataclass(frozen=True)
class ModuleNames:
    """The names of one module. Several on Hugging Face's side are parts of the official one, along its first axis."""

    official: str
    legacy: tuple[str, ...]
    v5: tuple[str, ...]


def module(official: str, legacy: str, v5: str | None = None) -> ModuleNames:
    return ModuleNames(official, tuple(legacy.split()), tuple((v5 or legacy).split()))


# {i} is the block's number. A name stands for the parameter itself or for its module's .weight and .bias.
TABLE = (
    module("v.cls_token", "embeddings.cls_token"),
    module("v.dist_token", "embeddings.distillation_token"),
    module("v.pos_embed", "embeddings.position_embeddings"),
    module("v.patch_embed.proj", "embeddings.patch_embeddings.projection"),
    module("v.blocks.{i}.norm1", "encoder.layer.{i}.layernorm_before", "layers.{i}.layernorm_before"),
    module(
        "v.blocks.{i}.attn.qkv",
        "encoder.layer.{i}.attention.attention.query"
        " encoder.layer.{i}.attention.attention.key"
        " encoder.layer.{i}.attention.attention.value",
        "layers.{i}.attention.q_proj layers.{i}.attention.k_proj layers.{i}.attention.v_proj",
    ),
    module("v.blocks.{i}.attn.proj", "encoder.layer.{i}.attention.output.dense", "layers.{i}.attention.o_proj"),
    module("v.blocks.{i}.norm2", "encoder.layer.{i}.layernorm_after", "layers.{i}.layernorm_after"),
    module("v.blocks.{i}.mlp.fc1", "encoder.layer.{i}.intermediate.dense", "layers.{i}.mlp.fc1"),
    module("v.blocks.{i}.mlp.fc2", "encoder.layer.{i}.output.dense", "layers.{i}.mlp.fc2"),
    module("v.norm", "layernorm"),
    module("mlp_head.0", "classifier.layernorm"),
    module("mlp_head.1", "classifier.dense"),
)


@dataclass(frozen=True)
class Renamed:
    """`state` under the new names. `leftover` are the source's keys without a place, for a strict caller to report."""

    state: dict[str, Tensor]
    leftover: tuple[str, ...]


def from_huggingface(state: Mapping[str, Tensor]) -> Renamed:
    """Hugging Face's names, of either layout, to official names; q, k and v are joined to qkv.

    The model's prefix may be absent. A query, key or value without its two companions is left over. Raises `ValueError`
    if two keys mean the same parameter, as in a file that holds both layouts.
    """
    place = {name: (r, at) for r in TABLE for names in (r.legacy, r.v5) for at, name in enumerate(names)}
    found: dict[str, dict[int, str]] = {}  # official key -> part -> key in the file
    leftover = []
    for key in state:
        name, block, kind = parse(key.removeprefix(BODY))
        if name not in place:
            leftover.append(key)
            continue
        target, at = place[name]
        parts = found.setdefault(target.official.format(i=block) + kind, {})
        if at in parts:
            raise ValueError(f"keys {parts[at]!r} and {key!r} are the same parameter; a checkpoint must hold it once")
        parts[at] = key
    renamed = {}
    for official, parts in found.items():
        name, _, _ = parse(official)
        whole = next(len(r.v5) for r in TABLE if r.official == name)
        if len(parts) < whole:
            leftover.extend(parts.values())
        else:
            tensors = [state[parts[at]] for at in range(whole)]
            renamed[official] = tensors[0] if whole == 1 else torch.cat(tensors)
    return Renamed(renamed, tuple(leftover))


def to_huggingface(state: Mapping[str, Tensor], *, layout: KeyLayout = "legacy") -> Renamed:
    """Official names, without `module.`, to those of `ASTForAudioClassification` in a layout; qkv is split.

    The ImageNet heads `v.head` and `v.head_dist` are left over. Split tensors own their memory, as safetensors demands.
    Raises `ValueError` for another layout, and for a qkv that three does not divide.
    """
    if layout not in ("v5", "legacy"):
        raise ValueError(f"layout is {layout!r}; it must be 'v5' or 'legacy'")
    place = {r.official: getattr(r, layout) for r in TABLE}
    renamed, leftover = {}, []
    for key, tensor in state.items():
        name, block, kind = parse(key)
        if name not in place:
            leftover.append(key)
            continue
        names = place[name]
        if tensor.shape[0] % len(names):
            raise ValueError(f"{key} has {tensor.shape[0]} rows; they cannot be split into {len(names)} equal parts")
        parts = [tensor] if len(names) == 1 else [part.clone() for part in tensor.chunk(len(names))]
        for part_name, part in zip(names, parts, strict=True):
            prefix = "" if part_name.startswith("classifier.") else BODY
            renamed[prefix + part_name.format(i=block) + kind] = part
    return Renamed(renamed, tuple(leftover))


def config_json(config: ModelConfig, *, layout: KeyLayout = "legacy", labels: Sequence[str] = ()) -> dict[str, Any]:
    """The content of config.json, as the transformers of that layout's time writes it; classes without `labels` are
    called LABEL_0 and so on.

    Raises `ValueError` for labels that do not fit the classes, and where `norm_eps` and `head_norm_eps` differ: there
    is one `layer_norm_eps`, which transformers uses in the classifier's norm too.
    """
    if config.norm_eps != config.head_norm_eps:
        raise ValueError(
            f"norm_eps {config.norm_eps} and head_norm_eps {config.head_norm_eps} differ, but a Hugging Face config "
            "holds one layer_norm_eps; make them equal"
        )
    names = list(labels) or [f"LABEL_{i}" for i in range(config.classes)]
    if len(names) != config.classes:
        raise ValueError(f"{len(names)} labels were given for {config.classes} classes; give one per class")
    era = {
        "v5": {"dtype": "float32", "transformers_version": "5.0.0"},
        "legacy": {"torch_dtype": "float32", "transformers_version": "4.25.1"},
    }[layout]
    return era | {
        "architectures": ["ASTForAudioClassification"],
        "attention_probs_dropout_prob": 0.0,
        "frequency_stride": config.freq_stride,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": config.width,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "initializer_range": 0.02,
        "intermediate_size": config.mlp_width,
        "label2id": {name: i for i, name in enumerate(names)},
        "layer_norm_eps": config.norm_eps,
        "max_length": config.frames,
        "model_type": "audio-spectrogram-transformer",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.depth,
        "num_mel_bins": config.mels,
        "patch_size": config.patch,
        "qkv_bias": True,
        "time_stride": config.time_stride,
    }


def preprocessor_json(config: ModelConfig, *, mean: float, std: float) -> dict[str, Any]:
    """The content of preprocessor_config.json, as `ASTFeatureExtractor` writes it."""
    return {
        "do_normalize": True,
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "max_length": config.frames,
        "mean": mean,
        "num_mel_bins": config.mels,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
        "std": std,
    }


def parse(key: str) -> tuple[str, str, str]:
    """A key as (its name with {i} for the block's number, that number or "", ".weight", ".bias" or "")."""
    name, kind = re.fullmatch(r"(.*?)(\.weight|\.bias|)", key, re.DOTALL).groups()
    match = re.search(r"\b(?:blocks|layer|layers)\.(\d+)\.", name)
    if match is None:
        return name, "", kind
    start, stop = match.span(1)
    return name[:start] + "{i}" + name[stop:], match[1], kind
