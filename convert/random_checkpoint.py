"""Writes checkpoints of random weights in the formats that AST and AudioMAE are published in.

The tests and the demo need files like the real ones and download none. These have the same containers, the same keys
and the same company beside the weights. A model of random weights classifies nothing; it can show parity, cost and
speed. Every parameter is drawn, biases and norms too, so that a mistake in any of them reaches the logits. The rest of
`convert` reads checkpoints.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jaxprune.cli.console import run
from jaxprune.config import ModelConfig
from jaxprune.families import FAMILIES
from jaxprune.positions import published_positions

from . import export
from .export import save_pickle
from .huggingface import KeyLayout
from .torch_reference import build

IMAGENET_CLASSES = 1000
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974


def write_ast_official(path: str | os.PathLike, config: ModelConfig, *, seed: int) -> None:
    """Writes what AST's training code saves: a raw state dict with `module.` and the two idle ImageNet heads."""
    state = random_state(_of_family(config, "ast"), seed=seed)
    for name in ("v.head", "v.head_dist"):
        shapes = {f"{name}.weight": (IMAGENET_CLASSES, config.width), f"{name}.bias": (IMAGENET_CLASSES,)}
        state |= draw(shapes, seed=seed + 1)
    export.write_official(path, state, config)


def write_huggingface(
    directory: str | os.PathLike,
    config: ModelConfig,
    *,
    seed: int,
    layout: KeyLayout = "v5",
    container: Literal["safetensors", "bin"] = "safetensors",
    labels: Sequence[str] = (),
    mean: float = AUDIOSET_MEAN,
    std: float = AUDIOSET_STD,
) -> None:
    """Writes a directory that `ASTForAudioClassification.from_pretrained` loads: weights and two configurations.

    Hugging Face knows one LayerNorm eps, so `config` must have `norm_eps` and `head_norm_eps` equal (1e-12 in published
    files). Raises `ValueError` otherwise. Without `labels` the classes are called LABEL_0 and so on, as in
    transformers.
    """
    state = random_state(_of_family(config, "ast"), seed=seed)
    export.write_huggingface(
        directory, state, config, layout=layout, container=container, labels=labels, mean=mean, std=std, overwrite=True
    )


def write_audiomae_pretrained(
    path: str | os.PathLike,
    config: ModelConfig,
    *,
    seed: int,
    decoder_width: int = 32,
    decoder_heads: int = 4,
    decoder_depth: int = 2,
) -> None:
    """Writes a pre-training checkpoint: encoder with `norm`, decoder and mask token, no `fc_norm` and no `head`.

    The decoder has the keys of the released one, a Swin of 16 blocks, width 512 and 16 heads. It is smaller unless told
    otherwise, because a classifier ignores it.
    """
    state = random_state(_of_family(config, "audiomae"), seed=seed)
    state = {key: value for key, value in state.items() if not key.startswith(("fc_norm.", "head."))}
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, decoder_width)}
    shapes |= norm("norm", config.width)
    shapes |= linear("decoder_embed", config.width, decoder_width)
    for i in range(decoder_depth):
        block = f"decoder_blocks.{i}"
        shapes[f"{block}.attn.tau"] = (decoder_heads,)
        shapes |= linear(f"{block}.attn.qkv", decoder_width, 3 * decoder_width)
        shapes |= linear(f"{block}.attn.proj", decoder_width, decoder_width)
        shapes |= linear(f"{block}.attn.meta_mlp.fc1", 2, 384) | linear(
            f"{block}.attn.meta_mlp.fc2", 384, decoder_heads
        )
        shapes |= norm(f"{block}.norm1", decoder_width) | norm(f"{block}.norm2", decoder_width)
        shapes |= linear(f"{block}.mlp.fc1", decoder_width, 4 * decoder_width)
        shapes |= linear(f"{block}.mlp.fc2", 4 * decoder_width, decoder_width)
    shapes |= norm("decoder_norm", decoder_width) | linear("decoder_pred", decoder_width, config.patch**2)
    state |= draw(shapes, seed=seed + 1)
    state["decoder_pos_embed"] = _positions(dataclasses.replace(config, width=decoder_width, heads=1))
    arguments = {"model": "mae_vit_base_patch16", "mask_ratio": 0.8, "norm_pix_loss": True, "decoder_mode": 1}
    save_pickle(path, training_state(state, arguments=arguments))


