"""Saving and loading a model: a directory with the weights (Orbax) and a card in JSON that says what they are.

    my_model/card.json    geometry, feature statistics, labels, activation, source; digests of all that
    my_model/weights/     every parameter and fixed table, by dotted name, float32 unless saved as half

No torch, no pickle. Writing is all or nothing: the directory appears under its name when it is complete. Reading
bounds the work first, and holds card and weights against each other and their digests. Training state is not kept here.
"""

import dataclasses
import hashlib
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import nnx

from jaxprune.card_file import CARD, CardFile, card_text, read_card
from jaxprune.config import Card
from jaxprune.files import REFUSED, NotWritten, quiet_orbax, whole_directory, write_text
from jaxprune.models import Classifier, abstract
from jaxprune.parallel.devices import check_device
from jaxprune.positions import adapt_positions

Model = TypeVar("Model", bound=nnx.Module)
Shapes = Callable[[Card], nnx.Module]

WEIGHTS = "weights"
# A run of `jaxprune finetune` keeps its finished model here.
RUN_MODEL = "model"
# Models that come with the library: `load("ast-words")`, or `load(SHIPPED / "ast-words")`.
SHIPPED = Path(__file__).resolve().parent / "shipped"

FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
SHOWN = 12  # problems in one message
HEADER = "/.zarray"  # the key of an array's shape and type, after its name
STORED = ("float16", "bfloat16", "float32", "float64")
# TensorStore's errors for damaged files. Anything else is not the files' fault and shows itself.
DAMAGE = (ValueError, OSError)


def load(checkpoint_dir: str | os.PathLike, *, dtype: Any = jnp.float32, frames: int | None = None) -> Classifier:
    """The model saved in a directory, computing in `dtype` (its parameters stay float32).

    The directory is a checkpoint, or a finished run, whose model is loaded. `frames` adapts the position table to
    spectrograms of another length. Warns where an old card lacks the digest of itself or of the weights.

    Raises `ValueError` when the directory is not a checkpoint, when its card was changed since it was written, or when
    its weights are not exactly those the card calls for: missing, unexpected, misshapen, damaged or not finite.
    `OSError` when JAX has no device to put them on.
    """
    card, saved = read(checkpoint_dir, shapes=classifier)
    config = card.model
    if frames is not None and frames != config.frames:
        saved["positions"] = adapt_positions(saved["positions"], config, frames=frames)
        config = dataclasses.replace(config, frames=frames)
    return fill(abstract(config, dtype=dtype), saved, source=str(checkpoint_dir))


def read(checkpoint_dir: str | os.PathLike, *, shapes: Shapes) -> tuple[Card, dict[str, np.ndarray]]:
    """The card and the weights of a checkpoint, held against each other and the digest; raises and warns as `load`.

    `shapes` makes the card's model with shapes in place of arrays, or raises `DoesNotFit` for a model of another kind.
    """
    directory = _checkpoint_in(checkpoint_dir)
    known = _intact_card(directory)
    card = known.card
    check_device()
    saved = read_weights(directory, card=card, shapes=shapes)
    if known.unprotected:
        warnings.warn(
            f"{directory / CARD} holds no digest {known.unprotected}, so damage could not be seen "
            "(jaxprune.checkpoint.add_digest adds one)",
            stacklevel=2,
        )
    if known.weights not in (None, weights_digest(saved)):
        raise ValueError(
            f"the weights in {directory} are damaged: they are not those that its {CARD} was written with; convert or "
            "copy them again"
        )
    return card, saved


def classifier(card: Card) -> Classifier:
    """The card's classifier with shapes in place of arrays. Raises `DoesNotFit` for a pretraining model."""
    if card.decoder is not None:
        raise DoesNotFit(
            "this is a pretraining model, which has no classes: fine-tune it (jaxprune finetune, --start.checkpoint)"
        )
    return abstract(card.model)


def load_card(checkpoint_dir: str | os.PathLike) -> Card:
    """The card beside a model's weights. Raises `ValueError` when there is none, or it is not valid or was changed."""
    return _intact_card(_checkpoint_in(checkpoint_dir)).card


