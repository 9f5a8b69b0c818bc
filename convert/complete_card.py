"""Completes a checkpoint's geometry to a model card: heads, strides and frames, classes, statistics, activation.

Each comes from the caller's hints, else from the configuration beside the weights, else from the geometry and the
published data sets. Notes tell what had to be assumed. A `ValueError` of `make_card` continues a sentence that begins
with the path.
"""

import dataclasses
import math

from jaxprune.config import LARGEST, Activation, Card, MethodName, ModelConfig, Padding
from jaxprune.families import FAMILIES
from jaxprune.features import MELS, MOST_MELS, STATISTICS
from jaxprune.reduction.policy import default_blocks

from .geometry import Geometry
from .grids import Grid, infer_grid

HEAD_WIDTH = 64  # channels of an attention head in every published model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """Facts that the caller knows about a checkpoint, as `read_torch` takes them.

    Raises `ValueError` for values out of range.
    """

    num_heads: int | None = None
    source_frames: int | None = None
    mels: int | None = None
    time_stride: int | None = None
    freq_stride: int | None = None
    dataset: str | None = None
    mean: float | None = None
    std: float | None = None
    labels: tuple[str, ...] = ()
    classes: int | None = None
    padding: Padding | None = None
    predictors: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("num_heads", "source_frames", "mels", "time_stride", "freq_stride", "classes"):
            value, largest = getattr(self, name), LARGEST[name.removeprefix("num_").removeprefix("source_")]
            if value is not None and (not isinstance(value, int) or not 1 <= value <= largest):
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {largest:,}")
        if self.dataset is not None and self.dataset not in STATISTICS:
            raise ValueError(f"dataset is {self.dataset!r}; it must be one of {', '.join(STATISTICS)}")
        if self.padding not in (None, "minimum", "zero"):
            raise ValueError(f"padding is {self.padding!r}; it must be 'minimum' or 'zero'")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both (--mean and --std)")
        if self.mean is not None and not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite and std positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """Facts that the configuration beside a checkpoint's weights tells. None or empty: it does not tell.

    `where` names the file in messages.
    """

    where: str = ""
    heads: int | None = None
    norm_eps: float | None = None
    frames: int | None = None
    mels: int | None = None
    time_stride: int | None = None
    freq_stride: int | None = None
    labels: tuple[str, ...] = ()
    activation: Activation | None = None
    mean: float | None = None
    std: float | None = None
    padding: Padding | None = None
    keep_rates: tuple[float, ...] = ()
    method: MethodName = "topk"
    notes: tuple[str, ...] = ()


def make_card(geometry: Geometry, hints: Hints, *, said: Said, source: str) -> tuple[Card, tuple[str, ...]]:
    """The card and the assumptions in it. Raises `ValueError` for hints that contradict the file or are too few."""
    notes = list(said.notes)
    mels = _either("mels", hints.mels, said.mels, where=said.where)
    if (mels or MELS) > MOST_MELS:
        raise ValueError(f"takes {mels} mel bins; the features have 1 to {MOST_MELS}")
    grid = _grid(geometry, hints, said=said, mels=mels)
    notes += [grid.note] if grid.note else []
    labels = hints.labels or said.labels
    classes = _classes(geometry, hints, labels=labels, notes=notes)
    mean, std = _statistics(hints, said, classes=classes, notes=notes)
    activation = _activation(hints, said, classes=classes, notes=notes)
    padding = _padding(hints, said, notes=notes)
    heads = _heads(geometry, hints, said)
    predictors = _predictors(geometry, hints, notes=notes)
    published = FAMILIES[geometry.family]
    try:
        model = ModelConfig(
            family=geometry.family,
            width=geometry.width,
            depth=geometry.depth,
            heads=heads,
            classes=classes,
            frames=grid.frames,
            mels=mels or MELS,
            patch=geometry.patch,
            time_stride=grid.time_stride,
            freq_stride=grid.freq_stride,
            mlp_ratio=geometry.mlp_ratio,
            norm_eps=said.norm_eps or ModelConfig.norm_eps,
            head_norm_eps=said.norm_eps or published.head_norm_eps,
            predictors=predictors,
        )
        card = Card(
            model=model,
            mean=mean,
            std=std,
            activation=activation,
            labels=labels,
            source=source,
            trained=geometry.classes is not None,
            padding=padding,
            keep_rates=said.keep_rates,
            method=said.method,
        )
    except ValueError as error:
        raise ValueError(f"describes a model that cannot be built: {error}") from error
    return card, tuple(notes)


def _either(name: str, given: int | None, found: int | None, *, where: str) -> int | None:
    """A fact from the caller or from the checkpoint. Raises `ValueError` if they contradict each other."""
    if None not in (given, found) and given != found:
        raise ValueError(f"has {name} {found} in {where}, but {name}={given} was asked for")
    return found if given is None else given


def _grid(geometry: Geometry, hints: Hints, *, said: Said, mels: int | None) -> Grid:
    frames = _either("source_frames", hints.source_frames, said.frames, where=said.where)
    time_stride = _either("time_stride", hints.time_stride, said.time_stride, where=said.where)
    freq_stride = _either("freq_stride", hints.freq_stride, said.freq_stride, where=said.where)
    try:
        return infer_grid(
            geometry.patches,
            family=geometry.family,
            patch=geometry.patch,
            mels=mels,
            frames=frames,
            time_stride=time_stride,
            freq_stride=freq_stride,
        )
    except ValueError as error:
        tokens = geometry.patches + FAMILIES[geometry.family].extra_tokens
        raise ValueError(f"has a position table of {tokens} tokens, but {error}") from error


def _heads(geometry: Geometry, hints: Hints, said: Said) -> int:
    heads = _either("num_heads", hints.num_heads, said.heads, where=said.where)
    if heads is None and geometry.width % HEAD_WIDTH:
        raise ValueError(
            f"has width {geometry.width}, which does not tell the number of attention heads ({HEAD_WIDTH} channels "
            "each in published models); give --num-heads"
        )
    return heads or geometry.width // HEAD_WIDTH


def _classes(geometry: Geometry, hints: Hints, *, labels: tuple[str, ...], notes: list[str]) -> int:
    """The head's number of classes. Without a head, the number asked for."""
    classes, where = geometry.classes, "in its head"
    if classes is not None:
        _either("classes", hints.classes, classes, where="its head")
    elif hints.classes is not None or labels:
        classes, where = hints.classes or len(labels), "asked for"
    else:
        name = hints.dataset or "audioset"
        classes = STATISTICS[name].classes
        notes.append(
            f"The new head gets the {classes} classes of {name}; give --classes or --labels for another number."
        )
    if labels and len(labels) != classes:
        raise ValueError(f"has {classes} classes {where}, but the labels name {len(labels)}")
    return classes


