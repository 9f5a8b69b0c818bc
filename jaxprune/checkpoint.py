"""Saving and loading a model: a directory with the weights (Orbax) and a card in JSON that says what they are.

    my_model/card.json    geometry, feature statistics, labels, activation, source
    my_model/weights/     every parameter and fixed table, by dotted name, float32 unless saved as half

No torch, no pickle. Writing is all or nothing: the directory appears under its name when it is complete. Training
state is not kept here.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jaxprune.config import Card
from jaxprune.files import NotWritten, quiet_orbax, whole_directory
from jaxprune.models import Classifier, abstract
from jaxprune.positions import adapt_positions

CARD, WEIGHTS = "card.json", "weights"
# Models that come with the library: `load("ast-words")`, or `load(SHIPPED / "ast-words")`.
SHIPPED = Path(__file__).resolve().parent / "shipped"


def load(checkpoint_dir: str | os.PathLike, *, dtype: Any = jnp.float32, frames: int | None = None) -> Classifier:
    """The model saved in a directory, computing in `dtype` (its parameters stay float32).

    `frames` adapts the position table to spectrograms of another length. Raises `ValueError` when the directory is not
    a checkpoint, or when its weights are not exactly those its card calls for: missing, unexpected and misshapen ones
    are all listed.
    """
    directory = directory_of(checkpoint_dir)
    card = load_card(directory)
    saved = read_weights(directory)
    config = card.model
    if frames is not None and frames != config.frames:
        saved["positions"] = adapt_positions(saved["positions"], config, frames=frames)
        config = dataclasses.replace(config, frames=frames)
    return fill(abstract(config, dtype=dtype), saved, source=str(directory))


def load_card(checkpoint_dir: str | os.PathLike) -> Card:
    """The card beside a model's weights. Raises `ValueError` when there is none or it is not valid."""
    path = directory_of(checkpoint_dir) / CARD
    try:
        return Card.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(
            f"{checkpoint_dir} is not a jaxprune checkpoint (it has no {CARD}); "
            "make one with jaxprune convert SOURCE OUT"
        ) from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a model card: {error}") from error


def directory_of(checkpoint: str | os.PathLike) -> Path:
    """The directory of a checkpoint: the path given, or the shipped model of that name if there is no such path."""
    path = Path(checkpoint)
    shipped = SHIPPED / path.name
    return shipped if path == Path(path.name) and shipped.is_dir() and not path.exists() else path


def save(
    checkpoint_dir: str | os.PathLike,
    model: Classifier,
    *,
    card: Card,
    overwrite: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Path:
    """Writes a model and its card. The directory is complete or absent; `overwrite` swaps a complete one for an old
    one. Weights are rounded to `dtype`: float16 makes half the file, and is read back as float32.

    Raises `ValueError` when the directory exists and is not to be overwritten, or the card is of another model.
    """
    if card.model != model.config:
        raise ValueError(f"the card describes {card.model}, but the model is {model.config}")
    arrays = {name: np.asarray(leaf[...], dtype) for name, leaf in leaves(model).items()}
    with whole_directory(checkpoint_dir, marker=CARD, overwrite=overwrite) as directory:
        write_weights(directory, arrays)
        (directory / CARD).write_text(json.dumps(card.to_json(), indent=1) + "\n")
    return Path(checkpoint_dir)


def leaves(model: Classifier) -> dict[str, nnx.Variable]:
    """Every variable that a checkpoint holds, by dotted name, e.g. `encoder.blocks.3.attention.qkv.kernel`."""
    return {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}


def dotted(path: tuple) -> str:
    """A variable's name in files and messages."""
    return ".".join(map(str, path))


def fill(model: Classifier, weights: dict[str, np.ndarray], *, source: str) -> Classifier:
    """The (abstract or real) model with every leaf set from `weights`, by dotted name, as float32.

    Raises `ValueError` naming `source` and all missing, unexpected and misshapen weights.
    """
    wanted = leaves(model)
    problems = [f"missing: {name} {wanted[name].shape}" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"unexpected: {name} {weights[name].shape}" for name in sorted(weights.keys() - wanted.keys())]
    problems += [
        f"wrong shape: {name} is {weights[name].shape}, the card calls for {wanted[name].shape}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    if problems:
        raise ValueError(f"the weights in {source} do not fit their model: " + "; ".join(problems))
    graph, state = nnx.split(model)
    filled = [
        (path, leaf.replace(jnp.asarray(weights[dotted(path)], jnp.float32))) for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def write_weights(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Saves arrays by name in a new directory. Raises `NotWritten` where the system refuses."""
    quiet_orbax()
    try:
        with alone() as checkpointer:
            checkpointer.save((directory / WEIGHTS).absolute(), arrays)
    except Exception as error:  # Orbax and TensorStore raise many types
        raise NotWritten(directory, error) from error


def read_weights(directory: Path) -> dict[str, np.ndarray]:
    """The saved arrays by dotted name, on the host."""
    path = (directory / WEIGHTS).absolute()
    try:
        with alone() as checkpointer:
            saved = checkpointer.metadata(path).item_metadata
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            abstract = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for name, leaf in saved.items()
            }
            return {name: np.asarray(leaf) for name, leaf in checkpointer.restore(path, abstract).items()}
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged or absent directory
        summary = str(error).strip().split("\n")[0]
        message = f"the weights in {directory} are missing or damaged ({summary}); convert or copy them again"
        raise ValueError(message) from error


def alone() -> ocp.StandardCheckpointer:
    """Reads and writes what this process asks for, of several, without waiting for the others."""
    me = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
        )
    )
