"""Scores: the worth of a patch in a block.

A score is a small pytree that a caller passes in. A new one is one small class. `Policy` joins it with stages.
"""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxprune.reduction import groups


@struct.dataclass
class BlockSignals:
    """The measurements of one block that a score or a reduction may read. Unread ones cost nothing under jit.

    `received` is the attention each patch received in this block, averaged over heads and over the queries the score
    asked for. `patch_mean` and `patch_std` are of the input's pixels (ddof = 1), in original positions; `patch_ids`
    says which original patch each of the block's patches is. `held` is as in `jaxprune.reduction.tokens.Tokens`: None
    while every token is one patch. A reduction finds `score`, the policy's, and `keys()`, the block's keys `(b, s, c)`
    of all tokens, extra ones first, averaged over heads, float32.
    """

    received: Float[Array, "b n"]
    patch_ids: Int[Array, "b n"]
    patch_mean: Float[Array, "b n0"]
    patch_std: Float[Array, "b n0"]
    block: int = struct.field(pytree_node=False)
    held: Int[Array, "b n0"] | None = None
    score: Float[Array, "b n"] | None = None
    keys: Callable[[], Float[Array, "b s c"]] | None = struct.field(pytree_node=False, default=None)

    def of_patches(self, values: Float[Array, "b n0"]) -> Float[Array, "b n"]:
        """Values given by original position, for the tokens in this block. One that holds several has their mean."""
        if self.held is None:
            return jnp.take_along_axis(values, self.patch_ids, axis=1)
        tokens = self.patch_ids.shape[1]
        count = jnp.maximum(groups.sizes(self.held, tokens=tokens), 1)
        return groups.sums(values, self.held, tokens=tokens) / count

    def of_first_patches(self, values: Float[Array, "b n0"]) -> Float[Array, "b n"]:
        """`of_patches`, but a token that holds several patches has the value of the lowest."""
        if self.held is None:
            return self.of_patches(values)
        return jnp.take_along_axis(values, groups.first_patches(self.held, tokens=self.patch_ids.shape[1]), axis=1)

    def select(self, index: Int[Array, "b k"], *, held: Int[Array, "b n0"] | None, extra_tokens: int) -> "BlockSignals":
        """The signals of the patches at `index`. `held` is theirs, and the keys keep the extra tokens in front."""

        def keys() -> Float[Array, "b s c"]:
            extra, patches = jnp.split(self.keys(), [extra_tokens], axis=1)
            return jnp.concatenate([extra, jnp.take_along_axis(patches, index[:, :, None], axis=1)], axis=1)

        def taken(x):
            return None if x is None else jnp.take_along_axis(x, index, axis=1)

        return self.replace(
            received=taken(self.received),
            patch_ids=taken(self.patch_ids),
            score=taken(self.score),
            held=held,
            keys=None if self.keys is None else keys,
        )


class Score(abc.ABC):
    """The worth of a patch in a block: higher stays longer."""

    def queries(self, extra_tokens: int) -> slice:
        """Rows of the attention matrix that `BlockSignals.received` averages over. Masked tokens in it are left out."""
        return slice(extra_tokens, None)

    @abc.abstractmethod
    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        """One number for each patch, float32."""


@struct.dataclass
class ClsAttention(Score):
    """Attention that the CLS query pays, mean over heads: the pruned AST's score (Lee & Lee 2025; EViT)."""

    def queries(self, extra_tokens: int) -> slice:
        return slice(0, 1)

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        return signals.received


@struct.dataclass
class ReceivedAttention(Score):
    """Attention received from the patch queries, mean over heads: the pruned AudioMAE's score (Lee & Lee 2025)."""

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        return signals.received


@struct.dataclass
class PatchMean(Score):
    """Mean of the normalised spectrogram over the patch: rank by intensity (the paper's ablation)."""

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        return signals.of_patches(signals.patch_mean)


@struct.dataclass
class PatchStd(Score):
    """Standard deviation (ddof = 1) of the patch's pixels: rank by variation (the paper's ablation)."""

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        return signals.of_patches(signals.patch_std)


@struct.dataclass
class Random(Score):
    """Uniform noise, drawn anew in every block from `key`: the baseline any score must beat."""

    key: Key[Array, ""] | Int[Array, "2"]

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        key = jax.random.fold_in(self.key, signals.block)
        return signals.of_first_patches(jax.random.uniform(key, signals.patch_mean.shape))


@struct.dataclass
class RandomByClip(Score):
    """`Random` with a key for each clip, so that what a clip gets does not depend on which others share its batch."""

    keys: Key[Array, "b"]

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        patches = signals.patch_mean.shape[1]
        drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, signals.block), (patches,)))
        return signals.of_first_patches(drawn(self.keys))


@struct.dataclass
class Lattice(Score):
    """A fixed order of places: `values` by original position, the same for every clip."""

    values: Float[Array, "n0"]

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        return signals.of_first_patches(jnp.broadcast_to(self.values, signals.patch_mean.shape))


@struct.dataclass
class Opposite(Score):
    """Another score upside down. Of equal scores the lower index still comes first."""

    score: Score

    def queries(self, extra_tokens: int) -> slice:
        return self.score.queries(extra_tokens)

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        return -self.score(signals)


@struct.dataclass
class Given(Score):
    """Values by original position, the same for every block `(b, n0)` or one set a block `(blocks, b, n0)`.

    Ranks, another model's scores, or kept sets to be forced (1 to keep, 0 to drop). New values do not retrace.
    """

    values: Float[Array, "b n0"] | Float[Array, "blocks b n0"]

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        values = jnp.asarray(self.values, jnp.float32)
        return signals.of_patches(values if values.ndim == 2 else values[signals.block])