def _known(classes: int) -> str | None:
    """The published data set of so many classes."""
    # VoxCeleb-1 has 1251 speakers; the label file it was published with has 1252 rows.
    by_count = {statistics.classes: name for name, statistics in STATISTICS.items()} | {1252: "voxceleb1"}
    return by_count.get(classes)


def _statistics(hints: Hints, said: Said, *, classes: int, notes: list[str]) -> tuple[float, float]:
    """Feature mean and std: the caller's, the named data set's, the configuration's, or those of so many classes."""
    if hints.mean is not None and hints.std is not None:
        return hints.mean, hints.std
    if hints.dataset is not None:
        return STATISTICS[hints.dataset].mean, STATISTICS[hints.dataset].std
    if said.mean is not None and said.std is not None:
        return said.mean, said.std
    name = _known(classes)
    chosen = STATISTICS[name or "audioset"]
    why = f"{name}'s, by the {classes} classes" if name else f"audioset's: no known data set has {classes} classes"
    notes.append(
        f"Feature mean {chosen.mean} and std {chosen.std} were taken to be {why}; if that is wrong, give --dataset, or "
        "--mean and --std."
    )
    return chosen.mean, chosen.std


def _padding(hints: Hints, said: Said, *, notes: list[str]) -> Padding:
    """The log-mel that fills short clips: the caller's, the configuration's, or the original authors', which is 0."""
    chosen = hints.padding or said.padding
    if chosen is None:
        chosen = "zero"
        notes.append(
            "Short clips are padded with log-mel 0, as the original AST and AudioMAE do; the file does not tell. If it "
            "comes from the token-pruning code, give --padding minimum."
        )
    return chosen


def _predictors(geometry: Geometry, hints: Hints, *, notes: list[str]) -> tuple[int, ...]:
    """The blocks of DynamicViT's predictors: the caller's, else the published ones."""
    count = geometry.predictors
    chosen = hints.predictors or default_blocks(geometry.depth)[:count]
    if len(chosen) != count:
        raise ValueError(
            f"has {count} predictors, but {len(chosen)} blocks {list(chosen)} for them; name one block for each "
            "(--predictors)"
        )
    if count and not hints.predictors:
        notes.append(
            f"The {count} predictors were taken to be those of blocks {', '.join(map(str, chosen))}, as DynamicViT "
            "publishes them; the file does not tell. If that is wrong, give --predictors."
        )
    return chosen


def _activation(hints: Hints, said: Said, *, classes: int, notes: list[str]) -> Activation:
    """The activation. Of one class it is sigmoid, because softmax would say 1 for every clip."""
    if classes == 1:
        notes.append("The head has one class, so its activation is sigmoid.")
        return "sigmoid"
    if hints.dataset is not None:
        return STATISTICS[hints.dataset].activation
    if said.activation is not None:
        return said.activation
    name = _known(classes)
    activation: Activation = STATISTICS[name].activation if name else "softmax"
    notes.append(f"The activation was taken to be {activation}, by the {classes} classes; give --dataset to change it.")
    return activation
