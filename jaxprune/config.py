"""The geometry of a model, and the card that travels with its weights.

`ModelConfig` is everything that decides the shapes and numerics of an AST or AudioMAE classifier. `Card` adds what a
user needs to give it sound and read its answer: feature statistics, label names, and how logits become probabilities.
Both are frozen, validated when built, and written as JSON beside every checkpoint. Nothing here touches arrays.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from jaxprune.families import FAMILIES, Family
from jaxprune.json_files import fit

Activation = Literal["sigmoid", "softmax"]
# The log-mel that fills a clip shorter than the model: the clip's own minimum, or 0 (before normalising).
Padding = Literal["minimum", "zero"]
PADDING_IN_WORDS: dict[Padding, str] = {"minimum": "the clip's minimum", "zero": "log-mel 0"}

# The ways to reduce tokens; `jaxprune.registry` has them by name.
MethodName = Literal[
    "topk", "evit", "tome", "tome-plain", "dynamic", "random", "grid", "loudest", "varied", "pool", "hybrid"
]
Size = Literal["micro", "mini", "tiny", "small", "base", "large"]

# (width, heads, depth). AST: Gong et al. 2021; AudioMAE: Huang et al. 2022; micro and mini are ours, to train on a CPU.
SIZES: dict[Size, tuple[int, int, int]] = {
    "micro": (64, 2, 12),
    "mini": (128, 4, 12),
    "tiny": (192, 3, 12),
    "small": (384, 6, 12),
    "base": (768, 12, 12),
    "large": (1024, 16, 24),
}
FAMILY_SIZES = {family: facts.sizes for family, facts in FAMILIES.items()}

# Far above any model in use; sizes beyond them are a damaged or hostile file, seen before anything is computed.
LARGEST = {
    "width": 16_384,
    "depth": 128,
    "heads": 1024,
    "classes": 1_000_000,
    "frames": 1_000_000,
    "mels": 4096,
    "patch": 1024,
    "time_stride": 1024,
    "freq_stride": 1024,
}
MOST_RATES = 64  # that a card lists
LARGEST_TABLE = 2**28  # numbers in the position table, 1 GB


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes and numerics of one classifier.

    `frames` (t) and `mels` (f) are the spectrogram's size; patches are `patch` x `patch` pixels taken every
    `time_stride` frames and `freq_stride` bins. `norm_eps` belongs to the blocks' LayerNorms, `head_norm_eps` to the
    one before the classifier. `predictors` are the blocks before which a learned predictor can choose patches
    (DynamicViT); most models have none. Raises `ValueError` for sizes that do not fit together.
    """

    family: Family
    width: int
    depth: int
    heads: int
    classes: int
    frames: int = 1024
    mels: int = 128
    patch: int = 16
    time_stride: int = 16
    freq_stride: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    head_norm_eps: float = 1e-6
    predictors: tuple[int, ...] = ()

    def __post_init__(self):
        if self.family not in FAMILY_SIZES:
            raise ValueError(f"family is {self.family!r}; it must be one of {', '.join(FAMILY_SIZES)}")
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                raise ValueError(f"{name} is {value!r:.40}; it must be a whole number from 1 to {largest:,}")
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} cannot be split over {self.heads} heads; choose heads that divide the width"
            )
        if self.frames < self.patch or self.mels < self.patch:
            raise ValueError(
                f"a spectrogram of {self.frames} frames x {self.mels} mel bins is smaller than one patch of "
                f"{self.patch} x {self.patch}"
            )
        for name in ("norm_eps", "head_norm_eps", "mlp_ratio"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name} is {value!r}; it must be positive")
        if not 1 <= self.mlp_width <= 8 * LARGEST["width"]:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio!r}; it gives an MLP of width {self.mlp_width}")
        if self.patches * self.width > LARGEST_TABLE:
            raise ValueError(
                f"{self.patches:,} patches of width {self.width:,} need a position table of more than "
                f"{LARGEST_TABLE:,} numbers"
            )
        if self.predictors:
            self._check_predictors()

    def _check_predictors(self) -> None:
        if self.width % 4:
            raise ValueError(f"a model of width {self.width} cannot have predictors: they need a width that 4 divides")
        blocks = self.predictors
        if list(blocks) != sorted({block for block in blocks if block in range(self.depth)}):
            raise ValueError(
                f"predictors at blocks {list(blocks)!r:.80}: name blocks from 0 to {self.depth - 1}, each once, rising"
            )

    def __repr__(self) -> str:
        """The fields, without `predictors` where there are none: stored sweeps compare this text."""
        fields = {name: value for name, value in vars(self).items() if name != "predictors" or value}
        return f"ModelConfig({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @classmethod
    def of_size(cls, family: Family, size: str, **changes: Any) -> "ModelConfig":
        """The geometry of a named size, e.g. `of_size("ast", "base", classes=50, frames=512)`."""
        if size not in FAMILY_SIZES.get(family, ()):
            raise ValueError(f"there is no {family} of size {size!r}; the sizes are {FAMILY_SIZES}")
        width, heads, depth = SIZES[size]
        head_norm_eps = FAMILIES[family].head_norm_eps
        return cls(
            **{"family": family, "width": width, "heads": heads, "depth": depth, "head_norm_eps": head_norm_eps}
            | changes
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, frequency)."""
        return (self.frames - self.patch) // self.time_stride + 1, (self.mels - self.patch) // self.freq_stride + 1

    @property
    def patches(self) -> int:
        """Patch tokens n, before any pruning."""
        time, freq = self.grid
        return time * freq

    @property
    def extra_tokens(self) -> int:
        """Prefix tokens p that are never pruned: CLS and distillation for AST, CLS for AudioMAE."""
        return FAMILIES[self.family].extra_tokens

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer in each block's MLP."""
        return int(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A model's configuration with what is needed to use it.

    `mean` and `std` normalise log-mel features as (x - mean) / (2 std). `labels` is empty when unknown, else one name
    per class in the head's order. The activation of a head of one class is always the sigmoid. `source` says in words
    where the weights came from. `trained` is false where weights, or the head alone, are still random. `padding` fills
    a short clip: with its minimum in the token-pruning work and in what is trained here, which cards without the field
    mean; with 0 in Hugging Face, the original AST and AudioMAE. `keep_rates` are those that it was trained for,
    falling: the target of one run, or all that a run drew from; empty when unknown. `method` is the way to reduce
    tokens that it was trained for, and is run with unless another is asked for; cards without the field mean top-k.
    `decoder` describes the decoder of a pretraining model (`jaxprune.pretraining.checkpoint`), whose classes mean
    nothing; a classifier has none.
    """

    model: ModelConfig
    mean: float
    std: float
    activation: Activation
    labels: tuple[str, ...] = ()
    source: str = ""
    trained: bool = True
    padding: Padding = "minimum"
    keep_rates: tuple[float, ...] = ()
    method: MethodName = "topk"
    decoder: dict[str, Any] | None = None

    def __post_init__(self):
        if self.labels and len(self.labels) != self.model.classes:
            raise ValueError(
                f"{len(self.labels)} labels were given for a head of {self.model.classes} classes; give one per class"
            )
        if self.activation not in ("sigmoid", "softmax"):
            raise ValueError(
                f"activation is {self.activation!r}; it must be 'sigmoid' (multi-label) or 'softmax' (single label)"
            )
        if self.model.classes == 1:
            # The softmax of one score is 1 whatever the score.
            object.__setattr__(self, "activation", "sigmoid")
        if self.padding not in ("minimum", "zero"):
            raise ValueError(f"padding is {self.padding!r}; it must be 'minimum' (the clip's own) or 'zero'")
        if self.method not in get_args(MethodName):
            raise ValueError(f"method is {self.method!r:.80}; it must be one of {', '.join(get_args(MethodName))}")
        if not math.isfinite(self.mean) or not math.isfinite(self.std) or self.std <= 0:
            raise ValueError(f"feature mean {self.mean} and std {self.std} must be finite and std positive")
        if len(self.keep_rates) > MOST_RATES or not all(0 < rate <= 1 for rate in self.keep_rates):
            raise ValueError(
                f"the trained keep rates are {list(self.keep_rates)!r:.80}; they must be at most {MOST_RATES}, each "
                "greater than 0 and at most 1"
            )

    @property
    def highest_keep_rate(self) -> float:
        """The highest keep rate that the model is for: 1, but for one trained for several rates that are all lower."""
        return max(self.keep_rates) if len(self.keep_rates) > 1 else 1.0

    def covers(self, keep_rate: float) -> bool:
        """False for a keep rate that training never came near: below the lowest, or above the highest of several.

        A model of one rate has come down to it from 1. True where the card does not know.
        """
        if not self.keep_rates:
            return True
        return min(self.keep_rates) <= keep_rate <= self.highest_keep_rate

    def to_json(self) -> dict[str, Any]:
        """The card as plain values; `from_json` reads them back. It does not mention predictors, trained keep
        rates and a method other than top-k where there are none, so that earlier versions read it too."""
        plain = dataclasses.asdict(self)
        if not self.model.predictors:
            del plain["model"]["predictors"]
        if not self.keep_rates:
            del plain["keep_rates"]
        if self.method == type(self).method:
            del plain["method"]
        if self.decoder is None:
            del plain["decoder"]
        return plain

    @classmethod
    def from_json(cls, data: Any) -> "Card":
        """The inverse of `to_json`. Raises `ValueError` on missing or unknown fields."""
        if not isinstance(data, Mapping):
            raise ValueError(f"not a jaxprune model card: it is {type(data).__name__}, not an object with fields")
        fields = dict(data)
        if "trained" not in fields:  # an older card, which said it in words
            fields["trained"] = "random weights" not in str(fields.get("source", "")).lower()
        try:
            card = fit(fields, cls)
        except ValueError as error:
            raise ValueError(f"not a jaxprune model card: {error}") from error
        unknown = (
            fields.keys() - dataclasses.asdict(card).keys()
            | fields["model"].keys() - dataclasses.asdict(card.model).keys()
        )
        if unknown:
            raise ValueError(
                f"not a card of this version of jaxprune: it has the unknown field {min(unknown)!r:.80}; a newer "
                "version may read it"
            )
        return card
