"""Reads an AST or AudioMAE checkpoint of any published format into official tensors and a model card.

`read_torch` accounts for every key: it is used, ignored with a reason, or an error. All problems are gathered before it
raises. Its steps have files of their own. `containers.py` opens files safely. `state_dicts.py` finds the weights,
`formats.py` knows their names, `geometry.py` and `mapping.py` their shapes. `complete_card.py` and `*_config.py` know
what tensors do not tell. The converter turns the tensors into a JAX model and fits a position table to other lengths.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from jaxprune.config import LARGEST, Card, Family, Padding
from jaxprune.data.labels import read_label_file

from .complete_card import Hints, Said, make_card
from .containers import WEIGHT_FILES, Container
from .errors import CheckpointError, shown
from .formats import Format, Names, in_file, missing_modules
from .geometry import Geometry, depth_of, predictors_of
from .hub import open_source
from .huggingface import KeyLayout
from .huggingface_config import HuggingFaceConfig
from .mapping import OFFICIAL, Shape
from .timm_config import read_timm

__all__ = ["CheckpointError", "TorchCheckpoint", "read_torch"]

UNCHECKED = (
    "This format has no checksums, so damaged numbers go unseen; compare the file's SHA-256 with its publisher's."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchCheckpoint:
    """A checkpoint, understood.

    `state` holds the classifier's tensors, float32, under official names without `module.`. `names` maps each to its
    key in the file, or to its keys (query, key and value for one qkv). `ignored` maps original keys, and entries beside
    the weights, to the reason why they are left out. `missing` maps official keys that the file lacks to the remedy.
    `layout` is the format in words, `huggingface` the kind of keys of a Hugging Face format. `notes` are all
    assumptions, as sentences.
    """

    card: Card
    state: Mapping[str, np.ndarray]
    layout: str
    huggingface: KeyLayout | None
    names: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    missing: Mapping[str, str]
    notes: tuple[str, ...]


def read_torch(
    path: Path | str,
    *,
    key: str | None = None,
    num_heads: int | None = None,
    source_frames: int | None = None,
    mels: int | None = None,
    time_stride: int | None = None,
    freq_stride: int | None = None,
    dataset: str | None = None,
    mean: float | None = None,
    std: float | None = None,
    labels: Path | str | None = None,
    classes: int | None = None,
    padding: Padding | None = None,
    predictors: tuple[int, ...] = (),
    container: Container | None = None,
) -> TorchCheckpoint:
    """Reads a PyTorch or safetensors file, a Hugging Face directory (or a file in one), or `hf:ORG/NAME` from the hub.

    `container` is the path's, where it is open already.

    `key` chooses among several state dicts in one file, by dotted name. `num_heads` defaults to width / 64, or the
    configuration's. `source_frames` is the T the position table was made for; with `mels` and the strides it settles a
    number of patches that fits several. `dataset`, a name in `jaxprune.features.STATISTICS`, gives feature statistics
    and activation, which otherwise follow from the configuration, else from the number of classes; `mean` and `std` go
    before. `padding` fills short clips; by default as the configuration says, else 0. `labels` is a file for
    `read_label_file`. `classes` sizes the new head of a checkpoint without one and must agree with any other's.
    `predictors` are the blocks at which the file's predictors choose (DynamicViT), by default 3, 6 and 9. Raises
    `ValueError` for arguments out of range, and `CheckpointError`, which is one, for a checkpoint that cannot be used:
    its message names the file and every problem by the file's own keys.
    """
    hints = Hints(
        num_heads=num_heads,
        source_frames=source_frames,
        mels=mels,
        time_stride=time_stride,
        freq_stride=freq_stride,
        dataset=dataset,
        mean=mean,
        std=std,
        labels=() if labels is None else read_label_file(labels).names,
        classes=classes,
        padding=padding,
        predictors=predictors,
    )
    return _understood(_Found.of(container or open_source(path, key=key)), hints, path=path)


def _understood(found: "_Found", hints: Hints, *, path: Path | str) -> TorchCheckpoint:
    """The tensors and the card of a container of a known format."""
    geometry, state, conversions = _read_state(found)
    layout = found.form.headless if found.fresh else found.form.name
    try:
        card, assumptions = make_card(geometry, hints, said=found.said, source=f"{found.container.name} ({layout})")
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    fate = f"newly initialised for {card.model.classes} classes; fine-tune before use"
    weights = found.container.weights
    unchecked = () if found.container.checked else (UNCHECKED,)
    return TorchCheckpoint(
        card=card,
        state=state,
        layout=layout,
        huggingface=found.form.layout,
        names={key: tuple(map(found.original, parts)) for key, parts in found.names.parts.items()},
        ignored={
            **{found.original(key): reason for key, reason in found.names.ignored.items()},
            **weights.beside,
        },
        missing={f"{module}.{leaf}": fate for module in found.fresh for leaf in ("weight", "bias")},
        notes=(*weights.notes, *unchecked, *conversions, *assumptions),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """A container of a known format: its names, its configuration, and the classifier's modules it lacks."""

    container: Container
    names: Names
    said: Said
    fresh: tuple[str, ...]

    @classmethod
    def of(cls, container: Container) -> "_Found":
        """Raises `CheckpointError` where a parameter is held twice or the configuration cannot be honoured."""
        weights = container.weights
        try:
            names = Names.of(weights.tensors, weights.form)
        except ValueError as error:
            raise CheckpointError(container.path, f"holds a parameter twice: {error}") from error
        fresh = missing_modules(names.parts, weights.form.family)
        return cls(container=container, names=names, said=_configuration(container, classifier=not fresh), fresh=fresh)

    @property
    def form(self) -> Format:
        return self.container.weights.form

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        return self.container.weights.tensors

    @property
    def absent(self) -> tuple[str, ...]:
        """Beginnings of the official names that the file lacks and need not have."""
        return tuple(f"{module}." for module in self.fresh)

    def original(self, key: str) -> str:
        """A key as it is in the file."""
        return self.container.weights.original(key)


