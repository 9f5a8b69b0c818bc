"""The ways to reduce tokens by name: what `--method` on the command line and `prune.method` in a recipe choose from.

Every method is asked for by the keep rates of blocks, or by a saving (`jaxprune.amounts`). ToMe and pooling have no
keep rate: at one they cost as much as top-k does. So all methods compare at equal cost.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxprune import methods
from jaxprune.amounts import Amount, Merges, Saving
from jaxprune.config import MethodName, ModelConfig
from jaxprune.cost import macs_of_stages
from jaxprune.learned import dynamic, rate_for_saving
from jaxprune.models import CLASSES, Classifier
from jaxprune.reduction.fusing import Fuse, MaskedFuse
from jaxprune.reduction.joining import in_turn
from jaxprune.reduction.merging import MaskedMerge, Merge
from jaxprune.reduction.policy import Policy, at_blocks, between_stages, stage_rates, top_k_stages
from jaxprune.reduction.scores import ClsAttention, PatchMean, PatchStd, Random, Score
from jaxprune.reduction.selection import MaskedTopK, keep_count
from jaxprune.reduction.tokens import Reduction

MERGING = {"tome": True, "tome-plain": False}  # ToMe, with proportional attention and without it
LEARNED = "dynamic"  # needs the model's predictors, where the others need its geometry
Rates = Mapping[int, float]
Stages = dict[int, Reduction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to reduce tokens.

    `score(config, draw)` is the score of its policy, where `draw` is the number of a random choice.
    `exact(config, rates, patches)` are the stages at keep rates by block, where so many patches enter block 0.
    `between(config, rates, ends, patches)` are the same with counts that may be traced: all rates between the two
    `ends`, low and high, share one compilation. It is None where there are no such sizes. `for_saving(config, saving)`
    are the stages that save a share of the multiply-accumulates.
    """

    score: Callable[[ModelConfig, int], Score]
    exact: Callable[[ModelConfig, Rates, int], Stages]
    between: Callable[[ModelConfig, Rates, tuple[Rates, Rates], int], Stages] | None
    for_saving: Callable[[ModelConfig, Saving], Stages]


def reduced(
    model: Classifier, method: MethodName, amount: Amount | None = None, *, saving: float | None = None
) -> Policy:
    """The policy of a method: at keep rates as `topk` reads them, for a saving of arithmetic, or at ToMe's r.

    `saving=0.3` is short for `Saving(0.3)`. Raises `ValueError` for an unknown method, both or neither of the two, a
    saving that cannot be had, an r for another method than ToMe, blocks for a saving that the method does not prune at,
    and as `topk`.
    """
    if (amount is None) == (saving is None):
        raise ValueError("a method needs either keep rates or a saving; give one of them")
    amount = Saving(saving) if amount is None else amount
    if isinstance(amount, Merges):
        if method not in MERGING:
            raise ValueError(f"r counts tokens that merge, and {method} has no r; give a keep rate or a saving")
        return methods.tome(model, amount.r, proportional=MERGING[method])
    if method == LEARNED:
        return _learned(model, amount)
    chosen, config = by_name(method), model.config
    if isinstance(amount, Saving):
        return Policy(chosen.score(config, 0), chosen.for_saving(config, amount))
    rates = stage_rates(amount, depth=config.depth)
    return Policy(chosen.score(config, 0), chosen.exact(config, rates, config.patches))


def rates_for(config: ModelConfig, saving: Saving) -> dict[int, float]:
    """The keep rates of blocks at which top-k has a saving, one rate for all."""
    return _rates_for(config, saving, _exact_topk)


def by_name(method: str) -> Method:
    """The method of this name. Raises `ValueError` for another."""
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; choose among {', '.join((*METHODS, LEARNED))}")
    return METHODS[method]


