"""What can be set in a fine-tuning run: nested frozen dataclasses, checked when built, to and from JSON.

A `Recipe` is everything that decides a run. Variants are made with `dataclasses.replace`, or by tyro from command-line
options (it shows the comment above a field); the resolved recipe is saved as JSON with every checkpoint and result. The
published ones are in `jaxprune.training.recipes`. Nothing here touches arrays: `jaxprune.training.schedules`,
`jaxprune.training.optim` and `jaxprune.training.augment` turn settings into functions.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from jaxprune.config import FAMILY_SIZES, Activation, Card, Family, ModelConfig, Padding
from jaxprune.features import STATISTICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The model, and the weights it starts from."""

    # Model family.
    family: Family
    # Size of the model: tiny, small, base or large as published, or micro.
    size: str = "base"
    # Directory of the jaxprune checkpoint to start from; empty starts from random weights.
    checkpoint: str = ""
    # What the published recipe started from, in words; changes nothing.
    published: str = ""

    def __post_init__(self):
        if self.size not in FAMILY_SIZES.get(self.family, ()):
            raise ValueError(f"there is no {self.family} of size {self.size!r}; the sizes are {FAMILY_SIZES}")


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
        whole("frames", self.frames, least=16)
        whole("classes", self.classes, least=1)
        if not math.isfinite(self.mean) or not math.isfinite(self.std) or self.std <= 0:
            raise ValueError(f"feature mean {self.mean} and std {self.std} must be finite and std positive")
        distinct("folds", self.folds)
        if self.padding not in (None, "minimum", "zero"):
            raise ValueError(f"padding is {self.padding!r}; it must be 'minimum' (the clip's own) or 'zero'")

    @property
    def fill(self) -> Padding:
        """The padding; the minimum where none was chosen (`jaxprune.training.start.padded` asks the checkpoint)."""
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
class Augment:
    """How training clips are varied; 0 switches a part off."""

    # Probability that a clip is mixed with another.
    mixup: float = 0.0
    # Probability that a waveform is rolled by a random offset and scaled by a random factor.
    roll: float = 0.0
    # Probability that noise is added to the spectrogram and its frames are rolled by up to 10.
    noise: float = 0.0
    # Greatest width of the SpecAugment time mask, in frames.
    time_mask: int = 0
    # Greatest width of the SpecAugment frequency mask, in mel bins.
    freq_mask: int = 0
    # Share of patch columns, and of patch rows, dropped before the blocks.
    patch_mask: float = 0.0
    # Drop-path rate of the last block; it rises linearly from 0 in the first.
    drop_path: float = 0.0

    def __post_init__(self):
        for name in ("mixup", "roll", "noise"):
            share(name, getattr(self, name), most=1.0)
        for name in ("patch_mask", "drop_path"):
            value = share(name, getattr(self, name), most=1.0)
            if value == 1:
                raise ValueError(f"{name} is 1, which would leave nothing; it must be below 1")
        whole("time_mask", self.time_mask, least=0)
        whole("freq_mask", self.freq_mask, least=0)

    def while_shrinking(self) -> "Augment":
        """What is left from shrink start on, when the base rate is below 1: SpecAugment and patch masking stop."""
        return dataclasses.replace(self, time_mask=0, freq_mask=0, patch_mask=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AudioMAE's optimiser: decoupled weight decay, and learning rates that fall from the head to the embeddings."""

    # Learning rate for a batch of 256; the rate used is this times batch / 256.
    base_lr: float = 1e-3
    # Decay of the gradient's running mean.
    b1: float = 0.9
    # Decay of the squared gradient's running mean.
    b2: float = 0.95
    # Decoupled weight decay; none on 1-d parameters, extra tokens and position tables.
    weight_decay: float = 1e-4
    # Factor on the learning rate per layer, from the head down; 1 for one rate everywhere.
    layer_decay: float = 0.75
    # Largest global gradient norm; 0 for no clipping.
    clip: float = 0.0

    def __post_init__(self):
        check_optimizer(self)
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be greater than 0 and at most 1")

    def peak_lr(self, batch: int) -> float:
        """Learning rate after warm-up, for `batch` clips an update."""
        return self.base_lr * batch / 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamL2:
    """AST's optimiser: Adam with the L2 penalty's gradient added before the moments, as torch's `weight_decay` does."""

    # Learning rate after warm-up, whatever the batch.
    base_lr: float = 1e-4
    # Decay of the gradient's running mean.
    b1: float = 0.95
    # Decay of the squared gradient's running mean.
    b2: float = 0.999
    # L2 penalty on every parameter.
    weight_decay: float = 5e-7
    # Largest global gradient norm; 0 for no clipping.
    clip: float = 0.0

    def __post_init__(self):
        check_optimizer(self)

    def peak_lr(self, batch: int) -> float:
        """Learning rate after warm-up; the same for every batch."""
        return self.base_lr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    """AudioMAE's learning rate: linear warm-up, then half a cosine, both by the position within the epoch."""

    # Epochs of warm-up from 0; may be a fraction.
    warmup_epochs: float = 4.0
    # Learning rate at the very end.
    floor: float = 1e-5

    def __post_init__(self):
        if not self.warmup_epochs >= 0:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; it must be 0 or more")
        if not self.floor >= 0:
            raise ValueError(f"floor is {self.floor}; it must be 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepDecay:
    """AST's learning rate: an optional warm-up by steps, then a factor after every few epochs."""

    # Steps of warm-up from 0; 0 for none.
    warmup_steps: int = 0
    # Steps between changes of the rate during warm-up; 50 as released, so the first 50 steps learn nothing.
    warmup_every: int = 50
    # Completed epochs after which the factor first applies.
    first: int = 5
    # Epochs between one use of the factor and the next.
    every: int = 1
    # Factor on the learning rate.
    factor: float = 0.85

    def __post_init__(self):
        whole("warmup_steps", self.warmup_steps, least=0)
        whole("warmup_every", self.warmup_every, least=1)
        whole("first", self.first, least=0)
        whole("every", self.every, least=1)
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor is {self.factor}; it must be greater than 0 and at most 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """How many patches are kept, and how the model is led there."""

    # Keep rate of each pruning block after the shrinking; 1 trains without pruning.
    keep_rate: float = 0.7
    # Blocks that prune, counted from 0.
    blocks: tuple[int, ...] = (3, 6, 9)
    # Epoch at which the keep rate begins to fall, as the epochs are counted.
    shrink_start: int = 0
    # Epochs the fall takes.
    shrink_epochs: int = 0
    # Number of the first epoch: 0 in AudioMAE's released code, 1 in AST's.
    first_epoch: int = 0
    # How often the keep rate is computed: once an epoch as released, or every step as in EViT.
    update: Literal["epoch", "step"] = "epoch"
    # Compiled sizes used while the rate falls; more compile longer and compute less.
    buckets: int = 7

    def __post_init__(self):
        if not 0 < self.keep_rate <= 1:
            raise ValueError(f"keep_rate is {self.keep_rate}; it must be greater than 0 and at most 1")
        for block in self.blocks:
            whole("blocks", block, least=0)
        distinct("blocks", self.blocks)
        whole("first_epoch", self.first_epoch, least=0)
        whole("shrink_start", self.shrink_start, least=self.first_epoch)
        whole("shrink_epochs", self.shrink_epochs, least=0)
        whole("buckets", self.buckets, least=1)
        if self.update not in ("epoch", "step"):
            raise ValueError(f"update is {self.update!r}; it must be 'epoch' or 'step'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """How long and how much at a time."""

    # Passes over the training clips.
    epochs: int
    # Clips per update, over all devices and accumulated parts.
    batch: int
    # Parts a batch is computed in, one after the other, to save memory; gradients are averaged.
    accumulate: int = 1
    # bce: every class yes or no (multi-label, or mixed labels); ce: one class among all.
    loss: Literal["bce", "ce"] = "ce"
    # Seeds, one run each.
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        for name in ("epochs", "batch", "accumulate"):
            whole(name, getattr(self, name), least=1)
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be split into {self.accumulate} equal parts")
        if self.loss not in ("bce", "ce"):
            raise ValueError(f"loss is {self.loss!r}; it must be 'bce' or 'ce'")
        if not self.seeds:
            raise ValueError("no seed was given; give at least one")
        distinct("seeds", self.seeds)

    @property
    def activation(self) -> Activation:
        """How logits trained with this loss become probabilities."""
        return {"bce": "sigmoid", "ce": "softmax"}[self.loss]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """Number formats; parameters, gradients, optimiser state, norms and losses are float32 always."""

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
    # Scores published for this recipe, where the project knows them; changes nothing.
    expected: tuple[Published, ...] = ()

    def __post_init__(self):
        prune, loop = self.prune, self.loop
        completed = prune.shrink_start - prune.first_epoch + prune.shrink_epochs
        if prune.keep_rate < 1 and completed > loop.epochs:
            raise ValueError(
                f"the keep rate reaches its base after {completed} epochs, but the run has {loop.epochs}; "
                "start earlier, shrink faster or train longer"
            )
        if isinstance(self.schedule, Cosine):
            if self.schedule.warmup_epochs >= loop.epochs:
                raise ValueError(
                    f"a warm-up of {self.schedule.warmup_epochs} epochs leaves nothing of a run of {loop.epochs}"
                )
            if self.schedule.floor > self.peak_lr:
                raise ValueError(
                    f"the learning rate would end at {self.schedule.floor}, above its peak of {self.peak_lr}; "
                    "lower the floor or raise base_lr"
                )
        if self.augment.time_mask > self.data.frames:
            raise ValueError(
                f"a time mask of {self.augment.time_mask} is wider than clips of {self.data.frames} frames"
            )

    def model(self, **changes: Any) -> ModelConfig:
        """The geometry that a model of `start.size` has for these classes and frames, but for what `changes`."""
        start, facts = self.start, self.data
        return ModelConfig.of_size(
            start.family, start.size, **{"classes": facts.classes, "frames": facts.frames} | changes
        )

    def card(self, model: ModelConfig, *, labels: tuple[str, ...] = (), source: str = "") -> Card:
        """What a model that the recipe trains needs to be used, beside its weights."""
        facts = self.data
        return Card(
            model=model,
            mean=facts.mean,
            std=facts.std,
            activation=self.loop.activation,
            labels=labels,
            source=source,
            padding=facts.fill,
        )

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.optimizer.peak_lr(self.loop.batch)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; the optimiser and the schedule carry their class's name."""
        plain = dataclasses.asdict(self)
        for part in UNIONS:
            plain[part] = {"kind": type(getattr(self, part)).__name__} | plain[part]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_json`, also after a trip through a file. Raises `ValueError` for missing or unknown
        fields."""
        try:
            fields = dict(data)
            fields["data"] = {"padding": "minimum"} | fields["data"]  # recipes older than the field
            for part, make in PARTS.items():
                fields[part] = filled(make, fields[part])
            for part, makes in UNIONS.items():
                values = dict(fields[part])
                fields[part] = filled(makes[values.pop("kind")], values)
            fields["expected"] = tuple(filled(Published, score) for score in fields["expected"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a jaxprune recipe: {error}") from error


PARTS = {"start": Start, "data": Data, "augment": Augment, "prune": Prune, "loop": Loop, "precision": Precision}
UNIONS = {
    "optimizer": {"AdamW": AdamW, "AdamL2": AdamL2},
    "schedule": {"Cosine": Cosine, "StepDecay": StepDecay},
}


def whole(name: str, value: int, *, least: int) -> int:
    """The value, if it is a whole number of at least `least`; else `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return value


def share(name: str, value: float, *, most: float) -> float:
    """The value, if it lies in [0, most]; else `ValueError`."""
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be between 0 and {most:g}")
    return value


def distinct(name: str, values: tuple[int, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} {values} names one twice; each may occur once")


def check_optimizer(settings: AdamW | AdamL2) -> None:
    """Raises `ValueError` for a setting outside its range."""
    if not 0 < settings.base_lr < math.inf:
        raise ValueError(f"base_lr is {settings.base_lr}; it must be positive")
    for name in ("b1", "b2"):
        if not 0 <= getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 0 and below 1")
    for name in ("weight_decay", "clip"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be 0 or more")


def filled(make: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON's values, whose lists are tuples here."""
    return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
