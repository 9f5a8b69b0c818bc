"""The settings of a pretraining run, and its recipes: AudioMAE's published one (Huang et al. 2022), and ours.

A `PretrainingRecipe` is everything that decides a run, as `jaxprune.training.settings.Recipe` is for fine-tuning. Both
share most of their parts.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxprune.config import Card, ModelConfig
from jaxprune.json_files import fit
from jaxprune.pretraining.decoders import PlainDecoder, WindowDecoder
from jaxprune.pretraining.masks import RandomMask, TimeFrequencyMask
from jaxprune.pretraining.model import PretrainingConfig
from jaxprune.training.checks import below_one
from jaxprune.training.settings import (
    PRETRAINING,
    AdamW,
    Augment,
    Cosine,
    Data,
    Passes,
    Precision,
    Recipe,
    Start,
    filled_parts,
    plain,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingRecipe:
    """Everything that decides a pretraining run. Raises `ValueError` where its parts do not fit together."""

    # Name of the recipe.
    name: str
    # Where the settings come from.
    source: str
    # Model and starting weights.
    start: Start
    # Data set and features; its labels are not used.
    data: Data
    # Variation of the sound.
    augment: Augment
    # Patches that the encoder does not see.
    mask: RandomMask | TimeFrequencyMask
    # The network that predicts them.
    decoder: WindowDecoder | PlainDecoder
    # Optimiser.
    optimizer: AdamW
    # Learning rate over time.
    schedule: Cosine
    # Length, batch and seeds.
    loop: Passes
    # Predict each patch's pixels less their mean and over their deviation, or as they are.
    normalise: bool = True
    # Dropout in the network behind the window decoder's position bias.
    bias_dropout: float = 0.1
    # Number formats.
    precision: Precision = dataclasses.field(default_factory=Precision)

    def __post_init__(self):
        below_one("bias_dropout", self.bias_dropout)
        for name in ("patch_mask", "drop_path"):
            if getattr(self.augment, name):
                raise ValueError(f"augment.{name} is fine-tuning's; pretraining hides patches by its mask alone")
        if self.augment.time_mask > self.data.frames:
            raise ValueError(
                f"a time mask of {self.augment.time_mask} is wider than clips of {self.data.frames} frames"
            )
        self.schedule.check(epochs=self.loop.epochs, peak=self.peak_lr)
        self.mask.count(self.model().encoder)

    def model(self) -> PretrainingConfig:
        """The encoder of `start.size` for these frames, and the decoder. Raises `ValueError` if they do not fit."""
        start = self.start
        encoder = ModelConfig.of_size(start.family, start.size, classes=1, frames=self.data.frames)
        return PretrainingConfig(encoder=encoder, decoder=self.decoder)

    def card(self, model: ModelConfig, *, source: str = "") -> Card:
        """The card of a model that the recipe pretrains, without its decoder."""
        facts = self.data
        return Card(
            model=model, mean=facts.mean, std=facts.std, activation="sigmoid", source=source, padding=facts.fill
        )

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.optimizer.peak_lr(self.loop.batch)

    def to_json(self) -> dict[str, Any]:
        """Plain values, marked as pretraining's. Mask and decoder carry their class's name."""
        return {"task": PRETRAINING} | plain(self, UNIONS)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PretrainingRecipe":
        """The inverse of `to_json`, also after a trip through a file. Raises `ValueError` for missing or unknown
        fields, and for a recipe of fine-tuning."""
        try:
            fields = dict(data)
            if fields.pop("task", None) != PRETRAINING:
                raise ValueError("it is a recipe of fine-tuning, not of pretraining")
            fields |= filled_parts(fields, PARTS, unions=UNIONS)
            for name, kind in {"name": str, "source": str, "normalise": bool, "bias_dropout": float}.items():
                fit(fields[name], kind)
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a jaxprune pretraining recipe: {error}") from error


PARTS = {
    "start": Start,
    "data": Data,
    "augment": Augment,
    "optimizer": AdamW,
    "schedule": Cosine,
    "loop": Passes,
    "precision": Precision,
}
YOUNGER: dict[str, Any] = {}  # parts that older recipes lack
UNIONS = {
    "mask": {"RandomMask": RandomMask, "TimeFrequencyMask": TimeFrequencyMask},
    "decoder": {"WindowDecoder": WindowDecoder, "PlainDecoder": PlainDecoder},
}


def recipe_from_json(data: Mapping[str, Any]) -> Recipe | PretrainingRecipe:
    """The recipe, of either kind, that `to_json` made these values of. Raises `ValueError`."""
    kind = PretrainingRecipe if isinstance(data, Mapping) and data.get("task") == PRETRAINING else Recipe
    return kind.from_json(data)


PRETRAINING_RECIPES: Mapping[str, PretrainingRecipe] = MappingProxyType(
    {
        made.name: made
        for made in (
            PretrainingRecipe(
                name="audiomae-as2m-pretrain",
                source="script submit_pretrain_audioset2M.sh of Huang et al. 2022, except that clips really are "
                "rolled; the released code draws the offset below 1, so it never rolls",
                start=Start(family="audiomae"),
                data=Data(dataset="audioset", frames=1024, mean=-4.2677393, std=4.5689974, padding="zero", classes=527),
                augment=Augment(roll=1.0),
                mask=RandomMask(ratio=0.8),
                decoder=WindowDecoder(),
                optimizer=AdamW(base_lr=2e-4, weight_decay=1e-4, layer_decay=1.0),
                schedule=Cosine(warmup_epochs=3, floor=0.0),
                loop=Passes(epochs=33, batch=512),
            ),
            PretrainingRecipe(
                name="audiomae-arabic-words-pretrain",
                source="ours, not published: a mini model and two plain blocks as decoder, for two CPU cores",
                start=Start(family="audiomae", size="mini"),
                data=Data(dataset="arabicwords", frames=98, mean=-8.524405, std=4.244379, classes=40),
                augment=Augment(roll=1.0, speed=(0.85, 1.15)),
                mask=RandomMask(ratio=0.8),
                decoder=PlainDecoder(width=96, depth=2, heads=3),
                optimizer=AdamW(base_lr=4e-3, weight_decay=0.05, layer_decay=1.0, clip=1.0),
                schedule=Cosine(warmup_epochs=5, floor=0.0),
                loop=Passes(epochs=150, batch=64),
                precision=Precision(compute="float32"),
            ),
        )
    }
)