def _learned(model: Classifier, amount: float | Rates | Saving) -> Policy:
    """DynamicViT's policy at one rate, for a saving, or at the products of the rates of the model's predictors."""
    blocks = model.config.predictors
    asked = amount.blocks if isinstance(amount, Saving) else tuple(amount) if isinstance(amount, Mapping) else ()
    if blocks and asked and tuple(sorted(asked)) != blocks:
        raise ValueError(f"keep rates are for blocks {sorted(asked)}, but the predictors for {list(blocks)}")
    if isinstance(amount, Saving):
        return dynamic(model, rate_for_saving(model.config, blocks, amount.share) if blocks else 1.0)
    if not isinstance(amount, Mapping):
        return dynamic(model, amount)
    return dynamic(model, tuple(itertools.accumulate((amount[block] for block in blocks), operator.mul)))


def _rates_for(
    config: ModelConfig, saving: Saving, exact: Callable[[ModelConfig, Rates, int], Stages]
) -> dict[int, float]:
    """One rate at the saving's blocks, or the published ones, found by the cost of its stages."""

    def rates(rate: float) -> dict[int, float]:
        return stage_rates(at_blocks(saving.blocks, rate), depth=config.depth)

    return rates(methods.rate_for(config, lambda rate: exact(config, rates(rate), config.patches), saving.share))


def _for_saving(exact: Callable[[ModelConfig, Rates, int], Stages]) -> Callable[[ModelConfig, Saving], Stages]:
    """Stages of one rate, found by its cost."""
    return lambda config, saving: exact(config, _rates_for(config, saving, exact), config.patches)


def _everywhere(stages: Callable[[ModelConfig, float], Stages]) -> Callable[[ModelConfig, Saving], Stages]:
    """The same of a method that chooses its blocks itself."""

    def checked(config: ModelConfig, saving: Saving) -> Stages:
        if saving.blocks:
            raise ValueError(
                f"blocks {list(saving.blocks)} were named, but merging and pooling choose their blocks for a saving; "
                "leave the blocks out"
            )
        return stages(config, saving.share)

    return checked


def _exact_topk(config: ModelConfig, rates: Rates, patches: int) -> Stages:
    return top_k_stages(rates)


def _ranked(score: Callable[[ModelConfig, int], Score]) -> Method:
    """Top-k by a score."""

    def between(config: ModelConfig, rates: Rates, ends: tuple[Rates, Rates], patches: int) -> Stages:
        return between_stages(rates, ends[1], patches=patches)

    return Method(score=score, exact=_exact_topk, between=between, for_saving=_for_saving(_exact_topk))


def _own(config: ModelConfig, draw: int) -> Score:
    """The family's."""
    return CLASSES[config.family].score


def _fused(config: ModelConfig, rates: Rates, patches: int) -> Stages:
    return {block: Fuse(rate) for block, rate in rates.items()}


def _fused_between(config: ModelConfig, rates: Rates, ends: tuple[Rates, Rates], patches: int) -> Stages:
    """The counts take in the tokens fused before, in the program's sizes as in the rate's own."""
    stages, own, most = {}, patches, patches
    for block in sorted(rates):
        kept, capacity = keep_count(rates[block], own), keep_count(ends[1][block], most)
        stages[block] = MaskedFuse(jnp.int32(kept), capacity)
        own, most = (left if left == entering else left + 1 for left, entering in ((kept, own), (capacity, most)))
    return stages


@functools.lru_cache(maxsize=256)
def _cost_of(config: ModelConfig, rates: tuple[tuple[int, float], ...], patches: int) -> float:
    """The share of multiply-accumulates that top-k saves."""
    with_all, pruned = (macs_of_stages(config, stages, visible=patches) for stages in ({}, top_k_stages(dict(rates))))
    return 1 - pruned / with_all


@functools.lru_cache(maxsize=256)
def _merges(config: ModelConfig, rates: tuple[tuple[int, float], ...], patches: int) -> tuple[int, ...]:
    """The tokens to merge in each block for the cost of top-k at keep rates."""
    return methods.merges_for(config, _cost_of(config, rates, patches), visible=patches)


