"""The configuration of a Hugging Face AST: `config.json`, and the feature extractor's settings if there are any.

Those lie in `processor_config.json` or `preprocessor_config.json`. They become the sizes, labels and feature statistics
of our configuration. Settings that our models do not have are refused. A field that a file leaves out has transformers'
default, as it has there.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from jaxprune.config import LARGEST, Activation, Card, MethodName, Padding
from jaxprune.data.labels import from_id2label
from jaxprune.features import MELS, SAMPLE_RATE, STATISTICS
from jaxprune.json_files import fit

from .complete_card import Said
from .containers import read_json
from .errors import CheckpointError, shown

OWN = "jaxprune"  # the field of config.json with facts of ours
_SUPPORTED = {"model_type": "audio-spectrogram-transformer", "hidden_act": "gelu", "qkv_bias": True}

# transformers' defaults of the fields that are read. Their types are the types that are accepted.
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
# Larger sizes mean a damaged or hostile file. They are seen before they cause any work.
_LARGEST = {
    "hidden_size": LARGEST["width"],
    "num_hidden_layers": LARGEST["depth"],
    "num_attention_heads": LARGEST["heads"],
    "intermediate_size": 8 * LARGEST["width"],
    "patch_size": LARGEST["patch"],
    "time_stride": LARGEST["time_stride"],
    "frequency_stride": LARGEST["freq_stride"],
    "max_length": LARGEST["frames"],
    "num_mel_bins": LARGEST["mels"],
    "sampling_rate": 1_000_000,
}
_ACTIVATIONS: dict[str, Activation] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(Said):
    """A configuration in our words, and the sizes that elsewhere tensors tell. `labels` is empty for placeholders."""

    width: int
    depth: int
    mlp_width: int
    patch: int
    patches: int

    @classmethod
    def read(cls, folder: Path) -> "HuggingFaceConfig":
        """Reads a folder's two files. Raises `CheckpointError` for what is absent, malformed or unsupported."""
        path = folder / "config.json"
        if not path.exists():
            raise CheckpointError(path, "does not exist; a Hugging Face checkpoint cannot be read without it")
        config = read_json(path)
        for name, wanted in _SUPPORTED.items():
            if (found := config.get(name, wanted)) != wanted:
                raise CheckpointError(path, f"sets {name} to {shown(repr(found))}; only {wanted!r} is supported")
        value, own = _values(config, _DEFAULTS, path=path), _own(config, path)
        mean, std, frames, notes = _features(folder, value)
        absent = sorted(name for name in _DEFAULTS if name not in config)
        if absent:
            notes = (f"config.json does not set {', '.join(absent)}: transformers' defaults were used.", *notes)
        columns = _patches(frames, patch=value["patch_size"], stride=value["time_stride"])
        rows = _patches(value["num_mel_bins"], patch=value["patch_size"], stride=value["frequency_stride"])
        if columns < 1 or rows < 1:
            raise CheckpointError(path, f"sets patch_size to {value['patch_size']}, larger than the spectrogram")
        return cls(
            where="its config.json",
            patches=columns * rows,
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
            padding=own.get("padding", "zero"),  # ASTFeatureExtractor knows no other
            keep_rates=tuple(own.get("keep_rates", ())),
            method=own.get("method", "topk"),
            notes=notes,
        )


def own_facts(card: Card) -> dict[str, Any]:
    """Fields of config.json that tell how scores become probabilities, and what transformers has no place for."""
    kind = {activation: kind for kind, activation in _ACTIVATIONS.items()}[card.activation]
    own = {"padding": card.padding, "keep_rates": list(card.keep_rates)}
    if card.method not in ("topk", "dynamic"):  # top-k is what no method means; predictors have no place there
        own["method"] = card.method
    return {"problem_type": kind, OWN: own}


class _Own(TypedDict, total=False):
    """Facts that jaxprune wrote into a config.json."""

    padding: Padding
    keep_rates: list[float]
    method: MethodName


def _own(config: Mapping[str, Any], path: Path) -> _Own:
    try:
        return fit(config.get(OWN, {}), _Own)
    except ValueError as error:
        raise CheckpointError(path, f"holds facts of jaxprune that cannot be right: {error}") from error


def _features(folder: Path, value: Mapping[str, Any]) -> tuple[float | None, float | None, int, tuple[str, ...]]:
    """The preprocessor's mean, std, and the frames that it pads to, and notes. Without its file the first are None."""
    frames, found = value["max_length"], _feature_settings(folder)
    if found is None:
        return None, None, frames, ()
    path, features = found
    said = _values(features, _FEATURE_DEFAULTS, path=path)
    for name, wanted in (("sampling_rate", SAMPLE_RATE), ("num_mel_bins", value["num_mel_bins"])):
        if said[name] != wanted:
            raise CheckpointError(path, f"sets {name} to {said[name]}; only {wanted} is supported here")

    columns = [
        _patches(length, patch=value["patch_size"], stride=value["time_stride"])
        for length in (said["max_length"], frames)
    ]
    if columns[0] != columns[1]:
        raise CheckpointError(
            path, f"pads to max_length {said['max_length']}, but config.json's {frames} makes another number of patches"
        )
    if features.get("do_normalize", True) is not True:
        note = f"{path.name} turns normalisation off: mean 0 and std 0.5 do the same."
        return 0.0, 0.5, said["max_length"], (note,)
    return said["mean"], said["std"], said["max_length"], ()


def _feature_settings(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The feature extractor's settings and their file. A processor's come first, as in transformers."""
    path = folder / "processor_config.json"
    if path.exists():
        content = read_json(path)
        settings = content.get("feature_extractor", content.get("audio_processor"))
        if isinstance(settings, dict):
            return path, settings
        if settings is not None:
            raise CheckpointError(path, f"holds a feature_extractor of type {type(settings).__name__}, not an object")
    path = folder / "preprocessor_config.json"
    return (path, read_json(path)) if path.exists() else None


def _patches(size: int, *, patch: int, stride: int) -> int:
    return (size - patch) // stride + 1


def _values(content: Mapping[str, Any], defaults: Mapping[str, Any], *, path: Path) -> dict[str, Any]:
    """The named fields, each a whole number of a sane size, or a number where the default is a float."""
    values, problems = {}, []
    for name, default in defaults.items():
        value = values[name] = content.get(name, default)
        if isinstance(default, float):
            fits, wanted = type(value) in (int, float) and abs(value) < 1e30, "a number of a sane size"
        else:
            largest = _LARGEST[name]
            fits, wanted = type(value) is int and 0 < value <= largest, f"a whole number from 1 to {largest:,}"
        if not fits:
            problems.append(f"{name}: is {shown(repr(value))}, expected {wanted}")
    if problems:
        raise CheckpointError(path, "holds values that cannot be right:", problems)
    return values


def _labels(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """id2label in index order. None if it is absent or holds only transformers' placeholders."""
    if not config.get("id2label"):
        return ()
    try:
        labels = from_id2label(config["id2label"])
    except ValueError as error:
        raise CheckpointError(path, f"names its classes in a way that cannot be used: {error}") from error
    return () if labels == tuple(f"LABEL_{index}" for index in range(len(labels))) else labels
