"""ToMe (Bolya et al. 2023): the tokens of a block that are most alike become one.

`match` and `merge` are the two steps on plain arrays. `Merge` fixes its counts when the model is traced. `MaskedMerge`
has a fixed capacity, and its count may be traced.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.ops.xla_cpu import stored
from jaxprune.reduction import groups
from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.tokens import Reduction, Tokens


@struct.dataclass
class Merge(Reduction):
    """Merges `r` tokens into others, or as many as half of the patch tokens.

    Tokens are compared by the keys of the block's attention. A merged token is the mean of its members after attention,
    each at its weight. Weights add up. If `proportional`, the log of a token's weight is added to its logits as a key
    in all later blocks.
    """

    r: int = struct.field(pytree_node=False)
    proportional: bool = struct.field(pytree_node=False, default=True)

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The tokens that were not merged, then those that others could be merged into."""
        entering = tokens.patch_ids.shape[1]
        most = entering - self.size(entering)
        if most == 0:
            return tokens
        return merged(tokens, seen, r=most, most=most, proportional=self.proportional, capacity=entering - most)

    @property
    def idle(self) -> bool:
        """True where nothing is merged."""
        return self.r == 0

    def size(self, patches: int) -> int:
        """`patches` less r, or half of them."""
        return patches - min(self.r, patches // 2)

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """The comparisons, and the sums of the merged."""
        return _macs(patches, patches - self.size(patches), width=width, heads=heads, extra_tokens=extra_tokens)


@struct.dataclass
class MaskedMerge(Reduction):
    """`Merge` with a count that may be traced: at most `most` tokens are merged, and `capacity` go on.

    `r` is one number or one per clip, int32. Equals `Merge` of that r to float rounding. The tokens that are alive
    stand in front of the others.
    """

    r: Int[Array, ""] | Int[Array, "b"]
    most: int = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)
    proportional: bool = struct.field(pytree_node=False, default=True)

    def between(self, tokens: Tokens, seen: BlockSignals) -> Tokens:
        """The tokens that are left, then dead ones."""
        if tokens.alive is None:
            tokens = tokens.replace(alive=jnp.ones(tokens.patch_ids.shape, bool))
        return merged(tokens, seen, r=self.r, most=self.most, proportional=self.proportional, capacity=self.capacity)

    def size(self, patches: int) -> int:
        """The capacity."""
        return self.capacity

    def macs(self, patches: int, *, width: int, heads: int, extra_tokens: int) -> int:
        """The comparisons, and the sums of the merged."""
        return _macs(patches, self.most, width=width, heads=heads, extra_tokens=extra_tokens)


def _macs(patches: int, most: int, *, width: int, heads: int, extra_tokens: int) -> int:
    """Comparisons of every other token with those between, and the product that adds up the merged."""
    if most == 0:
        return 0
    tokens = patches + extra_tokens
    return (tokens + 1) // 2 * (tokens // 2) * (width // heads) + most * (tokens - most) * width


@struct.dataclass
class Matching:
    """A decision which tokens of `(b, s)` become one, so that `k` are left.

    `places` is where each goes: of tokens that become one, all to the same place. `kept` `(b, k)` are the tokens that
    were not merged into another, in their new order, and `sources` `(b, r)` those that were, of which only `merges`
    count. A token that is not alive has no place of meaning.
    """

    places: Int[Array, "b s"]
    kept: Int[Array, "b k"]
    sources: Int[Array, "b r"]
    merges: Bool[Array, "b r"]


