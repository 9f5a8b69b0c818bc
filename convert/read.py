"""Reads an AST or AudioMAE checkpoint of any published format into official tensors and a model card.

`read_torch` recognises the format, accounts for every key (used, ignored with a reason, or an error) and gathers all
problems before it raises. Opening files safely is `containers.py`'s job, shapes are `geometry.py`'s, what tensors do
not tell `complete_card.py`'s and `huggingface_config.py`'s, label files `jaxprune.data.labels`'; turning tensors
into a JAX model, and fitting a position table to other lengths, is left to the converter.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from jaxprune.config import Card, Family
from jaxprune.data.labels import read_label_file

from . import huggingface
from .complete_card import Hints, make_card
from .containers import CheckpointError, Container, open_container
from .geometry import Geometry, classifier_keys, depth_of, expected_keys, expected_shapes
from .huggingface_config import HuggingFaceConfig

__all__ = ["CheckpointError", "TorchCheckpoint", "read_torch"]

# Keys that published checkpoints hold and their classifiers do not use.
_UNUSED = {
    "ast": {"v.head.": "ImageNet classifier, unused by AST", "v.head_dist.": "ImageNet classifier, unused by AST"},
    "audiomae": {
        "decoder_": "pretraining decoder, unused by the classifier",
        "mask_token": "pretraining decoder, unused by the classifier",
        "norm.": "final norm of pretraining; the classifier pools first and uses fc_norm",
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchCheckpoint:
    """A checkpoint, understood.

    `state` holds the tensors the classifier uses, float32, under official names without `module.`; `names` gives each
    one's key or keys in the file (query, key and value behind one qkv). `ignored` maps original keys, and entries
    beside the weights, to the reason why they are left out. `missing` maps official keys that the file lacks to what
    is done about it. `layout` is the format in words, `notes` every assumption made, as sentences.
    """

    card: Card
    state: Mapping[str, np.ndarray]
    layout: str
    names: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    missing: Mapping[str, str]
    notes: tuple[str, ...]


def read_torch(
    path: Path | str,
    *,
    num_heads: int | None = None,
    source_frames: int | None = None,
    time_stride: int | None = None,
    freq_stride: int | None = None,
    dataset: str | None = None,
    labels: Path | str | None = None,
    classes: int | None = None,
) -> TorchCheckpoint:
    """Reads a PyTorch or safetensors file, or a Hugging Face directory (or a file in one).

    `num_heads` defaults to width / 64, or the Hugging Face config's. `source_frames` is the T of the position table;
    with the strides it settles a number of patches that fits several. `dataset`, a name in
    `jaxprune.features.STATISTICS`, gives feature statistics and activation, which otherwise follow from Hugging Face's
    settings, else from the number of classes. `labels` is a file for `read_label_file`. `classes` sizes the new
    head of a pretrained AudioMAE and must agree with any other's. Raises `ValueError` for arguments out of range, and
    `CheckpointError`, which is one, for a checkpoint that cannot be used: its message names the file and every problem
    by the file's own keys.
    """
    hints = Hints(
        num_heads=num_heads,
        source_frames=source_frames,
        time_stride=time_stride,
        freq_stride=freq_stride,
        dataset=dataset,
        labels=() if labels is None else read_label_file(labels).names,
        classes=classes,
    )
    container = open_container(path)
    layout = _Layout.of(container)
    keys = _Keys.of(container, layout)
    config = HuggingFaceConfig.read(container.folder) if layout.key_layout else None
    geometry, state, conversions = _read_state(container, layout, keys, config=config)
    try:
        card, assumptions = make_card(
            geometry, hints, config=config, source=f"{container.path.resolve().name} ({layout.name})"
        )
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    fresh = f"newly initialised for {card.model.classes} classes; fine-tune before use"
    return TorchCheckpoint(
        card=card,
        state=state,
        layout=layout.name,
        names=keys.names,
        ignored={**keys.ignored, **container.beside},
        missing={} if geometry.classes else dict.fromkeys(classifier_keys(layout.family), fresh),
        notes=(*conversions, *assumptions),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """A published format. `key_layout` is Hugging Face's, None elsewhere."""

    name: str
    family: Family
    classifier: bool = True
    key_layout: huggingface.Layout | None = None

    @classmethod
    def of(cls, container: Container) -> "_Layout":
        """Recognises the format by its keys; `CheckpointError` naming some of them if it is none of ours."""
        keys = list(_without_module(container.tensors))

        def some(*prefixes: str) -> bool:
            return any(key.startswith(prefixes) for key in keys)

        if some(huggingface.BODY) or (some("embeddings.distillation_token") and some("embeddings.patch_embeddings.")):
            if some(huggingface.BODY + "layers.", "layers."):
                return cls(name="AST, Hugging Face (transformers 5 keys)", family="ast", key_layout="v5")
            return cls(name="AST, Hugging Face (legacy keys)", family="ast", key_layout="legacy")
        if some("v.blocks.", "v.patch_embed."):
            return cls(name="AST, official", family="ast")
        if some("blocks.") and some("patch_embed.", "pos_embed", "cls_token"):
            if some("fc_norm.", "head."):
                return cls(name="AudioMAE, fine-tuned", family="audiomae")
            return cls(name="AudioMAE, pretrained", family="audiomae", classifier=False)
        found = f"{len(keys)} tensors such as {', '.join(sorted(keys)[:5])}"
        raise CheckpointError(container.path, f"is not an AST or AudioMAE checkpoint; it holds {found}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Keys:
    """What becomes of the keys of a file: `names` official -> original keys, `ignored` and `unexpected` originals."""

    names: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    unexpected: tuple[str, ...]
    prefix: str  # `module.`, or nothing, in front of the file's keys

    @classmethod
    def of(cls, container: Container, layout: _Layout) -> "_Keys":
        originals = _without_module(container.tensors)
        prefix = next(original.removesuffix(key) for key, original in originals.items())
        if layout.key_layout:
            # Renaming the keys' numbers in place of their tensors tells which keys each official one is joined from.
            order = list(originals)
            try:
                renamed = huggingface.from_huggingface({key: torch.tensor([at]) for at, key in enumerate(order)})
            except ValueError as error:
                raise CheckpointError(container.path, f"holds a parameter twice: {error}") from error
            names = {key: tuple(originals[order[at]] for at in numbers) for key, numbers in renamed.state.items()}
            leftover = tuple(originals[key] for key in renamed.leftover)
            return cls(names=names, ignored={}, unexpected=leftover, prefix=prefix)
        unused = _UNUSED[layout.family].items()
        reasons = {key: reason for key in originals for start, reason in unused if key.startswith(start)}
        depth = depth_of(originals, family=layout.family)
        used = set(expected_keys(layout.family, depth=depth, classifier=layout.classifier))
        return cls(
            names={key: (original,) for key, original in originals.items() if key in used},
            ignored={originals[key]: reason for key, reason in reasons.items()},
            unexpected=tuple(originals[key] for key in originals if key not in used and key not in reasons),
            prefix=prefix,
        )

    def in_file(self, official: str, layout: _Layout) -> tuple[str, ...]:
        """What the file would call a tensor: itself, or the parts it is joined from."""
        if layout.key_layout is None:
            return (self.prefix + official,)
        parts = huggingface.to_huggingface({official: torch.arange(3)}, layout=layout.key_layout).state
        return tuple(self.prefix + key for key in parts)


def _without_module(keys: Iterable[str]) -> dict[str, str]:
    """Key -> original key, without the `module.` that DataParallel puts in front of all of them."""
    stripped = {key: key for key in keys}
    while all(key.startswith("module.") for key in stripped):
        stripped = {key.removeprefix("module."): original for key, original in stripped.items()}
    return stripped


def _read_state(
    container: Container, layout: _Layout, keys: _Keys, *, config: HuggingFaceConfig | None
) -> tuple[Geometry, dict[str, np.ndarray], tuple[str, ...]]:
    """Checks names, shapes and kinds of all tensors, then converts them; notes say from what, if not float32."""
    depth = config.depth if config else max(1, depth_of(keys.names, family=layout.family))
    wanted = expected_keys(layout.family, depth=depth, classifier=layout.classifier)
    surplus = [original for key, originals in keys.names.items() if key not in wanted for original in originals]
    lacking = [name for key in wanted if key not in keys.names for name in keys.in_file(key, layout)]
    problems = [*container.strange, *(f"{key}: missing" for key in lacking if key not in container.tensors)]
    problems += [f"{key}: unexpected" for key in (*keys.unexpected, *surplus) if key not in lacking]
    shapes = {key: tuple(container.tensors[originals[0]].shape) for key, originals in keys.names.items()}
    geometry = None
    try:
        geometry = _geometry(shapes, layout, config)
    except ValueError as error:
        malformed = [line for line in str(error).splitlines() if not line.endswith(": missing")]  # those are listed
        problems += [keys.prefix + line for line in malformed]
    if geometry:
        for key, shape in expected_shapes(geometry).items():
            originals = keys.names.get(key, ())
            for original in originals:  # the parts of a qkv are thirds of it
                found, part = tuple(container.tensors[original].shape), (shape[0] // len(originals), *shape[1:])
                if found != part:
                    problems.append(f"{original}: has shape {found}, expected {part}")
    used = [original for originals in keys.names.values() for original in originals]
    problems += [f"{key}: {problem}" for key in used if (problem := _unusable(container.tensors[key]))]
    if problems or geometry is None:
        raise CheckpointError(container.path, f"looks like {layout.name}, but does not fit it:", problems)
    state = {key: np.concatenate([_to_numpy(container.tensors[name]) for name in keys.names[key]]) for key in wanted}
    if spoiled := [", ".join(keys.names[key]) for key in wanted if not np.isfinite(state[key]).all()]:
        raise CheckpointError(container.path, "holds NaN or infinity among the values of:", spoiled)
    kinds = sorted({_dtype(container.tensors[key]) for key in used} - {"float32"})
    return geometry, state, tuple(f"Tensors stored as {kind} were converted to float32." for kind in kinds)


def _geometry(shapes: Mapping[str, tuple[int, ...]], layout: _Layout, config: HuggingFaceConfig | None) -> Geometry:
    """From the tensors' shapes; for Hugging Face from its config, which they are then held against."""
    if config is None:
        return Geometry.of_shapes(shapes, family=layout.family, classifier=layout.classifier)
    rows, columns = (
        (size - config.patch) // stride + 1
        for size, stride in ((config.mels, config.freq_stride), (config.frames, config.time_stride))
    )
    head = shapes.get("mlp_head.1.weight", ())
    return Geometry(
        family=layout.family,
        width=config.width,
        depth=config.depth,
        mlp_width=config.mlp_width,
        patch=config.patch,
        patches=rows * columns,
        classes=head[0] if head else len(config.labels),
    )


def _unusable(tensor: torch.Tensor) -> str:
    """Why a tensor cannot be a weight, or nothing. Never materialises it: a few bytes can pretend to be terabytes."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is not an ordinary dense tensor"
    if not tensor.is_floating_point():
        return f"holds {_dtype(tensor)}, not real floating-point numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "claims more values than the file stores for it"
    return ""


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32).numpy()  # may share memory with the file: copied when joined


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