def _merging(*, proportional: bool) -> Method:
    """ToMe."""

    def by_block(counts: Sequence[int]) -> Stages:
        return {block: Merge(r, proportional) for block, r in enumerate(counts)}

    def between(config: ModelConfig, rates: Rates, ends: tuple[Rates, Rates], patches: int) -> Stages:
        own, most, least = (_merges(config, tuple(one.items()), patches) for one in (rates, *ends))
        stages, capacity = {}, patches
        for block in range(config.depth):
            high = min(most[block], capacity // 2)
            capacity -= min(least[block], capacity // 2)
            stages[block] = MaskedMerge(jnp.int32(own[block]), high, capacity, proportional)
        return stages

    return Method(
        score=_own,
        exact=lambda config, rates, patches: by_block(_merges(config, tuple(rates.items()), patches)),
        between=between,
        for_saving=_everywhere(lambda config, saving: by_block(methods.merges_for(config, saving))),
    )


def _pooled(config: ModelConfig, rates: Rates, patches: int) -> Stages:
    return methods.pools_for(config, _cost_of(config, tuple(rates.items()), config.patches))


def _half(rate: float) -> float:
    """The keep rate that drops half as much."""
    return (1 + rate) / 2


def _halfway(rates: Rates) -> Stages:
    """The pruning of a hybrid: at each block half of what top-k drops."""
    return top_k_stages({block: _half(rate) for block, rate in rates.items()})


@functools.lru_cache(maxsize=256)
def _merges_after(config: ModelConfig, rates: tuple[tuple[int, float], ...], patches: int) -> tuple[int, ...]:
    """The tokens that a hybrid merges in each block, for the cost of top-k at keep rates."""
    saving = _cost_of(config, rates, patches)
    return methods.merges_for(config, saving, visible=patches, pruned=_halfway(dict(rates)))


def _both(config: ModelConfig, rates: Rates, patches: int) -> Stages:
    """Half of what top-k drops is pruned, and the other half of the saving comes from merging in every block."""
    merges = _merges_after(config, tuple(rates.items()), patches)
    return in_turn(_halfway(rates), {block: Merge(r) for block, r in enumerate(merges)})


def _both_between(config: ModelConfig, rates: Rates, ends: tuple[Rates, Rates], patches: int) -> Stages:
    """The merges are at least and at most those of the ends, which the rounding of costs may overstep by a few."""
    own, *others = (_merges_after(config, tuple(one.items()), patches) for one in (rates, *ends))
    most, least = (tuple(map(choose, *others)) for choose in (max, min))
    prunings, merges, count, capacity = {}, {}, patches, patches
    for block in range(config.depth):
        if block in rates:
            count, capacity = keep_count(_half(rates[block]), count), keep_count(_half(ends[1][block]), capacity)
            prunings[block] = MaskedTopK(jnp.int32(count), capacity)
        r, high = min(max(own[block], least[block]), most[block]), min(most[block], capacity // 2)
        count, capacity = count - min(r, count // 2), capacity - min(least[block], capacity // 2)
        merges[block] = MaskedMerge(jnp.int32(r), high, capacity)
    return in_turn(prunings, merges)


def _both_for_saving(config: ModelConfig, saving: Saving) -> Stages:
    """The hybrid at the rates at which top-k has this saving."""
    return _both(config, rates_for(config, saving), config.patches)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "topk": _ranked(_own),
        "evit": Method(
            score=lambda config, draw: ClsAttention(),
            exact=_fused,
            between=_fused_between,
            for_saving=_for_saving(_fused),
        ),
        **{name: _merging(proportional=proportional) for name, proportional in MERGING.items()},
        "random": _ranked(lambda config, draw: Random(jax.random.key(draw))),
        "grid": _ranked(lambda config, draw: methods.lattice(config)),
        "loudest": _ranked(lambda config, draw: PatchMean()),
        "varied": _ranked(lambda config, draw: PatchStd()),
        "pool": Method(score=_own, exact=_pooled, between=None, for_saving=_everywhere(methods.pools_for)),
        "hybrid": Method(score=_own, exact=_both, between=_both_between, for_saving=_both_for_saving),
    }
)
