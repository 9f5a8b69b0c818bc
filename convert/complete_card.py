"""Completes a checkpoint's geometry to a model card: heads, strides and frames, classes, statistics, activation.

Each comes from the caller's hints, else from Hugging Face's settings, else from the geometry and the published data
sets; what had to be assumed is said in notes. A `ValueError` of `make_card` continues a sentence begun with the path.
"""

import dataclasses

from jaxprune.config import Activation, Card, ModelConfig
from jaxprune.features import STATISTICS

from .geometry import EXTRA_TOKENS, Geometry, Grid, infer_grid
from .huggingface_config import HuggingFaceConfig

HEAD_WIDTH = 64  # channels of an attention head in every published model
NORM_EPS = {"ast": (1e-6, 1e-5), "audiomae": (1e-6, 1e-6)}  # (blocks, classifier)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What the caller knows about a checkpoint, as `read_torch` takes it. `ValueError` for values out of range."""

    num_heads: int | None = None
    source_frames: int | None = None
    time_stride: int | None = None
    freq_stride: int | None = None
    dataset: str | None = None
    labels: tuple[str, ...] = ()
    classes: int | None = None

    def __post_init__(self):
        for name in ("num_heads", "source_frames", "time_stride", "freq_stride", "classes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.dataset is not None and self.dataset not in STATISTICS:
            raise ValueError(f"dataset is {self.dataset!r}; it must be one of {', '.join(STATISTICS)}")


def make_card(
    geometry: Geometry, hints: Hints, *, config: HuggingFaceConfig | None, source: str
) -> tuple[Card, tuple[str, ...]]:
    """The card and the assumptions in it. `ValueError` where hints contradict the checkpoint or do not suffice."""
    notes = list(config.notes if config else ())
    grid = _grid(geometry, hints, config)
    notes += [grid.note] if grid.note else []
    labels = hints.labels or (config.labels if config else ())
    classes = _classes(geometry, hints, labels=labels, notes=notes)
    mean, std, activation = _statistics(hints, config, classes=classes, notes=notes)
    norm_eps, head_norm_eps = (config.norm_eps, config.norm_eps) if config else NORM_EPS[geometry.family]
    heads = _heads(geometry, hints, config)
    try:
        model = ModelConfig(
            family=geometry.family,
            width=geometry.width,
            depth=geometry.depth,
            heads=heads,
            classes=classes,
            frames=grid.frames,
            mels=config.mels if config else 128,
            patch=geometry.patch,
            time_stride=grid.time_stride,
            freq_stride=grid.freq_stride,
            mlp_ratio=geometry.mlp_width / geometry.width,
            norm_eps=norm_eps,
            head_norm_eps=head_norm_eps,
        )
        card = Card(
            model=model,
            mean=mean,
            std=std,
            activation=activation,
            labels=labels,
            source=source,
            trained=geometry.classes is not None,
        )
    except ValueError as error:
        raise ValueError(f"describes a model that cannot be built: {error}") from error
    return card, tuple(notes)


def _grid(geometry: Geometry, hints: Hints, config: HuggingFaceConfig | None) -> Grid:
    if config is not None:
        for name, found in (
            ("source_frames", config.frames),
            ("time_stride", config.time_stride),
            ("freq_stride", config.freq_stride),
        ):
            _agree(name, getattr(hints, name), found, where="its config.json")
        return Grid(frames=config.frames, time_stride=config.time_stride, freq_stride=config.freq_stride)
    try:
        return infer_grid(
            geometry.patches,
            family=geometry.family,
            patch=geometry.patch,
            frames=hints.source_frames,
            time_stride=hints.time_stride,
            freq_stride=hints.freq_stride,
        )
    except ValueError as error:
        tokens = geometry.patches + EXTRA_TOKENS[geometry.family]
        raise ValueError(f"has a position table of {tokens} tokens, but {error}") from error


def _heads(geometry: Geometry, hints: Hints, config: HuggingFaceConfig | None) -> int:
    if config is not None:
        _agree("num_heads", hints.num_heads, config.heads, where="its config.json")
        return config.heads
    if hints.num_heads is None and geometry.width % HEAD_WIDTH:
        raise ValueError(
            f"has width {geometry.width}, which does not tell the number of attention heads ({HEAD_WIDTH} channels "
            "each in published models); pass num_heads"
        )
    return hints.num_heads or geometry.width // HEAD_WIDTH


def _classes(geometry: Geometry, hints: Hints, *, labels: tuple[str, ...], notes: list[str]) -> int:
    """The head's own number, or what was asked for where there is no head yet."""
    classes, where = geometry.classes, "in its head"
    if classes is not None:
        _agree("classes", hints.classes, classes, where="its head")
    elif hints.classes is not None or labels:
        classes, where = hints.classes or len(labels), "asked for"
    else:
        name = hints.dataset or "audioset"
        classes = STATISTICS[name].classes
        notes.append(f"The new head gets the {classes} classes of {name}; pass classes or labels for another number.")
    if labels and len(labels) != classes:
        raise ValueError(f"has {classes} classes {where}, but the labels name {len(labels)}")
    return classes


def _statistics(
    hints: Hints, config: HuggingFaceConfig | None, *, classes: int, notes: list[str]
) -> tuple[float, float, Activation]:
    """Feature mean and std, and the activation: the named data set's, else Hugging Face's, else by the class count."""
    if hints.dataset is not None:
        chosen = STATISTICS[hints.dataset]
        return chosen.mean, chosen.std, chosen.activation
    # VoxCeleb-1 has 1251 speakers; the label file it was published with has 1252 rows.
    by_count = {statistics.classes: name for name, statistics in STATISTICS.items()} | {1252: "voxceleb1"}
    name = by_count.get(classes)
    chosen = STATISTICS[name or "audioset"]
    mean, std, activation = chosen.mean, chosen.std, chosen.activation if name else "softmax"
    if config is not None and config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
    else:
        why = f"{name}'s, by the {classes} classes" if name else f"audioset's: no known data set has {classes} classes"
        notes.append(f"Feature mean {mean} and std {std} were taken to be {why}; pass dataset if that is wrong.")
    if config is not None and config.activation is not None:
        activation = config.activation
    else:
        notes.append(
            f"The activation was taken to be {activation}, by the {classes} classes; pass dataset to change it."
        )
    return mean, std, activation


def _agree(name: str, given: int | None, found: int, *, where: str) -> None:
    if given is not None and given != found:
        raise ValueError(f"has {name} {found} in {where}, but {name}={given} was asked for")