def write_audiomae_finetuned(path: str | os.PathLike, config: ModelConfig, *, seed: int) -> None:
    """Writes a fine-tuning checkpoint: `{'model', 'optimizer', 'epoch', 'scaler', 'args'}`, the last a Namespace."""
    state = random_state(_of_family(config, "audiomae"), seed=seed)
    arguments = {"model": "vit_base_patch16", "nb_classes": config.classes, "global_pool": True, "drop_path": 0.1}
    save_pickle(path, training_state(state, arguments=arguments))


def random_state(config: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """Random float32 parameters for `config` under the official names without `module.`. Fixed positions are real.

    The same seed gives the same weights on every machine with the same PyTorch.
    """
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    state = draw(shapes, seed=seed)
    if FAMILIES[config.family].positions == "sincos":
        state["pos_embed"] = _positions(config)
    return state


def draw(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, Tensor]:
    """Normal draws, in the order of `shapes`. Activations stay near 1, and attention is not uniform.

    Weights are N(0, 1 / fan-in); those of qkv have 1.5 times that deviation. LayerNorm gains are about 1. Every bias,
    token and table is far enough from zero to be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator) * _spread(key, shape) + _centre(key)
        for key, shape in shapes.items()
    }


def _spread(key: str, shape: tuple[int, ...]) -> float:
    if key.endswith("weight") and len(shape) > 1:
        return (1.5 if ".qkv." in key else 1.0) / math.sqrt(math.prod(shape[1:]))
    return 0.2 if "norm" in key or key.startswith("mlp_head.0") else 0.4


def _centre(key: str) -> float:
    gain = key.endswith("weight") and ("norm" in key or key.startswith("mlp_head.0"))
    return 1.0 if gain or key.endswith("tau") else 0.0


def _positions(config: ModelConfig) -> Tensor:
    """AudioMAE's fixed position table (1, n + 1, d), float32."""
    return torch.from_numpy(published_positions(config)).float()[None]


def training_state(model: dict[str, Tensor], *, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint of MAE's training loop: model, optimiser, epoch, loss scaler, command line."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.95))
    parameter.sum().backward()
    optimizer.step()
    scaler = {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 7,
    }
    command = {
        "batch_size": 8,
        "epochs": 60,
        "blr": 1e-3,
        "dataset": "audioset",
        "device": "cuda",
        "output_dir": "./out",
    }
    return {
        "model": model,
        "optimizer": optimizer.state_dict(),
        "epoch": 59,
        "scaler": scaler,
        "args": argparse.Namespace(**command, **arguments),
    }


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _of_family(config: ModelConfig, family: str) -> ModelConfig:
    if config.family != family:
        raise ValueError(f"this format is for {family} models, but the configuration is of family {config.family!r}")
    return config


FORMATS: dict[tuple[str, str], Callable[..., None]] = {
    ("ast", "official"): write_ast_official,
    ("ast", "huggingface"): write_huggingface,
    ("audiomae", "pretrained"): write_audiomae_pretrained,
    ("audiomae", "finetuned"): write_audiomae_finetuned,
}


def main(
    what: str,
    out: Path,
    /,
    *,
    classes: int = 527,
    frames: int = 1024,
    stride: int = 16,
    seed: int = 0,
) -> None:
    """Write a checkpoint of random weights.

    Args:
        what: family-size-format, such as ast-base-official, ast-small-huggingface, audiomae-base-pretrained or
            audiomae-base-finetuned.
        out: the file to write, or for huggingface the directory.
        classes: outputs of the classifier.
        frames: spectrogram frames, 10 ms each.
        stride: patch stride in time and frequency.
        seed: of the random weights.
    """
    family, _, rest = what.partition("-")
    size, _, form = rest.partition("-")
    if (family, form) not in FORMATS:
        known = ", ".join(f"{a}-SIZE-{b}" for a, b in FORMATS)
        raise ValueError(f"{what!r} is not a kind of checkpoint; choose one of {known}")
    eps = {"norm_eps": 1e-12, "head_norm_eps": 1e-12} if form == "huggingface" else {}
    config = ModelConfig.of_size(
        family, size, classes=classes, frames=frames, time_stride=stride, freq_stride=stride, **eps
    )
    FORMATS[family, form](out, config, seed=seed)
    print(f"Wrote {out}: {what}, {config.patches} patches, {classes} classes.")
    print(f"Its weights are RANDOM (seed {seed}): it classifies nothing and serves to check parity, cost and speed.")


if __name__ == "__main__":
    run(main)
