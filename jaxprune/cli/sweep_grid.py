"""The options of `jaxprune sweep` that say which settings are measured, and the settings that they make."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import get_args

from jaxprune.config import MethodName
from jaxprune.experiments.ablation import (
    OtherMethod,
    ScoreName,
    Setting,
    method_settings,
    saving_settings,
    score_settings,
)
from jaxprune.models import Classifier
from jaxprune.reduction.policy import default_blocks

# The methods that are top-k by another score, by that score's name here.
SCORES: Mapping[MethodName, ScoreName] = MappingProxyType(
    {"topk": "attention", "random": "random", "loudest": "mean", "varied": "std"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings to sweep: every score at every keep rate on every set of blocks."""

    keep_rates: tuple[str, ...] = ()
    """a rate for all blocks of a set, or one for each with commas between; no pruning is always measured. By default
    those that a checkpoint was trained for, or 0.9 0.8 0.7 0.6 0.5 where none was trained for several."""
    blocks: tuple[str, ...] = ()
    """sets of blocks that prune, counted from 0, with commas between; those of 3, 6 and 9 that the model has unless
    given."""
    scores: tuple[ScoreName, ...] = ()
    """what chooses the patches; attention unless given."""
    methods: tuple[OtherMethod, ...] = ()
    """other ways to reduce tokens to measure beside, at the cost of topk at the same rates. Without scores and methods
    it is the method that a checkpoint was trained for, and no other."""
    savings: tuple[float, ...] = ()
    """shares of the unpruned model's arithmetic to save, beside or in place of keep rates: all scores and methods at
    equal cost."""
    seeds: tuple[int, ...] = (0,)
    """of the random score."""

    def settings(
        self, model: Classifier, *, rates: Sequence[float], trained: Sequence[MethodName] = ("topk",)
    ) -> list[Setting]:
        """All combinations, at the `rates` and by the `trained` methods where none were asked for.

        Raises `ValueError` for what are no numbers, and as `score_settings`.
        """
        sets = self.blocks or (",".join(map(str, default_blocks(model.config.depth))),)
        asked = self.keep_rates or (() if self.savings else tuple(f"{rate!r}" for rate in rates if rate < 1))
        pruned = [by_block(places, keep) for places in sets for keep in asked]
        scores, methods = self._ways(trained)
        settings = score_settings(model, scores=scores, rates=pruned, seeds=self.seeds)
        settings += method_settings(model, methods=methods, rates=pruned)
        if self.savings and len(self.blocks) > 1:
            raise ValueError("--savings and several sets of --blocks were given; give one set, or keep rates")
        blocks = tuple(by_block(self.blocks[0], "1")) if self.blocks else ()
        chosen = {"scores": scores, "methods": methods, "seeds": self.seeds}
        return settings + saving_settings(model, savings=self.savings, blocks=blocks, **chosen)

    def _ways(self, trained: Sequence[MethodName]) -> tuple[tuple[ScoreName, ...], tuple[OtherMethod, ...]]:
        """The scores and the other methods to measure."""
        if self.scores or self.methods:
            return self.scores or ("attention",), self.methods
        scores = tuple(dict.fromkeys(SCORES[name] for name in trained if name in SCORES))
        return scores, tuple(name for name in get_args(OtherMethod) if name in trained)


def by_block(places: str, keep: str) -> dict[int, float]:
    """Keep rates by block from "3,6,9" and "0.7", or "0.83,0.61,0.47". Raises `ValueError` where they do not fit."""
    try:
        blocks, rates = [int(place) for place in places.split(",")], [float(rate) for rate in keep.split(",")]
    except ValueError:
        raise ValueError(
            f"{places!r} and {keep!r} are not blocks and keep rates; write 3,6,9 and 0.7, or 0.83,0.61,0.47"
        ) from None
    if len(set(blocks)) < len(blocks) or len(rates) not in (1, len(blocks)):
        raise ValueError(
            f"the keep rates {keep} do not fit the blocks {places}; give one rate, or one for each block once"
        )
    return dict(zip(blocks, rates * len(blocks) if len(rates) == 1 else rates, strict=True))


UNTOLD = Grid()