def _configuration(container: Container, *, classifier: bool) -> Said:
    """The facts in the files beside the weights. Beside an AudioMAE only a published folder's count."""
    if container.weights.form.layout is not None:
        return HuggingFaceConfig.read(container.folder)
    of_folder = container.path.is_dir() or container.path.name in WEIGHT_FILES
    if of_folder and (container.folder / "config.json").exists():
        return read_timm(container.folder, classifier=classifier)
    return Said()


def _read_state(found: _Found) -> tuple[Geometry, dict[str, np.ndarray], tuple[str, ...]]:
    """Checks names, kinds and shapes of all tensors, then converts them. Notes tell kinds other than float32."""
    path, parts, tensors = found.container.path, found.names.parts, found.tensors
    if (depth := depth_of(parts)) > LARGEST["depth"]:
        raise CheckpointError(path, f"numbers its blocks up to {depth - 1}; at most {LARGEST['depth']} are read")
    used = [key for keys in parts.values() for key in keys]
    unusable = {key: reason for key in used if (reason := why_unusable(tensors[key]))}
    problems = [*found.container.weights.strange]
    problems += [f"{shown(found.original(key))}: {reason}" for key, reason in unusable.items()]
    shapes = {key: tuple(tensors[keys[0]].shape) for key, keys in parts.items() if unusable.keys().isdisjoint(keys)}
    geometry = None
    try:
        geometry = _geometry(found, shapes)
        wanted = geometry.shapes()
    except ValueError as error:
        malformed = [line for line in str(error).splitlines() if not line.endswith(": missing")]  # those are listed
        problems += [found.original(line) for line in malformed]
        wanted = _any_of(found.form.family, depth=depth, predictors=predictors_of(parts)).shapes()
    wanted = {key: shape for key, shape in wanted.items() if not key.startswith(found.absent)}
    problems += _misplaced(found, wanted)
    if geometry is not None:
        problems += _misshapen(found, {key: shape for key, shape in wanted.items() if key in shapes})
    if problems or geometry is None:
        raise CheckpointError(path, f"looks like {found.form.name}, but does not fit it:", problems)
    state = {key: np.concatenate([_to_numpy(tensors[part]) for part in parts[key]]) for key in wanted}
    if spoiled := [", ".join(map(found.original, parts[key])) for key in wanted if not np.isfinite(state[key]).all()]:
        raise CheckpointError(path, "holds NaN or infinity among the values of:", spoiled)
    kinds = sorted({_dtype(tensors[key]) for key in used} - {"float32"})
    return geometry, state, tuple(f"Tensors stored as {kind} were converted to float32." for kind in kinds)


def _geometry(found: _Found, shapes: Mapping[str, Shape]) -> Geometry:
    """The geometry in the tensors' shapes. Hugging Face's is in its config; shapes are then checked against it."""
    family, said = found.form.family, found.said
    if not isinstance(said, HuggingFaceConfig):
        return Geometry.of_shapes(shapes, family=family, classifier=not found.fresh)
    head = shapes.get(f"{OFFICIAL[family].classifier[1]}.weight", ())
    return Geometry(
        family=family,
        width=said.width,
        depth=said.depth,
        mlp_width=said.mlp_width,
        patch=said.patch,
        patches=said.patches,
        classes=head[0] if head else None,
    )


def _any_of(family: Family, *, depth: int, predictors: int) -> Geometry:
    """A small model with the same names, for a checkpoint whose own sizes cannot be told."""
    depth = max(1, depth)
    return Geometry(
        family=family,
        width=4,
        depth=depth,
        mlp_width=4,
        patch=1,
        patches=1,
        classes=1,
        predictors=min(predictors, depth),
    )


def _misplaced(found: _Found, wanted: Collection[str]) -> list[str]:
    """Tensors that are missing or unexpected, a line each, by the file's own names."""
    parts = found.names.parts
    lacking = {
        key: found.form.lacking(official)
        for official in wanted
        if official not in parts
        for key in in_file(official, found.form)
    }
    surplus = [key for official, keys in parts.items() if official not in wanted for key in keys]
    problems = [f"{found.original(key)}: missing{why}" for key, why in lacking.items() if key not in found.tensors]
    unexpected = [key for key in (*found.names.leftover, *surplus) if key not in lacking]
    return [*problems, *(f"{shown(found.original(key))}: unexpected" for key in unexpected)]


def _misshapen(found: _Found, wanted: Mapping[str, Shape]) -> list[str]:
    """Tensors of another shape, a line each. The parts of a qkv are thirds of it."""
    problems = []
    for official, shape in wanted.items():
        keys = found.names.parts[official]
        part = (shape[0] // len(keys), *shape[1:])
        shapes = {key: tuple(found.tensors[key].shape) for key in keys}
        problems += [
            f"{found.original(key)}: has shape {actual}, expected {part}"
            for key, actual in shapes.items()
            if actual != part
        ]
    return problems


def why_unusable(tensor: torch.Tensor) -> str:
    """The reason why a tensor cannot be a weight, or nothing. Nothing is made: a few bytes may claim terabytes."""
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is not an ordinary dense tensor"
    if not tensor.is_floating_point():
        return f"holds {_dtype(tensor)}, not real floating-point numbers"
    if tensor.is_neg() or tensor.is_conj():
        return "is a view that negates its numbers; save a copy of it"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "claims more values than the file stores for it"
    return ""


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32).numpy()  # may share memory with the file: copied when joined


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
