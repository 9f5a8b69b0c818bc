"""Average pooling of neighbours: the plainest reduction, which decides nothing."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxprune.reduction.merging import Matching, joined
from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.tokens import Reduction, Tokens


@struct.dataclass
class PoolTime(Reduction):
    """Makes one token of every two that follow each other in time, in each band: half the tokens.

    `grid` are the tokens in (time, frequency) that enter, in the order in which `fastest` changes from one to the next.
    Of an odd number in time the last stays alone. Members count at their weights. `proportional` is as in `Merge`.
    Raises `ValueError` for tokens that do not fill the grid.
    """

    grid: tuple[int, int] = struct.field(pytree_node=False)
    fastest: str = struct.field(pytree_node=False)
    proportional: bool = struct.field(pytree_node=False, default=True)

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The pooled tokens, in the order of the grid."""
        b, n = tokens.patch_ids.shape
        if n != self.grid[0] * self.grid[1] or tokens.alive is not None:
            raise ValueError(
                f"pooling reads a whole grid of {self.grid[0]} x {self.grid[1]} tokens, but {n} enter the block; "
                "pool before anything is pruned, and without masked patches"
            )
        return joined(
            tokens,
            self._matching(b, extra_tokens=tokens.extra_tokens),
            alive=None,
            proportional=self.proportional,
            patches=seen.patch_mean.shape[1],
        )

    def size(self, patches: int) -> int:
        """The tokens of the smaller grid."""
        return -(-self.grid[0] // 2) * self.grid[1]

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """The product that adds up pairs."""
        left = self.size(patches)
        return (patches - left) * (left + extra_tokens) * width

    def _matching(self, clips: Any, *, extra_tokens: int) -> Matching:
        """Every second token in time goes to the one before. `clips` is a number, or the symbol of a free one."""
        time, freq = (x.ravel() for x in np.indices(self.grid)[:, ...])
        if self.fastest == "time":
            time, freq = (x.reshape(self.grid).T.ravel() for x in (time, freq))
        half = -(-self.grid[0] // 2)
        place = time // 2 * self.grid[1] + freq if self.fastest == "frequency" else freq * half + time // 2
        first = time % 2 == 0
        extra = np.arange(extra_tokens)
        kept, sources = (extra_tokens + np.flatnonzero(one) for one in (first, ~first))
        places, kept = (np.concatenate([extra, x]) for x in (extra_tokens + place, kept))
        of_clips = [jnp.broadcast_to(jnp.asarray(x, jnp.int32), (clips, len(x))) for x in (places, kept, sources)]
        return Matching(*of_clips, jnp.ones((clips, len(sources)), bool))
