"""The settings of a fine-tuning run: nested frozen dataclasses, checked when built, to and from JSON.

A `Recipe` is everything that decides a run. Variants are made with `dataclasses.replace`, or by tyro from command-line
options (it shows the comment above a field); the resolved recipe is saved as JSON with every checkpoint and result. The
published ones are in `jaxprune.training.recipes`. Nothing here touches arrays: `jaxprune.training.schedules`,
`jaxprune.training.optim` and `jaxprune.training.augment` turn settings into functions.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from jaxprune.config import FAMILY_SIZES, Activation, Card, Family, ModelConfig, Padding
from jaxprune.families import FAMILIES
from jaxprune.features import HOP, SAMPLE_RATE, STATISTICS
from jaxprune.json_files import fit
from jaxprune.training.checks import below_one, distinct, whole_number
from jaxprune.training.dynamic_settings import Dynamic
from jaxprune.training.learning import ITSELF, AdamL2, AdamW, Cosine, Distill, StepDecay
from jaxprune.training.pruning import Prune
from jaxprune.training.variation import Augment

PRETRAINING = "pretraining"  # the mark of such recipes in JSON; those of fine-tuning have none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The model, and the weights it starts from."""

    # Model family.
    family: Family
    # Size of the model: tiny, small, base or large as published, or micro or mini.
    size: str = "base"
    # Frames, and mel bins, from one patch to the next: 16, or 10 for AST's overlapping patches; 0: as the checkpoint
    # has it, or 16 from random weights.
    stride: int = 0
    # Directory of the jaxprune checkpoint to start from; empty starts from random weights.
    checkpoint: str = ""
    # What the published recipe started from, in words; changes nothing.
    published: str = ""

    def __post_init__(self):
        if self.size not in FAMILY_SIZES.get(self.family, ()):
            raise ValueError(f"there is no {self.family} of size {self.size!r}; the sizes are {FAMILY_SIZES}")
        strides = FAMILIES[self.family].strides or (16,)
        if self.stride not in (0, *strides):
            raise ValueError(
                f"there is no {self.family} of stride {self.stride}; the strides are {', '.join(map(str, strides))}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The clips, and how their spectrograms are cut and normalised."""

    # Data set by name: audioset, esc50, speechcommands, voxceleb1, or a name of your own.
    dataset: str
    # Directory the data set lies in, or the manifest of your own data.
    root: str = ""
    # Frames a clip is cut or padded to, 10 ms each.
    frames: int = 1024
    # Mean of the log-mel features.
    mean: float = 0.0
    # Standard deviation of the log-mel features; they are divided by twice this.
    std: float = 0.5
    # The log-mel that fills short clips: their minimum or 0; by default as the checkpoint, or from scratch the minimum.
    padding: Padding | None = None
    # Number of classes.
    classes: int = 2
    # Cross-validation folds to hold out, one run each; empty where the data set has a fixed split.
    folds: tuple[int, ...] = ()

    def __post_init__(self):
        whole_number("frames", self.frames, least=16)
        whole_number("classes", self.classes, least=1)
        if not math.isfinite(self.mean) or not math.isfinite(self.std) or self.std <= 0:
            raise ValueError(f"feature mean {self.mean} and std {self.std} must be finite and std positive")
        distinct("folds", self.folds)
        if self.padding not in (None, "minimum", "zero"):
            raise ValueError(f"padding is {self.padding!r}; it must be 'minimum' (the clip's own) or 'zero'")

    @property
    def fill(self) -> Padding:
        """The padding, or the minimum where none was chosen (`jaxprune.training.start.padded` asks the checkpoint)."""
        return self.padding or "minimum"

    @classmethod
    def of(cls, dataset: str, **changes: Any) -> "Data":
        """The published length and statistics of a data set, e.g. `Data.of("esc50", root="/data/ESC-50")`."""
        if dataset not in STATISTICS:
            raise ValueError(f"no statistics are known for {dataset!r}; known data sets are {', '.join(STATISTICS)}")
        stats = STATISTICS[dataset]
        known = {"frames": stats.frames, "mean": stats.mean, "std": stats.std, "classes": stats.classes}
        return cls(dataset=dataset, **known | changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
    """The length of a run, and its batches."""

    # Passes over the training clips.
    epochs: int
    # Clips per update, over all devices and accumulated parts.
    batch: int
    # Parts a batch is computed in, one after the other, to save memory; gradients are averaged.
    accumulate: int = 1
    # Seeds, one run each.
    seeds: tuple[int, ...] = (0,)
    # Decay of the running average of the weights, which is evaluated, chosen and saved in their place; 0: none.
    ema: float = 0.0
    # Epochs from one evaluation and checkpoint to the next; the last epoch has both in any case.
    evaluate_every: int = 1

    def __post_init__(self):
        for name in ("epochs", "batch", "accumulate", "evaluate_every"):
            whole_number(name, getattr(self, name), least=1)
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be split into {self.accumulate} equal parts")
        below_one("ema", self.ema)
        if not self.seeds:
            raise ValueError("no seed was given; give at least one")
        distinct("seeds", self.seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop(Passes):
    """The length of a fine-tuning run, its batches and its loss."""

    # bce: every class yes or no (multi-label, or mixed labels); ce: one class among all.
    loss: Literal["bce", "ce"] = "ce"
    # Draws each epoch's clips with replacement, all classes alike (the AST's way on AudioSet-2M; Gong et al. 2021).
    balanced: bool = False
    # Share of each target that is spread over all classes, with the loss ce (Szegedy et al. 2016: 0.1).
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in ("bce", "ce"):
            raise ValueError(f"loss is {self.loss!r}; it must be 'bce' or 'ce'")
        below_one("label_smoothing", self.label_smoothing)
        if self.label_smoothing and self.loss != "ce":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but the loss is {self.loss}; labels are smoothed with ce "
                "alone (one class a clip)"
            )

    @property
    def activation(self) -> Activation:
        """The function that makes probabilities of logits trained with this loss."""
        return {"bce": "sigmoid", "ce": "softmax"}[self.loss]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Number formats. Parameters, gradients, optimiser state, norms and losses are always float32."""

    # Format of the blocks' matrix products; bfloat16 stands in for the published float16 with loss scaling.
    compute: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self):
        if self.compute not in ("float32", "bfloat16"):
            raise ValueError(f"compute is {self.compute!r}; it must be 'float32' or 'bfloat16'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A score reported for a recipe, in percent, at one keep rate."""

    # Keep rate of the reported model.
    keep_rate: float
    # What was measured, e.g. accuracy.
    metric: str
    # Its value in percent.
    percent: float
    # Multiply-accumulates of one clip reported beside it, in billions.
    gmacs: float
    # Where it is reported.
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a fine-tuning run. Raises `ValueError` where its parts do not fit together."""

    # Name of the recipe.
    name: str
    # Where the settings come from.
    source: str
    # Model and starting weights.
    start: Start
    # Data set and features.
    data: Data
    # Augmentation and regularisation.
    augment: Augment
    # Optimiser.
    optimizer: AdamW | AdamL2
    # Learning rate over time.
    schedule: Cosine | StepDecay
    # Pruning and its schedule.
    prune: Prune
    # Length, batch, loss and seeds.
    loop: Loop
    # Number formats.
    precision: Precision = Precision()
    # Training of learned pruning (--prune.method dynamic).
    dynamic: Dynamic = dataclasses.field(default_factory=Dynamic)
    # A teacher beside the labels.
    distill: Distill = dataclasses.field(default_factory=Distill)
    # Scores published for this recipe, where the project knows them; changes nothing.
    expected: tuple[Published, ...] = ()

    def __post_init__(self):
        prune, loop = self.prune, self.loop
        completed = prune.shrink_start - prune.first_epoch + prune.shrink_epochs
        if prune.method == "dynamic" and self.dynamic.alone >= loop.epochs:
            raise ValueError(
                f"the predictors would learn alone for {self.dynamic.alone} epochs, and the run has {loop.epochs}; "
                "lower --dynamic.alone or train longer"
            )
        if self.distill.teacher and prune.method == "dynamic":
            raise ValueError(
                "learned pruning has its own teacher, the model that it starts from (--dynamic.classes-weight); leave "
                "--distill.teacher out"
            )
        if self.distill.teacher == ITSELF and (not prune.draws or prune.lowest == prune.highest):
            raise ValueError(
                "the teacher is the model itself at its highest keep rate, which needs lower ones to teach; draw them "
                "with --prune.sample, such as 1 0.8 0.6, or name a checkpoint"
            )
        if prune.falls and completed > loop.epochs:
            raise ValueError(
                f"the keep rate reaches its target after {completed} epochs, but the run has {loop.epochs}; "
                "start earlier, shrink faster or train longer"
            )
        if isinstance(self.schedule, Cosine):
            self.schedule.check(epochs=loop.epochs, peak=self.peak_lr)
        if self.augment.time_mask > self.data.frames:
            raise ValueError(
                f"a time mask of {self.augment.time_mask} is wider than clips of {self.data.frames} frames"
            )
        if self.augment.time_shift * SAMPLE_RATE > HOP * self.data.frames:
            raise ValueError(
                f"a time shift of {self.augment.time_shift:g} s is longer than clips of {self.data.frames} frames, "
                f"{self.data.frames * HOP / SAMPLE_RATE:g} s"
            )

    def model(self, **changes: Any) -> ModelConfig:
        """The geometry that a model of `start.size` has for these classes and frames, but for what `changes`."""
        start, facts = self.start, self.data
        return ModelConfig.of_size(
            start.family,
            start.size,
            **{
                "classes": facts.classes,
                "frames": facts.frames,
                "time_stride": start.stride or 16,
                "freq_stride": start.stride or 16,
                "predictors": self.prune.predictors,
            }
            | changes,
        )

    def card(self, model: ModelConfig, *, labels: tuple[str, ...] = (), source: str = "") -> Card:
        """The card of a model that the recipe trains, which is needed to use it."""
        facts = self.data
        return Card(
            model=model,
            mean=facts.mean,
            std=facts.std,
            activation=self.loop.activation,
            labels=labels,
            source=source,
            padding=facts.fill,
            keep_rates=self.prune.rates,
            method=self.prune.method,
        )

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.optimizer.peak_lr(self.loop.batch)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries. The optimiser and the schedule carry their class's name."""
        return plain(self, UNIONS)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_json`, also after a trip through a file. Raises `ValueError` for missing or unknown
        fields."""
        try:
            fields = YOUNGER | dict(data)
            if fields.get("task") == PRETRAINING:
                raise ValueError("it is a recipe of pretraining, not of fine-tuning")
            fields["data"] = {"padding": "minimum"} | fields["data"]  # recipes older than the field
            fields |= filled_parts(fields, PARTS, unions=UNIONS)
            for remark in ("name", "source"):
                fit(fields[remark], str)
            fields["expected"] = tuple(filled(Published, score) for score in fields["expected"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a jaxprune recipe: {error}") from error


PARTS = {
    "start": Start,
    "data": Data,
    "augment": Augment,
    "prune": Prune,
    "loop": Loop,
    "precision": Precision,
    "dynamic": Dynamic,
    "distill": Distill,
}
YOUNGER: dict[str, Any] = {"dynamic": {}, "distill": {}}  # parts that older recipes lack
UNIONS = {
    "optimizer": {"AdamW": AdamW, "AdamL2": AdamL2},
    "schedule": {"Cosine": Cosine, "StepDecay": StepDecay},
}


def plain(recipe: Any, unions: Collection[str]) -> dict[str, Any]:
    """A recipe in JSON's types. Parts among `unions` carry their class's name."""
    values = dataclasses.asdict(recipe)
    for part in unions:
        values[part] = {"kind": type(getattr(recipe, part)).__name__} | values[part]
    return values


def filled_parts(
    fields: Mapping[str, Any], parts: Mapping[str, type], *, unions: Mapping[str, Mapping[str, type]]
) -> dict[str, Any]:
    """A recipe's parts from JSON's values. Those among `unions` tell their class by its name. Raises as `filled`."""
    made = {part: filled(make, fields[part]) for part, make in parts.items()}
    for part, makes in unions.items():
        values = dict(fields[part])
        made[part] = filled(makes[values.pop("kind")], values)
    return made


def filled(make: type, values: Any) -> Any:
    """A dataclass from JSON's values, their types checked. Raises `ValueError` and `TypeError`."""
    names = {field.name for field in dataclasses.fields(make)}
    if isinstance(values, Mapping) and (unknown := sorted(values.keys() - names)):
        raise TypeError(f"{make.__name__} has no field {unknown[0]!r}")
    return fit(values, make)
