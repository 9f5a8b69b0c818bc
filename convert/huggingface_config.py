"""What a Hugging Face AST says beside its tensors: `config.json`, and `preprocessor_config.json` where there is one.

Turns them into the sizes, labels and feature statistics of our own configuration, and refuses settings our models do
not have. Fields a file leaves out take transformers' own defaults, as they would there.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune.config import Activation
from jaxprune.data.labels import from_id2label
from jaxprune.features import MELS, SAMPLE_RATE, STATISTICS

from .containers import CheckpointError, read_json

MODEL_TYPE = "audio-spectrogram-transformer"
LARGEST = 100_000  # of any size in a configuration: the work that checking causes is bounded by it

# transformers' defaults for what we read, and with them the types we accept.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "patch_size": 16,
    "time_stride": 10,
    "frequency_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
_FEATURE_DEFAULTS = {
    "mean": STATISTICS["audioset"].mean,
    "std": STATISTICS["audioset"].std,
    "max_length": STATISTICS["audioset"].frames,
    "num_mel_bins": MELS,
    "sampling_rate": SAMPLE_RATE,
}
_ACTIVATIONS: dict[str, Activation] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """A configuration in our words. `labels` is empty for placeholders; `activation`, `mean`, `std` None if unsaid."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    norm_eps: float
    patch: int
    time_stride: int
    freq_stride: int
    frames: int
    mels: int
    labels: tuple[str, ...]
    activation: Activation | None
    mean: float | None
    std: float | None
    notes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "HuggingFaceConfig":
        """Reads a checkpoint folder's two files. `CheckpointError` for what is absent, malformed or unsupported."""
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(path, "does not exist; a Hugging Face checkpoint cannot be read without it")
        config = read_json(path)
        if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise CheckpointError(path, f"describes a model of type {config['model_type']!r}, not {MODEL_TYPE!r}")
        if config.get("hidden_act", "gelu") != "gelu":
            raise CheckpointError(path, f"sets hidden_act to {config['hidden_act']!r}; only 'gelu' is supported")
        if config.get("qkv_bias", True) is not True:
            raise CheckpointError(path, f"sets qkv_bias to {config['qkv_bias']!r}; only true is supported")
        value = _values(config, _DEFAULTS, path=path)
        mean, std, frames, notes = _features(folder, value)
        absent = sorted(name for name in _DEFAULTS if name not in config)
        if absent:
            notes = (f"config.json does not set {', '.join(absent)}: transformers' defaults were used.", *notes)
        return cls(
            width=value["hidden_size"],
            depth=value["num_hidden_layers"],
            heads=value["num_attention_heads"],
            mlp_width=value["intermediate_size"],
            norm_eps=value["layer_norm_eps"],
            patch=value["patch_size"],
            time_stride=value["time_stride"],
            freq_stride=value["frequency_stride"],
            frames=frames,
            mels=value["num_mel_bins"],
            labels=_labels(config, path),
            activation=_ACTIVATIONS.get(str(config.get("problem_type"))),
            mean=mean,
            std=std,
            notes=notes,
        )


def _features(folder: Path, value: Mapping[str, Any]) -> tuple[float | None, float | None, int, tuple[str, ...]]:
    """The preprocessor's (mean, std), the frames it pads to, and notes; (None, None) without such a file."""
    path, frames = folder / "preprocessor_config.json", value["max_length"]
    if not path.is_file():
        return None, None, frames, ()
    features = read_json(path)
    said = _values(features, _FEATURE_DEFAULTS, path=path)
    for name, wanted in (("sampling_rate", SAMPLE_RATE), ("num_mel_bins", value["num_mel_bins"])):
        if said[name] != wanted:
            raise CheckpointError(path, f"sets {name} to {said[name]}; only {wanted} is supported here")

    def columns(length: int) -> int:
        return (length - value["patch_size"]) // value["time_stride"] + 1

    if columns(said["max_length"]) != columns(frames):
        raise CheckpointError(
            path, f"pads to max_length {said['max_length']}, but config.json's {frames} makes another number of patches"
        )
    if features.get("do_normalize", True) is not True:
        note = "preprocessor_config.json turns normalisation off: mean 0 and std 0.5 do the same."
        return 0.0, 0.5, said["max_length"], (note,)
    return said["mean"], said["std"], said["max_length"], ()


def _values(content: Mapping[str, Any], defaults: Mapping[str, Any], *, path: Path) -> dict[str, Any]:
    """The named fields, each a whole number of a sane size, or a number where the default is a float."""
    values, problems = {}, []
    for name, default in defaults.items():
        value = values[name] = content.get(name, default)
        if isinstance(default, float):
            fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        else:
            fits, wanted = type(value) is int and 0 < value <= LARGEST, f"a whole number from 1 to {LARGEST}"
        if not fits:
            problems.append(f"{name}: is {value!r}, expected {wanted}")
    if problems:
        raise CheckpointError(path, "holds values that cannot be right:", problems)
    return values


def _labels(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """id2label in index order; none where it is absent or only transformers' placeholders."""
    if not config.get("id2label"):
        return ()
    try:
        labels = from_id2label(config["id2label"])
    except ValueError as error:
        raise CheckpointError(path, f"names its classes in a way that cannot be used: {error}") from error
    return () if labels == tuple(f"LABEL_{index}" for index in range(len(labels))) else labels