def save(
    checkpoint_dir: str | os.PathLike,
    model: nnx.Module,
    *,
    card: Card,
    overwrite: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Path:
    """Writes a model and its card. The directory is complete or absent; `overwrite` swaps a complete one for an old
    one. Weights are rounded to `dtype`: float16 makes half the file, and is read back as float32.

    Raises `ValueError` when the directory exists and is not to be overwritten, the card is of another model, or a
    weight is not finite (in `dtype`).
    """
    if card.model != model.config:
        raise ValueError(f"the card describes {card.model}, but the model is {model.config}")
    arrays = {name: np.asarray(leaf[...], dtype) for name, leaf in leaves(model).items()}
    _check_finite(arrays, source=f"the model for {checkpoint_dir}")
    digest = weights_digest({name: values.astype(np.float32) for name, values in arrays.items()})
    with whole_directory(checkpoint_dir, marker=CARD, overwrite=overwrite) as directory:
        write_weights(directory, arrays)
        (directory / CARD).write_text(card_text(card, weights=digest), encoding="utf-8")
    return Path(checkpoint_dir)


def add_digest(checkpoint_dir: str | os.PathLike) -> str:
    """Accepts a card as it is: writes the digests of its fields and of its weights into it, and returns the latter.

    For cards that are older than digests or were edited on purpose. The weights are not touched, and must be those
    that the card was written with: raises `ValueError` as `load` does.
    """
    directory = _checkpoint_in(checkpoint_dir)
    known = read_card(directory / CARD)
    weights = read_weights(directory, card=known.card)
    fill(classifier(known.card), weights, source=str(directory))
    digest = weights_digest(weights)
    if known.weights not in (None, digest):
        raise ValueError(f"the weights in {directory} are not those that its {CARD} was written with")
    write_text(directory / CARD, card_text(known.card, weights=digest))
    return digest


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and bytes of arrays, whatever their order and storage."""
    digest = hashlib.sha256()
    for name, values in sorted(weights.items()):
        values = np.ascontiguousarray(values)
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


def leaves(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable that a checkpoint holds, by dotted name, e.g. `encoder.blocks.3.attention.qkv.kernel`."""
    return {dotted(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}


def dotted(path: tuple) -> str:
    """A variable's name in files and messages."""
    return ".".join(map(str, path))


def fill(model: Model, weights: Mapping[str, np.ndarray], *, source: str) -> Model:
    """The (abstract or real) model with every leaf set from `weights`, by dotted name, as float32.

    Raises `ValueError` naming `source` and the missing, unexpected and misshapen weights, or those not finite.
    """
    _check_shapes({name: values.shape for name, values in weights.items()}, model, source=source)
    weights = {name: np.asarray(values, np.float32) for name, values in weights.items()}
    _check_finite(weights, source=source)
    graph, state = nnx.split(model)
    # `jnp.asarray` would compile a program for every shape.
    filled = [(path, leaf.replace(jax.device_put(weights[dotted(path)]))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def write_weights(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Saves arrays by name in a new directory. Raises `NotWritten` where the system refuses."""
    quiet_orbax()
    try:
        with _alone() as checkpointer:
            checkpointer.save((directory / WEIGHTS).absolute(), arrays)
    except REFUSED as error:
        raise NotWritten(directory, error) from error


def read_weights(directory: Path, *, card: Card, shapes: Shapes = classifier) -> dict[str, np.ndarray]:
    """The saved arrays by dotted name as float32, on the host.

    Names and shapes are held against the card, and sizes bounded, before an array is read. Raises as `load`.
    """
    path = (directory / WEIGHTS).absolute()
    if not path.is_dir():
        raise ValueError(f"the weights in {directory} are missing; convert or copy them again")
    size = _size_of_files(path)
    try:
        stored = _open_arrays(path)
        _check_saved(stored, card, shapes=shapes, size=size, source=str(directory))
        reading = {name: array.read() for name, array in stored.items()}
        return {name: np.asarray(future.result(), np.float32) for name, future in reading.items()}
    except DoesNotFit:
        raise
    except DAMAGE as error:
        summary = re.split(r"[\n\[]", str(error).strip())[0].strip()[:300] or type(error).__name__
        message = f"the weights in {directory} are damaged ({summary}); convert or copy them again"
        raise ValueError(message) from error


def _open_arrays(path: Path) -> dict[str, ts.TensorStore]:
    """The arrays that Orbax has stored in a directory, by name, opened but not read.

    TensorStore, which Orbax stores with, reads them: Orbax's own reader reports each damaged array on stderr, from
    threads, and needs a device.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
    names = sorted(key.removesuffix(HEADER) for key in keys if key.endswith(HEADER))
    opening = {
        name: ts.open(
            {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}, "fill_missing_data_reads": False}, open=True
        )
        for name in names
    }
    return {name: future.result() for name, future in opening.items()}


def _alone() -> Any:
    """Orbax's checkpointer for this process alone, of several: it does not wait for the others."""
    import orbax.checkpoint as ocp  # 30 MB that reading a model does without

    me = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
        )
    )


class DoesNotFit(ValueError):
    """Weights of another model than the card's or the caller's; their files need not be damaged."""


def _checkpoint_in(path: str | os.PathLike) -> Path:
    """The path itself, the model of a run, or the shipped model of that name where there is no such path.

    Raises `ValueError` with the reason if it is none of them.
    """
    path = Path(path)
    if path == Path(path.name) and not path.exists() and (SHIPPED / path.name).is_dir():
        return SHIPPED / path.name
    for directory in (path, path / RUN_MODEL):
        if (directory / CARD).exists():
            return directory
    convert = f"convert it first: jaxprune convert {path} OUT"
    if not path.exists():
        raise ValueError(f"there is no {path}; a jaxprune checkpoint is a directory that holds {CARD} and {WEIGHTS}")
    if not path.is_dir():
        if path.suffix.lower() in FOREIGN:
            raise ValueError(f"{path} is a file of weights, not the directory of a jaxprune checkpoint; {convert}")
        raise ValueError(f"{path} is not a jaxprune checkpoint, which is a directory that holds {CARD} and {WEIGHTS}")
    if any(entry.suffix.lower() in FOREIGN for entry in path.iterdir()):
        raise ValueError(f"{path} is not a jaxprune checkpoint (it has no {CARD}) but holds weights; {convert}")
    if (path / "checkpoints").is_dir():
        raise ValueError(
            f"{path} is a run without a finished model; run the jaxprune finetune that began it again and it goes on"
        )
    raise ValueError(f"{path} is not a jaxprune checkpoint (it has no {CARD}); make one: jaxprune convert SOURCE OUT")


def _intact_card(directory: Path) -> CardFile:
    """A checkpoint's card. Raises `ValueError` where it has a digest and that is of other fields."""
    found = read_card(directory / CARD)
    if not found.intact:
        accept = f"python -c \"import jaxprune.checkpoint as c; c.add_digest('{directory}')\""
        raise ValueError(
            f"{directory / CARD} was changed since it was written: its digest is of other fields; convert or copy it "
            f"again, or accept the change: {accept}"
        )
    return found


def _size_of_files(directory: Path) -> int:
    """Bytes of all files below a directory. Raises `ValueError` for anything but folders and regular files."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            found = os.stat(os.path.join(folder, name))
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{os.path.join(folder, name)} is not a regular file")
            size += found.st_size
    return size


def _check_saved(saved: Mapping[str, ts.TensorStore], card: Card, *, shapes: Shapes, size: int, source: str) -> None:
    """Raises unless the stored names, shapes and types are those of the card's model, and the files of their size."""
    blocks = len({name.split(".")[2] for name in saved if name.startswith("encoder.blocks.")})
    if blocks != card.model.depth:  # before a model of any depth is built
        raise DoesNotFit(
            f"the weights in {source} do not fit their model: the card calls for {card.model.depth} blocks, the "
            f"weights hold {blocks}"
        )
    try:
        model = shapes(card)
    except DoesNotFit as error:
        raise DoesNotFit(f"{source}: {error}") from error
    _check_shapes({name: leaf.shape for name, leaf in saved.items()}, model, source=source)
    for name, leaf in saved.items():
        if leaf.dtype.name not in STORED:
            raise DoesNotFit(f"the weights in {source} are damaged: {name} is of type {leaf.dtype.name}")
        chunk = leaf.chunk_layout.read_chunk.shape
        if any(part > whole for part, whole in zip(chunk, leaf.shape, strict=True)):
            raise DoesNotFit(f"the weights in {source} are damaged: {name} is cut in pieces larger than itself")
    most = 16 * 2**20 + 3 * sum(4 * leaf.size for leaf in saved.values())
    if size > most:
        raise DoesNotFit(f"the weights in {source} are {size:,} bytes large; the card's model needs less than {most:,}")


def _check_shapes(found: Mapping[str, tuple[int, ...]], model: nnx.Module, *, source: str) -> None:
    wanted = {name: leaf.shape for name, leaf in leaves(model).items()}
    problems = [f"missing: {name} {wanted[name]}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected: {name} {found[name]}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"wrong shape: {name} is {found[name]}, the card calls for {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DoesNotFit(f"the weights in {source} do not fit their model: {'; '.join(problems[:SHOWN])}{more}")


def _check_finite(weights: Mapping[str, np.ndarray], *, source: str) -> None:
    if broken := [name for name, values in weights.items() if not np.isfinite(values).all()]:
        raise DoesNotFit(
            f"the weights in {source} are not all finite numbers: {broken[0]}"
            + (f" and {len(broken) - 1} more" if len(broken) > 1 else "")
        )
