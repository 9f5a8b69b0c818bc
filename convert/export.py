"""Writes official tensors to the files PyTorch users expect: the authors' `.pth`, or a Hugging Face directory."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from jaxprune.config import ModelConfig
from jaxprune.families import FAMILIES
from jaxprune.files import replace_file, whole_directory

from .huggingface import KeyLayout, config_json, preprocessor_json, to_huggingface
from .mapping import OFFICIAL


def write_official(path: str | os.PathLike, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Writes one file in the authors' layout: AST with DataParallel's `module.`, AudioMAE under `model`."""
    save_pickle(path, OFFICIAL[config.family].saved(state))


def write_huggingface(
    directory: str | os.PathLike,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    mean: float,
    std: float,
    labels: Sequence[str] = (),
    told: Mapping[str, Any] = MappingProxyType({}),
    readme: str = "",
    layout: KeyLayout = "legacy",
    container: Literal["safetensors", "bin"] = "safetensors",
    overwrite: bool = False,
) -> None:
    """Writes a directory that `ASTForAudioClassification.from_pretrained` loads: weights and two configurations.

    `told` are further fields of config.json, `readme` is the text of a README.md. Raises `ValueError` for a model that
    is not an AST, one with predictors, one whose two LayerNorm eps differ (Hugging Face knows one), and where
    `directory` holds something that is not to be overwritten.
    """
    if not FAMILIES[config.family].in_transformers:
        raise ValueError(f"Hugging Face's transformers has no {config.family} classifier; write it as official instead")
    if config.predictors:
        raise ValueError("Hugging Face's transformers has no place for predictors; write the model as official instead")
    renamed = to_huggingface(state, layout=layout).state
    files = {
        "config.json": {**told, **config_json(config, layout=layout, labels=labels)},
        "preprocessor_config.json": preprocessor_json(config, mean=mean, std=std),
    }
    with whole_directory(directory, marker="config.json", overwrite=overwrite) as unfinished:
        for name, content in files.items():
            (unfinished / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if readme:
            (unfinished / "README.md").write_text(readme, encoding="utf-8")
        if container == "safetensors":
            from safetensors.torch import save  # the one writer that needs it

            (unfinished / "model.safetensors").write_bytes(save(renamed, metadata={"format": "pt"}))
        elif container == "bin":
            save_pickle(unfinished / "pytorch_model.bin", renamed)
        else:
            raise ValueError(f"container is {container!r}; it must be 'safetensors' or 'bin'")


def save_pickle(path: str | os.PathLike, content: Any) -> None:
    """Saves with `torch.save`, whole or not at all.

    It saves to memory first, because torch's own error does not say that a disk is full.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, lambda unfinished: unfinished.write_bytes(buffer.getbuffer()))