def match(
    keys: Float[Array, "b s c"],
    *,
    r: int | Int[Array, ""] | Int[Array, "b"],
    extra_tokens: int,
    most: int,
    capacity: int,
    real: Int[Array, "b"] | None = None,
) -> Matching:
    """ToMe's bipartite soft matching (section 3), of tokens that begin with 0, 1 or 2 extra ones.

    Tokens at even positions are compared with those at odd ones by the cosine of their keys. The r best matched of them
    are merged, each into its most similar; equal ones by lower index. r is capped at half of the tokens that are not
    extra. Extra tokens neither merge nor are merged into, and stay in front. Order: the even ones that are left in
    rising position (without extra tokens in falling similarity, as in the original), then the odd ones.

    r is at most `most`, and `capacity` tokens go on. The first `real` tokens count (None: all).
    """
    b, s, _ = keys.shape
    real = jnp.full((1,), s) if real is None else real  # of every clip
    r = jnp.minimum(jnp.asarray(r), (real - extra_tokens) // 2)[:, None]  # b 1
    similarity = _similarity(jax.lax.stop_gradient(keys), extra_tokens=extra_tokens, real=real)
    _, even, odd = similarity.shape
    rank = _rank(similarity.max(axis=2))

    left = (rank >= r) & (2 * jnp.arange(even)[None] < real[:, None])  # even ones that are not merged
    of_even = jnp.cumsum(left, axis=1) - 1 if extra_tokens else rank - r
    of_odd = left.sum(axis=1, keepdims=True) + jnp.arange(odd)[None]
    if extra_tokens == 2:  # the second is the first odd one; it moves up behind the first
        of_even = of_even + (jnp.arange(even)[None] > 0)
        of_odd = jnp.where(jnp.arange(odd)[None] == 0, 1, of_odd)
    of_even = jnp.where(rank < r, jnp.take_along_axis(of_odd, similarity.argmax(axis=2), axis=1), of_even)

    places = jnp.where(r > 0, _alternating(of_even, of_odd), jnp.arange(s)[None])
    stays = _alternating(left, 2 * jnp.arange(odd)[None] + 1 < real[:, None])
    kept = _inverse(jnp.where(stays, places, s), length=capacity)
    return Matching(
        places, kept, 2 * _inverse(rank, length=most), jnp.broadcast_to(jnp.arange(most)[None] < r, (b, most))
    )


def _rank(values: Float[Array, "b n"]) -> Int[Array, "b n"]:
    """Each value's place in falling order. Of equals the first comes first.

    Every two are compared. For some hundreds that is quick, and XLA takes long to compile a sort.
    """
    n = values.shape[1]
    before = jnp.arange(n)[None, :] < jnp.arange(n)[:, None]
    mine, other = values[:, :, None], values[:, None, :]
    return ((other > mine) | ((other == mine) & before[None])).sum(axis=2)


def _inverse(places: Int[Array, "b s"], *, length: int) -> Int[Array, "b {length}"]:
    """The index that has each place from 0 on, or 0 if none has. Places beyond the length are left out."""
    index = jnp.broadcast_to(jnp.arange(places.shape[1]), places.shape)
    nothing = jnp.zeros((places.shape[0], length), index.dtype)
    return jax.vmap(lambda row, at, index: row.at[at].set(index, mode="drop"))(nothing, places, index)


def _similarity(keys: Float[Array, "b s c"], *, extra_tokens: int, real: Int[Array, "_"]) -> Float[Array, "b even odd"]:
    """Cosines of even and odd tokens, minus infinity for the extra tokens and those that do not count."""
    unit = keys / jnp.sqrt(jnp.maximum(jnp.square(keys).sum(axis=2, keepdims=True), jnp.finfo(keys.dtype).tiny))
    even, odd = unit[:, ::2], unit[:, 1::2]
    places = jnp.arange(keys.shape[1])[None]
    counts = (places >= extra_tokens) & (places < real[:, None])  # b s
    found = jnp.einsum("bic,bjc->bij", even, odd, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(counts[:, ::2, None] & counts[:, None, 1::2], found, -jnp.inf)


def _alternating(of_even: Array, of_odd: Array) -> Array:
    """Values of even and odd tokens in the tokens' order."""
    b, even = of_even.shape
    of_odd = jnp.broadcast_to(of_odd, (b, of_odd.shape[1]))
    both = jnp.stack([of_even, jnp.pad(of_odd, ((0, 0), (0, even - of_odd.shape[1])))], axis=2)
    return both.reshape(b, 2 * even)[:, : even + of_odd.shape[1]]


def merge(
    values: Float[Array, "b s d"], weights: Float[Array, "b s"], matching: Matching
) -> tuple[Float[Array, "b k d"], Float[Array, "b k"]]:
    """The mean of every token's members, each at its weight, and the sums of their weights."""

    def taken(x, index):
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1 for _ in x.shape[2:])), axis=1)

    # A product with zeros and ones, because a GPU adds scattered rows in an order of its own.
    places = jnp.take_along_axis(matching.places, matching.sources, axis=1)
    joins = (places[:, :, None] == jnp.arange(matching.kept.shape[1])[None, None]) & matching.merges[:, :, None]
    exact = jax.lax.Precision.HIGHEST
    joins, merged = joins.astype(values.dtype), taken(weights, matching.sources)
    totals = taken(weights, matching.kept)
    sums = taken(values, matching.kept) * totals[:, :, None]
    totals = totals + jnp.einsum("brk,br->bk", joins, merged, precision=exact)
    gone = taken(values, matching.sources) * merged[:, :, None]
    sums = sums + jnp.einsum("brk,brd->bkd", joins, gone, precision=exact)
    return sums / totals[:, :, None], totals


