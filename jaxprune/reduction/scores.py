"""Scores: the worth of a patch in a block.

A score is a small pytree that a caller passes in; a new one is one small class. `Policy` joins it with stages.
"""

import abc

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key


@struct.dataclass
class BlockSignals:
    """The measurements of one block that a score may read. Unread ones cost nothing under jit.

    `received` is the attention each patch received in this block, averaged over heads and over the queries the score
    asked for. `patch_mean` and `patch_std` are of the input's pixels (ddof = 1), in original positions; `patch_ids`
    says which original patch each of the block's patches is.
    """

    received: Float[Array, "b n"]
    patch_ids: Int[Array, "b n"]
    patch_mean: Float[Array, "b n0"]
    patch_std: Float[Array, "b n0"]
    block: int = struct.field(pytree_node=False)

    def of_patches(self, values: Float[Array, "b n0"]) -> Float[Array, "b n"]:
        """Values given by original position, for the patches that are in this block."""
        return jnp.take_along_axis(values, self.patch_ids, axis=1)


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
        return signals.of_patches(jax.random.uniform(key, signals.patch_mean.shape))


@struct.dataclass
class RandomByClip(Score):
    """`Random` with a key for each clip, so that what a clip gets does not depend on which others share its batch."""

    keys: Key[Array, "b"]

    def __call__(self, signals: BlockSignals) -> Float[Array, "b n"]:
        patches = signals.patch_mean.shape[1]
        drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, signals.block), (patches,)))
        return signals.of_patches(drawn(self.keys))


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
