"""DynamicViT's reductions, which a learned predictor decides before a block's attention (Rao et al. 2021).

At inference a fixed number of patches stays (`Predicted`). In training all stay, and a decision drawn for each says how
much the others attend to it (`Undecided`, then `Drawn` at every stage). The network is in
`jaxprune.reduction.predictors`, the attention that reads the decision in `jaxprune.ops.attention_weighted`.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxprune.reduction.predictors import KEEP, Predictor, predictor_macs, straight_through
from jaxprune.reduction.selection import best
from jaxprune.reduction.tokens import Reduction, Tokens


@struct.dataclass
class Counted(Reduction):
    """The cost of a learned choice of `count` patches, of which `Predicted` makes the choice."""

    count: int = struct.field(pytree_node=False)

    def size_before(self, patches: int) -> int:
        return min(self.count, patches)

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        return predictor_macs(width, patches)


@struct.dataclass
class Predicted(Counted):
    """Keeps the `count` patches that the predictor gives the highest probability, in falling order.

    Fewer where a block has no more. The block's attention sees only them.
    """

    predictor: Predictor

    def before(self, tokens: Tokens) -> Tokens:
        shape = tokens.patch_ids.shape
        left = jnp.ones(shape, jnp.float32) if tokens.alive is None else tokens.alive.astype(jnp.float32)
        score = self.predictor(tokens.patches, left)[..., KEEP]
        index = best(score, tokens.alive, self.size_before(shape[1]))
        alive = None if tokens.alive is None else jnp.take_along_axis(tokens.alive, index, axis=1)
        return tokens.select(index, alive=alive)


@struct.dataclass
class Undecided(Reduction):
    """The beginning of training's way: a decision of 1 for every patch. From here on attention reads decisions.

    The original sends blocks before the first stage through the same softmax, though nothing is decided there.
    """

    def before(self, tokens: Tokens) -> Tokens:
        return tokens.replace(decision=jnp.ones(tokens.patch_ids.shape, jnp.float32))


@struct.dataclass
class Drawn(Reduction):
    """A stage in training: every patch that is left stays or is dropped at random, by its probability.

    `noise` is Gumbel noise for the two log-probabilities. A dropped patch never returns. Means over patches count a
    patch by its decision, through which they get no gradient. `predictor_macs` are counted, and all patches computed.
    """

    predictor: Predictor
    noise: Float[Array, "b n 2"]

    def before(self, tokens: Tokens) -> Tokens:
        previous = tokens.decision
        previous = jnp.ones(tokens.patch_ids.shape, jnp.float32) if previous is None else previous
        logits = self.predictor(tokens.patches, previous) + self.noise
        decision = straight_through(logits) * previous
        return tokens.replace(decision=decision, weights=jax.lax.stop_gradient(decision))

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        return predictor_macs(width, patches)
