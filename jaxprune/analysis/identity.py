"""The description of an extraction in JSON's types: weights, clips, pruning and computation.

`jaxprune.analysis.extract` writes it into the manifest. It goes on only with an extraction of the same description.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.checkpoint import leaves, weights_digest
from jaxprune.config import Card, ModelConfig
from jaxprune.cost import macs
from jaxprune.data.records import Dataset, Split
from jaxprune.json_files import fit
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy

MelType = Literal["float32", "float16"]
SHARD_CLIPS = 256


def describe(
    model: Classifier,
    dataset: Dataset,
    *,
    split: Split,
    card: Card,
    policy: Policy,
    batch: int,
    shard_batches: int = SHARD_CLIPS // 32,
    mel: MelType | None = None,
    checkpoint: str | os.PathLike[str] = "",
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The description of an extraction. A call that differs in any of it does not go on with another's.

    SHA-256 tells weights and clips apart. The weights' is of the parameters; the clips' is of file names below their
    common folder, and of labels. No sound is opened. `checkpoint`, the place of the weights, and `source`, the data
    set's options, are notes only: either may be moved.
    """
    clips = dataset.clips(split)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(clip.path)) for clip in clips])
    lines = [f"{os.path.relpath(os.path.abspath(clip.path), root)}\t{list(clip.labels)}\n" for clip in clips]
    return {
        "checkpoint": {
            "path": str(checkpoint),
            "weights_sha256": model_digest(model),
            "card": _plain(card.to_json()),
        },
        "model": _plain(card.to_json()["model"] | {"frames": model.config.frames}),
        "data": {
            "name": dataset.name,
            "split": split,
            "clips": len(clips),
            "labels": list(dataset.labels),
            "single_label": dataset.single_label,
            "sha256": hashlib.sha256("".join([*lines, *dataset.labels]).encode()).hexdigest(),
            "source": _plain(source or {}),
        },
        "macs": macs(model, policy),
        "policy": {
            "score": _described(policy.score),
            "stages": {str(block): _described(policy.stages[block]) for block in sorted(policy.stages)},
        },
        "compute": {"dtype": str(model.dtype), "batch": batch, "shard_batches": shard_batches, "mel": mel},
    }


def model_digest(model: nnx.Module) -> str:
    """The digest of all parameters and tables of a model, as in the card of a checkpoint."""
    return weights_digest({name: np.asarray(leaf[...]) for name, leaf in leaves(model).items()})


def check_same(out: Path, manifest: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Raises `ValueError`, with a sentence on the first difference, unless both describe the same extraction."""

    def told(*names: str) -> tuple[Any, Any]:
        there, here = manifest, description
        for name in names:
            there, here = there.get(name), here.get(name)
        return there, here

    questions = {  # in the order in which they matter to a reader
        "frames (T)": ("model", "frames"),
        "model geometry": ("model",),
        "weights": ("checkpoint", "weights_sha256"),
        "model card": ("checkpoint", "card"),
        "data set": ("data", "name"),
        "split": ("data", "split"),
        "clips": ("data", "sha256"),
        "score": ("policy", "score"),
        "pruning": ("policy", "stages"),
        **{name: ("compute", name) for name in ("dtype", "batch", "shard_batches", "mel")},
    }
    for what, names in questions.items():
        there, here = (NOW.get(what, lambda value: value)(value) for value in told(*names))
        if there != here:
            raise ValueError(
                f"{out} holds an extraction with other {what}: {_short(there)} there, {_short(here)} here; choose "
                "another folder"
            )


def _card_now(card: Any) -> Any:
    """A card with the fields that this version adds to older ones."""
    try:
        return _plain(Card.from_json(card).to_json())
    except ValueError:
        return card


def _model_now(model: Any) -> Any:
    """A geometry with the fields that this version adds to older ones."""
    try:
        return _plain(dataclasses.asdict(fit(model, ModelConfig)))
    except ValueError:
        return model


NOW = {"model card": _card_now, "model geometry": _model_now}


def _described(part: Any) -> dict[str, Any]:
    """A score or stage: its class and its fields. Arrays of more than one value are given by digest."""
    values = {name: _value(getattr(part, name)) for name in getattr(part, "__dataclass_fields__", {})}
    return {"kind": type(part).__name__, **values}


def _value(value: Any) -> Any:
    if isinstance(value, nnx.Module):
        return model_digest(value)
    if jnp.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else hashlib.sha256(array.tobytes()).hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back, so that a description equals one that was read."""
    return json.loads(json.dumps(values, default=str))


def _short(value: Any) -> str:
    """A value in a sentence; digests by their first characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= 160 else f"{text[:159]}…"