def merged(
    tokens: Tokens,
    seen: BlockSignals,
    *,
    r: int | Int[Array, ""] | Int[Array, "b"],
    most: int,
    capacity: int,
    proportional: bool,
) -> Tokens:
    """The tokens after `r` of them were matched and merged. Of masked tokens, dead ones go to the end."""
    if seen.keys is None or tokens.decision is not None:
        raise ValueError(
            "merging compares the keys of the block's attention, which this policy hides; merge between attention and "
            "MLP, and not where predictors are trained"
        )
    p, real, alive = tokens.extra_tokens, None, tokens.alive
    if alive is not None:
        order = jnp.argsort(~alive, axis=1)
        tokens = tokens.select(order, alive=jnp.take_along_axis(alive, order, axis=1))
        seen = seen.select(order, held=tokens.held, extra_tokens=p)
        real = p + alive.sum(axis=1)
    matching = match(seen.keys(), r=r, extra_tokens=p, most=most, capacity=p + capacity, real=real)
    if alive is not None:
        alive = jnp.arange(capacity)[None] < (real - p - matching.merges.sum(axis=1))[:, None]
    return joined(tokens, matching, alive=alive, proportional=proportional, patches=seen.patch_mean.shape[1])


def joined(
    tokens: Tokens, matching: Matching, *, alive: Bool[Array, "b k"] | None, proportional: bool, patches: int
) -> Tokens:
    """The tokens as a matching of all, extra ones included, leaves them. The model has so many `patches`."""
    p = tokens.extra_tokens
    weights = jnp.ones(tokens.patch_ids.shape) if tokens.weights is None else tokens.weights
    values, totals = merge(tokens.values, tokens.of_all(weights, extra=1), matching)
    places, kept, totals = matching.places[:, p:] - p, matching.kept[:, p:] - p, totals[:, p:]
    if tokens.alive is not None:
        places = jnp.where(tokens.alive, places, -1)
    left = tokens.replace(weights=weights).select(kept, alive=alive)
    return left.replace(
        values=stored(values),
        patch_ids=jnp.where(totals == left.weights, left.patch_ids, -1),
        held=groups.moved(tokens.groups(patches), places),
        weights=totals,
        key_bias=jnp.log(totals) if proportional else left.key_bias,
    )


def schedule(r: int | tuple[int, float] | Sequence[int], *, depth: int) -> tuple[int, ...]:
    """The tokens to merge in each block, as ToMe counts them.

    One number is for every block. A pair is (r, inflection): from r (1 - inflection) in the first block in a straight
    line to r (1 + inflection) in the last, rounded down; -1 goes from 2 r to 0. A list has one number a block, and 0
    for the blocks after it. Raises `ValueError` for a number below 0, an inflection outside [-1, 1] and a longer list.
    """
    if isinstance(r, tuple) and len(r) == 2:
        mean, inflection = r
        _check(mean)
        if not -1 <= inflection <= 1:
            raise ValueError(f"the inflection is {inflection}; it must be from -1 (falling) to 1 (rising)")
        first = int(mean * (1 - inflection))
        step = (2 * mean - 2 * first) / max(depth - 1, 1)
        return tuple(int(first + step * block) for block in range(depth))
    counts = list(r) if isinstance(r, Sequence) else [r] * depth
    for count in counts:
        _check(count)
    if len(counts) > depth:
        raise ValueError(f"r has {len(counts)} numbers, but the model has {depth} blocks; give at most one a block")
    return (*counts, *(0 for _ in range(depth - len(counts))))


def _check(r: int) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or r < 0:
        raise ValueError(f"r is {r!r}; it must be a whole number of tokens, 0 or more")
