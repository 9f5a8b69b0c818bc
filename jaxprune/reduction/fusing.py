"""EViT (Liang et al. 2022): the tokens that a block would drop live on as one.

`Fuse` fixes its counts when the model is traced. `MaskedFuse` has a fixed capacity, and its count may be traced.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from jaxprune.reduction import groups
from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.selection import MaskedTopK, Selection, TopK, keep_count
from jaxprune.reduction.tokens import Reduction, Tokens


@struct.dataclass
class Fuse(Reduction):
    """Keeps the `keep_count(rate, n)` best of n patch tokens, and fuses the others into one that stands last.

    The fused token is the sum of the others after attention, each times the attention that it received from the score's
    queries. As in the original, these weights are not divided by their sum. From there on it is a patch token like any
    other: it is counted, has a score, and may be kept or fused again. In means it counts for one token. Kept tokens
    stand in the order of falling score. Where all are kept nothing changes.
    """

    ranks: ClassVar[bool] = True
    rate: float = struct.field(pytree_node=False)

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The kept tokens, then the fused one."""
        selection = TopK(self.rate)(seen.score, tokens.alive)
        if selection is None or selection.index.shape == seen.score.shape:
            return tokens
        return fused(tokens, seen, selection)

    @property
    def idle(self) -> bool:
        """True at rate 1."""
        return self.rate == 1

    def size(self, patches: int) -> int:
        """The kept tokens and the fused one."""
        kept = keep_count(self.rate, patches)
        return kept if kept == patches else kept + 1

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """The weighted sum."""
        return 0 if keep_count(self.rate, patches) == patches else patches * width


@struct.dataclass
class MaskedFuse(Reduction):
    """`Fuse` with a count that may be traced: `capacity` tokens and the fused one go on, `count` of the first alive.

    `count` is one number or one per clip, int32, at most `capacity`. The fused token is dead where no token is left for
    it. Equals `Fuse` of that count to float rounding.
    """

    ranks: ClassVar[bool] = True
    count: Int[Array, ""] | Int[Array, "b"]
    capacity: int = struct.field(pytree_node=False)

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The kept tokens and the surplus, then the fused one."""
        return fused(tokens, seen, MaskedTopK(self.count, self.capacity)(seen.score, tokens.alive))

    def size(self, patches: int) -> int:
        """The capacity and the fused token."""
        return self.capacity + 1

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """The weighted sum."""
        return patches * width


def fused(tokens: Tokens, seen: BlockSignals, selection: Selection) -> Tokens:
    """The selected tokens, then one made of all others that are alive."""
    b, n = tokens.patch_ids.shape
    places = groups.of_positions(selection.index, selection.alive, patches=n)
    others = places < 0 if tokens.alive is None else (places < 0) & tokens.alive
    share = jnp.where(others, seen.received, 0)
    value = jnp.einsum("bn,bnd->bd", share, tokens.patches, precision=jax.lax.Precision.HIGHEST)
    kept = tokens.select(selection.index, alive=selection.alive)
    count = selection.index.shape[1]

    def followed_by(x, last):
        return None if x is None else jnp.concatenate([x, jnp.broadcast_to(last, (b, 1)).astype(x.dtype)], axis=1)

    return kept.replace(
        values=jnp.concatenate([kept.values, value[:, None]], axis=1),
        patch_ids=followed_by(kept.patch_ids, -1),
        alive=followed_by(kept.alive, others.any(axis=1, keepdims=True)),
        held=groups.moved(tokens.groups(seen.patch_mean.shape[1]), jnp.where(others, count, places)),
        weights=followed_by(kept.weights, 1),
        key_bias=followed_by(kept.key_bias, 0),
        decision=followed_by(kept.decision, 1),
    )
