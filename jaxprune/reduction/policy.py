"""The policy: a score and the blocks that reduce tokens, and the stages that a keep rate stands for."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.reduction.joining import in_turn
from jaxprune.reduction.scores import Score
from jaxprune.reduction.selection import MaskedTopK, Stage, TopK, keep_count
from jaxprune.reduction.tokens import Reduction

DEFAULT_BLOCKS = (3, 6, 9)  # 0-based, as published


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Policy:
    """A score and the blocks that reduce tokens, `{0-based block: reduction}`. A stage prunes by the score.

    A pytree, so it goes through `jax.jit` as it is: one compilation for each combination of types, static rates and
    capacities, none for new counts, keys or values.
    """

    score: Score
    stages: dict[int, Reduction]

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The arrays of score and stages for JAX, with the types that tell policies apart."""
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ("score", "stages")]
        return children, (_types(self.score), tuple(map(_types, self.stages.values())))

    def __or__(self, other: "Policy") -> "Policy":
        """Both: at a block of both, this one's stage first, then the other's reduction of what is left.

        For example `topk(model, 0.8) | tome(model, 8)` prunes the least attended and merges the most alike. Raises
        `ValueError` where the two rank by different scores, and where this one's is no stage that only prunes.
        """
        scores = type(self.score), type(other.score)
        if scores[0] is not scores[1] and any(one.ranks for one in other.stages.values()):
            raise ValueError(
                f"the policies rank by {scores[0].__name__} and {scores[1].__name__}; give both the same score"
            )
        return Policy(self.score, in_turn(self.stages, other.stages))

    @classmethod
    def tree_unflatten(cls, types: Any, children: Any) -> "Policy":
        """The policy back from its parts."""
        return cls(*children)


def _types(value: Any) -> Any:
    """The types in a score or stage, for JAX to tell policies apart by.

    jax 0.10.2 takes two dataclasses of the same fields for equal, whatever their types. A jitted function then answers
    for one score with the program of another, now and then, as the hashes fall.
    """
    if not dataclasses.is_dataclass(value):
        return None
    return type(value), tuple(_types(getattr(value, field.name)) for field in dataclasses.fields(value))


def stage_rates(keep_rate: float | Mapping[int, float], *, depth: int) -> dict[int, float]:
    """A rate for each pruning block, checked and sorted by block.

    `keep_rate` is a mapping from 0-based block to rate, or one rate for those of the published blocks 3, 6 and 9 that
    the model has. Raises `ValueError` for a rate outside (0, 1], a block the model does not have, and one rate below 1
    for a model with none of the published blocks.
    """
    rates = dict(keep_rate) if isinstance(keep_rate, Mapping) else _default_rates(keep_rate, depth=depth)
    for block, rate in rates.items():
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth:
            raise ValueError(
                f"block {block!r} cannot prune: the model's blocks are 0 to {depth - 1}; name some of those"
            )
        keep_count(rate, 1)
    return {block: float(rates[block]) for block in sorted(rates)}


def at_blocks(blocks: Sequence[int], rate: float) -> float | dict[int, float]:
    """One rate at the blocks that a caller named, or at the default ones where there are none, for `stage_rates`.

    Raises `ValueError` for a block named twice.
    """
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"the blocks are {list(blocks)}; name each once")
    return dict.fromkeys(blocks, rate) if blocks else rate


def default_blocks(depth: int) -> tuple[int, ...]:
    """Those of the published blocks 3, 6 and 9 that a model of `depth` blocks has."""
    return tuple(block for block in DEFAULT_BLOCKS if block < depth)


def _default_rates(rate: float, *, depth: int) -> dict[int, float]:
    keep_count(rate, 1)
    blocks = default_blocks(depth)
    if not blocks and rate < 1:
        raise ValueError(
            f"a model of {depth} blocks has none of {DEFAULT_BLOCKS}; name its blocks, such as {{1: {rate}}}"
        )
    return dict.fromkeys(blocks, rate)


def stage_counts(rates: Mapping[int, float], *, patches: int) -> dict[int, int]:
    """Patches alive after each pruning block, one stage's rounding feeding the next, block by block in rising order."""
    counts = {}
    for block in sorted(rates):
        patches = counts[block] = keep_count(rates[block], patches)
    return counts


def top_k_stages(rates: Mapping[int, float]) -> dict[int, Stage]:
    """Exact gathering at static rates."""
    return {block: TopK(float(rate)) for block, rate in rates.items()}


def between_stages(rates: Mapping[int, float], highest: Mapping[int, float], *, patches: int) -> dict[int, Stage]:
    """The counts of `rates`, under the capacities of the `highest` rates that share their compilation."""
    counts, capacities = (stage_counts(one, patches=patches) for one in (rates, highest))
    return {block: MaskedTopK(jnp.int32(counts[block]), capacities[block]) for block in counts}


def masked_stages(rates: Mapping[int, float], *, patches: int, multiple: int | None = None) -> dict[int, Stage]:
    """The same counts under static capacities: each count rounded up to a `multiple`, or full length where it is None.

    Any two sets of rates with equal capacities share one compilation.
    """
    stages, capacity = {}, patches
    for block, count in stage_counts(rates, patches=patches).items():
        if multiple is not None:
            capacity = min(capacity, math.ceil(count / multiple) * multiple)
        stages[block] = MaskedTopK(jnp.int32(count), capacity)
    return stages
