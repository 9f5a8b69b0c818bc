"""Settings of pruning in training: a keep rate that falls to its target, or keep rates that the steps draw from.

`jaxprune.training.schedules` turns them into a rate for each step and the sizes that are compiled.
"""

import dataclasses
import functools
import math
import re
from typing import Literal

from jaxprune.registry import LEARNED, MethodName, by_name
from jaxprune.training.checks import distinct, factor, whole_number

MOST_SIZES = 10  # that a run compiles the step for, with the default buckets
MOST_DRAWS = 20
NUMBER = r"\d*\.?\d+|\d+\."
DRAW = re.compile(rf"(?P<low>{NUMBER})(?:-(?P<high>{NUMBER}))?(?::(?P<weight>{NUMBER}))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """Keep rates drawn uniformly from [low, high], one rate where both are equal. `weight` is against other draws."""

    low: float
    high: float
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """The share of patches kept, and the way there."""

    # The way to reduce tokens. tome and pool have no keep rate: they cost as much as topk does at it. tome-plain is
    # tome without proportional attention. dynamic trains predictors with the model (DynamicViT).
    method: MethodName = "topk"
    # Target: the keep rate of each pruning block after the shrinking; 1 trains without pruning.
    keep_rate: float = 0.7
    # Keep rates to draw from, one a step, in place of a target: 1 0.9 0.7, weighted 1:2 0.7:1, or a range 0.5-1.
    sample: tuple[str, ...] | None = None
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
    # Compiled sizes used while the rate falls, or for a range of rates; more compile longer and compute less.
    buckets: int = 7

    def __post_init__(self):
        factor("keep_rate", self.keep_rate)
        for block in self.blocks:
            whole_number("blocks", block, least=0)
        distinct("blocks", self.blocks)
        whole_number("first_epoch", self.first_epoch, least=0)
        whole_number("shrink_start", self.shrink_start, least=self.first_epoch)
        whole_number("shrink_epochs", self.shrink_epochs, least=0)
        whole_number("buckets", self.buckets, least=1)
        if self.update not in ("epoch", "step"):
            raise ValueError(f"update is {self.update!r}; it must be 'epoch' or 'step'")
        if self.sample is not None:
            # Commas work as spaces do, and both give the same recipe.
            object.__setattr__(self, "sample", tuple(part for text in self.sample for part in text.split(",")))
            if self.keep_rate not in (1, type(self).keep_rate):
                raise ValueError(
                    f"keep_rate is {self.keep_rate:g} and sample {' '.join(self.sample)}; a run reaches a target or "
                    "draws its keep rates, so give one of them"
                )
            draws_from(self.sample)
        if self.method == LEARNED and (self.sample is not None or self.keep_rate == 1 or not self.blocks):
            raise ValueError(
                "learned pruning (method dynamic) is trained for one keep rate below 1 at some blocks; give "
                "--prune.keep-rate and --prune.blocks, and no sample"
            )
        if self.method != LEARNED and by_name(self.method).between is None and self.moves:
            raise ValueError(
                f"{self.method} cannot follow a keep rate that moves, because it has no masked sizes; set "
                f"shrink_epochs to 0, or sample at most {MOST_SIZES} rates"
            )

    @property
    def moves(self) -> bool:
        """True where rates occur that have no compiled size of their own."""
        if self.draws:
            return any(draw.low < draw.high or draw.low not in self.exact for draw in self.draws)
        return self.keep_rate < 1 and self.shrink_epochs > 0

    @functools.cached_property
    def draws(self) -> tuple[Draw, ...]:
        """The rates that a step's is drawn from. There are none where the rate falls to its target."""
        return () if self.sample is None else draws_from(self.sample)

    @property
    def falls(self) -> bool:
        """True if the keep rate falls to a target. Learned pruning trains at its rate from the first step."""
        return self.method != "dynamic" and not self.draws and self.keep_rate < 1

    @property
    def predictors(self) -> tuple[int, ...]:
        """The blocks that have predictors, rising."""
        return tuple(sorted(self.blocks)) if self.method == "dynamic" else ()

    @property
    def lowest(self) -> float:
        """The lowest keep rate that occurs."""
        return min((draw.low for draw in self.draws), default=self.keep_rate)

    @property
    def highest(self) -> float:
        """The highest keep rate that occurs."""
        return max((draw.high for draw in self.draws), default=1.0)

    @property
    def exact(self) -> tuple[float, ...]:
        """The keep rates that have a compiled size of their own: the ends, and every rate of a list of at most ten."""
        listed = {draw.low for draw in self.draws}
        if all(draw.low == draw.high for draw in self.draws) and len(listed) <= MOST_SIZES:
            return tuple(listed | {self.lowest, self.highest})
        return self.lowest, self.highest

    @property
    def rates(self) -> tuple[float, ...]:
        """The keep rates that the trained model is for, falling: its target; or all in a list, and of a range the ends
        and the tenths between."""
        if not self.draws:
            return (float(self.keep_rate),)
        ends = {rate for draw in self.draws for rate in (draw.low, draw.high)}
        tenths = {i / 10 for i in range(1, 10) for draw in self.draws if draw.low < i / 10 < draw.high}
        return tuple(sorted(ends | tenths, reverse=True))

    @property
    def watched(self) -> tuple[float, ...]:
        """The rates that every epoch is evaluated at: the highest, the middle and the lowest of `rates`."""
        rates = self.rates
        return tuple(dict.fromkeys((rates[0], rates[len(rates) // 2], rates[-1])))

    @property
    def in_words(self) -> str:
        """The target, or the rates drawn, and the method if it is not top-k: `0.7`, or `1 0.9 0.5-0.8`."""
        rate = f"{self.keep_rate:g}" if self.sample is None else " ".join(self.sample)
        return {"topk": rate, "dynamic": f"{rate}, learned"}.get(self.method, f"{rate}, {self.method}")

    @property
    def in_names(self) -> str:
        """The target as part of a file's name, or `any`."""
        return f"{self.keep_rate:g}" if self.sample is None else "any"


def draws_from(sample: tuple[str, ...]) -> tuple[Draw, ...]:
    """The draws that are written as `rate`, `low-high`, or either with `:weight`.

    Raises `ValueError` where there is none, for what is not so written, rates outside (0, 1], a range that does not
    rise, the same draw twice, weights that are not positive, and weights for a part of the draws alone.
    """
    if not any(sample):
        raise ValueError("sample names no keep rate; write some, such as 1 0.9 0.8, or a range such as 0.5-1")
    if len(sample) > MOST_DRAWS:
        raise ValueError(f"sample names {len(sample)} keep rates; at most {MOST_DRAWS} are drawn from")
    draws, weighted = [], 0
    for text in sample:
        found = DRAW.fullmatch(text)
        if not found:
            raise ValueError(
                f"{text!r} in sample is no keep rate; write a rate such as 0.7, a range such as 0.5-1, and a weight as "
                "in 0.7:2"
            )
        low = float(found["low"])
        high = low if found["high"] is None else float(found["high"])
        weight = 1.0 if found["weight"] is None else float(found["weight"])
        if not (0 < low <= 1 and 0 < high <= 1):
            raise ValueError(f"{text!r} in sample is outside (0, 1]; keep rates are greater than 0 and at most 1")
        if found["high"] is not None and low >= high:
            raise ValueError(f"the range {text!r} in sample does not rise; write its lower end first, as in 0.5-1")
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of {text!r} in sample is not positive; leave out what is never to be drawn")
        weighted += found["weight"] is not None
        draws.append(Draw(low=low, high=high, weight=weight))
    if weighted not in (0, len(draws)):
        raise ValueError(
            f"{weighted} of {len(draws)} keep rates in sample have a weight; give one to each, as in 1:2 0.7:1, or to "
            "none"
        )
    if len({(draw.low, draw.high) for draw in draws}) < len(draws):
        raise ValueError(f"sample {' '.join(sample)} names a keep rate twice; give it a weight instead")
    return tuple(draws)
