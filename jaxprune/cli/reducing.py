"""Options that say how tokens are reduced: by which method, and by how much. Commands share them.

A command with one setting takes `One`, one that measures several takes `Several`. Both are written for tyro, flattened.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from jaxprune.amounts import Amount, Merges, Saving
from jaxprune.cli.options import trained_for
from jaxprune.config import Card
from jaxprune.models import Classifier
from jaxprune.reduction.policy import DEFAULT_BLOCKS, Policy, at_blocks, stage_rates
from jaxprune.registry import LEARNED, MethodName, reduced

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Method:
    """The options of both."""

    method: MethodName | None = None
    """the way to reduce tokens, by default the one that the checkpoint was trained for; tome, pool and hybrid cost as
    much as topk does at a keep rate. tome-plain is tome without proportional attention."""
    blocks: tuple[int, ...] = ()
    """the blocks that prune, counted from 0; those of 3, 6 and 9 that the model has unless given."""

    def of(self: Options, card: Card) -> Options:
        """The options with the method named: the card's where none was."""
        return self if self.method else dataclasses.replace(self, method=card.method)


@dataclasses.dataclass(frozen=True, kw_only=True)
class One(_Method):
    """One method at one amount."""

    keep_rate: float | None = None
    """share of the patches kept at each pruning block, above 0 and at most 1; 1 prunes nothing."""
    rates: tuple[float, ...] = ()
    """one keep rate for each of the blocks, in place of --keep-rate."""
    saving: float | None = None
    """share of the unpruned model's arithmetic to save, in place of --keep-rate: 0.3 finds the setting."""
    r: tuple[int, ...] = ()
    """of tome, in place of --keep-rate: tokens that leave each block, one number for all or one a block."""

    def amount(self, *, default: float, depth: int) -> Amount:
        """The amount asked for, its rates by block; `default` is the keep rate where nothing was said.

        Raises `ValueError` for options that exclude each other, and as `stage_rates`.
        """
        options = {"--keep-rate": self.keep_rate, "--rates": self.rates, "--saving": self.saving, "--r": self.r}
        given = [name for name, value in options.items() if value not in (None, ())]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; choose one of them")
        if self.saving is not None:
            return Saving(self.saving, self.blocks)
        if self.r:
            return merges(self.r, blocks=self.blocks)
        if not self.rates:
            rate = default if self.keep_rate is None else self.keep_rate
            return stage_rates(at_blocks(self.blocks, rate), depth=depth)
        blocks = self.blocks or DEFAULT_BLOCKS
        if len(self.rates) != len(blocks):
            raise ValueError(
                f"{len(self.rates)} --rates were given for {len(blocks)} --blocks {blocks}; give one for each"
            )
        at_blocks(blocks, 1.0)
        return stage_rates(dict(zip(blocks, self.rates, strict=True)), depth=depth)

    def remarks(self, checkpoint: Path, card: Card, amount: Amount) -> Iterator[str]:
        """Sentences about a method or keep rates that the model was not trained for."""
        rates = sorted(set(amount.values())) if isinstance(amount, dict) else ()
        reduces = min(rates, default=1) < 1 or not isinstance(amount, dict)
        if card.model.predictors and self.method != LEARNED and reduces:
            yield f"{checkpoint} has learned predictors, and {self.method} does not ask them (--method {LEARNED} does)"
        elif self.method != card.method and reduces and min(card.keep_rates, default=1) < 1:
            yield f"{self.method}: {checkpoint} was trained for {trained_for(card)}"
        if outside := [f"{rate:g}" for rate in rates if not card.covers(rate)]:
            yield f"keep rate {' and '.join(outside)}: {checkpoint} was trained for {trained_for(card)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several(_Method):
    """One method at several amounts."""

    keep_rates: tuple[float, ...] = ()
    """shares of the patches kept at each pruning block, 1 prunes nothing; by default those that the checkpoint was
    trained for, or the command's own where it was not trained for several."""
    savings: tuple[float, ...] = ()
    """shares of the unpruned model's arithmetic to save, beside or in place of keep rates."""
    r: tuple[int, ...] = ()
    """of tome: numbers of tokens that leave each block, beside or in place of keep rates."""

    def amounts(self, *, default: Sequence[float]) -> list[Amount]:
        """All amounts; the keep rates of `default` where nothing was said. Raises `ValueError` for one given twice."""
        rates = self.keep_rates or (() if self.savings or self.r else tuple(default))
        every = [*rates, *(Saving(one, self.blocks) for one in self.savings)]
        every += [merges((one,), blocks=self.blocks) for one in self.r]
        if not every or len(set(every)) < len(every):
            raise ValueError(f"the amounts are {[*rates, *self.savings, *self.r]}; name at least one, and each once")
        return every

    def policies(self, model: Classifier, *, default: Sequence[float]) -> dict[Amount, Policy]:
        """A policy for each amount, for `jaxprune.evaluation.evaluate.evaluate`. Raises `ValueError` as `reduced`."""
        return {
            amount: reduced(
                model, self.method or "topk", at_blocks(self.blocks, amount) if isinstance(amount, float) else amount
            )
            for amount in self.amounts(default=default)
        }


def merges(r: Sequence[int], *, blocks: Sequence[int]) -> Merges:
    """ToMe's r of the options. Raises `ValueError` where pruning blocks were named too."""
    if blocks:
        raise ValueError("--r and --blocks were given, but tome merges in every block; give an --r for each")
    return Merges(r[0] if len(r) == 1 else list(r))  # a pair would be (r, inflection)


UNTOLD, NONE_TOLD = One(), Several()
# Flattened: the fields are options of the command.
OneReduction = Annotated[One, tyro.conf.arg(name="")]
SeveralReductions = Annotated[Several, tyro.conf.arg(name="")]
