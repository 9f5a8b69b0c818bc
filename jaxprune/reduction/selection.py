"""Stages: how one block chooses among its patches, given their scores.

A stage is the reduction that keeps some tokens and drops the others, between attention and MLP. A `TopK` stage gathers
a number of patches fixed when the model is traced. `MaskedTopK` and `Within` keep a fixed capacity and mark the surplus
as dead, so that their counts may be traced values or come from the data.
"""

import abc
import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.tokens import Reduction, Tokens


@struct.dataclass
class Selection:
    """A stage's decision: `index` of the block's patches that go on, in their new order, and `alive`, the real ones.

    `alive` is None where every patch is real, which is a fact of the trace, not of the data.
    """

    index: Int[Array, "b k"]
    alive: Bool[Array, "b k"] | None


class Stage(Reduction, abc.ABC):
    """A block's choice among its patches, given their scores."""

    ranks = True

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The chosen tokens."""
        selection = self(seen.score, tokens.alive)
        return tokens if selection is None else tokens.select(selection.index, alive=selection.alive)

    @abc.abstractmethod
    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection | None:
        """The selection, or None to leave the tokens as they are."""

    @abc.abstractmethod
    def size(self, patches: int) -> int:
        """Patches that the following layers compute on, of `patches` entering: what the stage makes of the cost."""


@struct.dataclass
class TopK(Stage):
    """Keeps the `keep_count(rate, n)` best of n patches, ordered by falling score, then by lower index.

    A rate of 1 selects nothing and leaves the order alone, as the original does.
    """

    rate: float = struct.field(pytree_node=False)

    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection | None:
        if self.rate == 1:
            return None
        index = best(score, alive, self.size(score.shape[1]))
        return Selection(index, None if alive is None else jnp.take_along_axis(alive, index, axis=1))

    @property
    def idle(self) -> bool:
        return self.rate == 1

    def size(self, patches: int) -> int:
        return keep_count(self.rate, patches)


@struct.dataclass
class MaskedTopK(Stage):
    """`TopK` with a count that may be traced: `capacity` patches go on, of which the `count` best are alive.

    `count` is one number or one per clip, int32, at most `capacity`. Equals `TopK` of that count to float rounding,
    because a dead token neither gives nor receives attention nor enters a mean.
    """

    count: Int[Array, ""] | Int[Array, "b"]
    capacity: int = struct.field(pytree_node=False)

    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection:
        index = best(score, alive, self.capacity)
        chosen = jnp.broadcast_to(jnp.arange(self.capacity)[None] < jnp.reshape(self.count, (-1, 1)), index.shape)
        return Selection(index, chosen if alive is None else chosen & jnp.take_along_axis(alive, index, axis=1))

    def size(self, patches: int) -> int:
        return self.capacity


@struct.dataclass
class Within(Stage):
    """Keeps patches whose score lies strictly inside (low, high), in place: the intensity-range ablation with
    `PatchMean`.

    How many are left differs from clip to clip and may be none. `BlockTrace.alive` tells.
    """

    low: Float[Array, ""] | float
    high: Float[Array, ""] | float

    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection:
        inside = (score > self.low) & (score < self.high)
        index = jnp.broadcast_to(jnp.arange(score.shape[1]), score.shape)
        return Selection(index, inside if alive is None else inside & alive)

    def size(self, patches: int) -> int:
        return patches


def best(score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None, k: int) -> Int[Array, "b k"]:
    """Indices of the k highest scores, dead patches last."""
    # A sort, because each of several devices can sort its own clips: XLA gathers all clips for a top-k.
    score = jax.lax.stop_gradient(score if alive is None else jnp.where(alive, score, -jnp.inf))
    return jnp.argsort(-score, axis=1)[:, :k]  # stable: of equals the first, as top-k


def keep_count(rate: float, patches: int) -> int:
    """Patches kept, `ceil(rate * patches)` in Python floats, as the original counts: 0.55 of 100 gives 56.

    Raises `ValueError` for a rate outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"keep rate {rate!r} is not allowed; it must be greater than 0 and at most 1")
    return math.ceil(rate * patches)
