"""Which patches stay: scores, stages and the policy that joins them.

A `Policy` says what a patch is worth (a score) and, for some blocks, how many survive (a stage). Scores and stages are
small pytrees that a caller passes in; a new one is one small class. Sizes are visible: a `TopK` stage gathers a number
of patches fixed when the model is traced, `MaskedTopK` and `Within` keep a fixed capacity and mark the surplus as dead,
so that their counts may be traced values or come from the data. Running the blocks is `jaxprune.vit`'s matter.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

DEFAULT_BLOCKS = (3, 6, 9)  # 0-based, as published


@struct.dataclass
class Evidence:
    """What a score may look at in one block. Unread fields cost nothing under jit.

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
    """What a patch is worth in a block: higher stays longer."""

    def queries(self, extra_tokens: int) -> slice:
        """Rows of the attention matrix that `Evidence.received` averages over. Masked tokens in it are left out."""
        return slice(extra_tokens, None)

    @abc.abstractmethod
    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        """One number for each patch, float32."""


@struct.dataclass
class ClsAttention(Score):
    """Attention that the CLS query pays, mean over heads: the pruned AST's score (Lee & Lee 2025; EViT)."""

    def queries(self, extra_tokens: int) -> slice:
        return slice(0, 1)

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        return evidence.received


@struct.dataclass
class ReceivedAttention(Score):
    """Attention received from the patch queries, mean over heads: the pruned AudioMAE's score (Lee & Lee 2025)."""

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        return evidence.received


@struct.dataclass
class PatchMean(Score):
    """Mean of the normalised spectrogram over the patch: rank by intensity (the paper's ablation)."""

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        return evidence.of_patches(evidence.patch_mean)


@struct.dataclass
class PatchStd(Score):
    """Standard deviation (ddof = 1) of the patch's pixels: rank by variation (the paper's ablation)."""

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        return evidence.of_patches(evidence.patch_std)


@struct.dataclass
class Random(Score):
    """Uniform noise, drawn anew in every block from `key`: the baseline any score must beat."""

    key: Key[Array, ""] | Int[Array, "2"]

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        key = jax.random.fold_in(self.key, evidence.block)
        return evidence.of_patches(jax.random.uniform(key, evidence.patch_mean.shape))


@struct.dataclass
class RandomByClip(Score):
    """`Random` with a key for each clip, so that what a clip gets does not depend on which others share its batch."""

    keys: Key[Array, "b"]

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        patches = evidence.patch_mean.shape[1]
        drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, evidence.block), (patches,)))
        return evidence.of_patches(drawn(self.keys))


@struct.dataclass
class Opposite(Score):
    """Another score upside down: what it values least stays longest. Of equal scores the lower index still comes
    first."""

    score: Score

    def queries(self, extra_tokens: int) -> slice:
        return self.score.queries(extra_tokens)

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        return -self.score(evidence)


@struct.dataclass
class Given(Score):
    """Values by original position, the same for every block `(b, n0)` or one set a block `(blocks, b, n0)`.

    Ranks, another model's scores, or kept sets to be forced (1 to keep, 0 to drop). New values do not retrace.
    """

    values: Float[Array, "b n0"] | Float[Array, "blocks b n0"]

    def __call__(self, evidence: Evidence) -> Float[Array, "b n"]:
        values = jnp.asarray(self.values, jnp.float32)
        return evidence.of_patches(values if values.ndim == 2 else values[evidence.block])


@struct.dataclass
class Selection:
    """What a stage decided: `index` of the block's patches to go on, in their new order, and which of them are alive.

    `alive` is None where every patch is real, which is a fact of the trace, not of the data.
    """

    index: Int[Array, "b k"]
    alive: Bool[Array, "b k"] | None


class Stage(abc.ABC):
    """How one block chooses among its patches, given their scores."""

    @abc.abstractmethod
    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection | None:
        """The selection, or None to leave the tokens as they are."""

    @abc.abstractmethod
    def size(self, patches: int) -> int:
        """Patches that the following layers compute on, of `patches` entering: what the stage makes of the cost."""


@struct.dataclass
class TopK(Stage):
    """Keeps the `keep_count(rate, n)` best of n patches, ordered by falling score; equal scores by lower index.

    A rate of 1 selects nothing and leaves the order alone, as the original does.
    """

    rate: float = struct.field(pytree_node=False)

    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection | None:
        if self.rate == 1:
            return None
        index = best(score, alive, self.size(score.shape[1]))
        return Selection(index, None if alive is None else jnp.take_along_axis(alive, index, axis=1))

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

    How many are left differs from clip to clip and may be none; `BlockTrace.alive` tells.
    """

    low: Float[Array, ""] | float
    high: Float[Array, ""] | float

    def __call__(self, score: Float[Array, "b n"], alive: Bool[Array, "b n"] | None) -> Selection:
        inside = (score > self.low) & (score < self.high)
        index = jnp.broadcast_to(jnp.arange(score.shape[1]), score.shape)
        return Selection(index, inside if alive is None else inside & alive)

    def size(self, patches: int) -> int:
        return patches


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Policy:
    """A score and the blocks that prune by it, `{0-based block: stage}`.

    A pytree, so it goes through `jax.jit` as it is: one compilation for each combination of types, static rates and
    capacities, none for new counts, keys or values.
    """

    score: Score
    stages: dict[int, Stage]

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ("score", "stages")]
        return children, (_types(self.score), tuple(map(_types, self.stages.values())))

    @classmethod
    def tree_unflatten(cls, types: Any, children: Any) -> "Policy":
        return cls(*children)


def _types(value: Any) -> Any:
    """The types in a score or stage, for JAX to tell policies apart by.

    jax 0.10.2 takes two dataclasses of the same fields for equal, whatever their types. A jitted function then answers
    for one score with the program of another, now and then, as the hashes fall.
    """
    if not dataclasses.is_dataclass(value):
        return None
    return type(value), tuple(_types(getattr(value, field.name)) for field in dataclasses.fields(value))


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


def stage_rates(keep_rate: float | Mapping[int, float], *, depth: int) -> dict[int, float]:
    """One rate for the published blocks 3, 6 and 9, or a mapping from 0-based block to rate, checked and sorted by
    block.

    Raises `ValueError` for a rate outside (0, 1] or a block the model does not have.
    """
    rates = dict(keep_rate) if isinstance(keep_rate, Mapping) else dict.fromkeys(DEFAULT_BLOCKS, keep_rate)
    for block, rate in rates.items():
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth:
            raise ValueError(
                f"block {block!r} cannot prune: the model's blocks are 0 to {depth - 1}; name some of those"
            )
        keep_count(rate, 1)
    return {block: float(rates[block]) for block in sorted(rates)}


def stage_counts(rates: Mapping[int, float], *, patches: int) -> dict[int, int]:
    """Patches alive after each pruning block, one stage's rounding feeding the next, block by block in rising order."""
    counts = {}
    for block in sorted(rates):
        patches = counts[block] = keep_count(rates[block], patches)
    return counts


def top_k_stages(rates: Mapping[int, float]) -> dict[int, Stage]:
    """Exact gathering at static rates."""
    return {block: TopK(float(rate)) for block, rate in rates.items()}


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
