"""The transformer both models share: attention, MLP, block, and the encoder that prunes between a block's two halves.

It knows tokens `(b, s, d)` whose first p are extra tokens, and a policy; patches, position tables, pooling and heads
are `jaxprune.models`' matter. Parameters are float32; products run in the compute dtype, while the tokens that blocks
add to, norms, softmax and scores are float32 whatever that is.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxprune.config import ModelConfig
from jaxprune.ops.attention import attend
from jaxprune.ops.layers import GeluLinear, LayerNorm, Linear
from jaxprune.ops.xla_cpu import stored
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.selection import Selection


@struct.dataclass
class BlockTrace:
    """The patches that one block scored and kept.

    `score` `(b, n)` float32 is for the patches entering the block, `scored_ids` `(b, n)` says which original patches
    those are; `patch_ids` `(b, k)` are the original positions kept, in token order, and `alive` `(b, k)` which of them
    are real (all, unless a masked stage left surplus). `tokens` `(b, p + k, d)` leave the block, extra tokens first.
    """

    score: Float[Array, "b n"]
    scored_ids: Int[Array, "b n"]
    patch_ids: Int[Array, "b k"]
    alive: Bool[Array, "b k"]
    tokens: Float[Array, "b pk d"]


@struct.dataclass
class DropPath:
    """Stochastic depth: a clip skips a branch of a block, attention or MLP, at random (Huang et al. 2016).

    Block i of L drops with probability rate * i / (L - 1), so the first never does; a branch that stays is divided by
    the probability that it stays. Each clip and each branch is drawn on its own from `key`. A rate of 0, which may be
    traced, changes nothing.
    """

    key: Key[Array, ""]
    rate: Float[Array, ""] | float

    def shares(self, block: int, *, depth: int, clips: int) -> Float[Array, "2 {clips}"]:
        """Factors of a block's attention and MLP updates: 0, or 1 / (probability of staying)."""
        stay = 1 - self.rate * (block / max(depth - 1, 1))
        drawn = jax.random.bernoulli(jax.random.fold_in(self.key, block), stay, (2, clips))
        return drawn / jnp.float32(stay)


class Encoder(nnx.Module):
    """Pre-norm blocks, pruned between attention and MLP as the policy says."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.extra_tokens = config.extra_tokens
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])

    def __call__(
        self,
        tokens: Float[Array, "b s d"],
        policy: Policy,
        *,
        patch_ids: Int[Array, "b n"],
        patch_mean: Float[Array, "b n0"],
        patch_std: Float[Array, "b n0"],
        drop_path: DropPath | None = None,
    ) -> tuple[Float[Array, "b pk d"], Bool[Array, "b k"] | None, tuple[BlockTrace, ...]]:
        """Tokens after the last block, which of their patches are alive (None: all), and one trace a block.

        `patch_ids` says which original patch each token after the extra ones is; means and deviations are by original
        position. Order inside a pruning block: attention with its residual, then selection, then the MLP on the kept
        tokens. Raises `ValueError` if the policy names a block the encoder does not have.
        """
        if beyond := sorted(set(policy.stages) - set(range(len(self.blocks)))):
            raise ValueError(
                f"the policy prunes at blocks {beyond}, but the model has blocks 0 to {len(self.blocks) - 1}"
            )
        p = self.extra_tokens
        alive, trace = None, []
        for i, block in enumerate(self.blocks):
            attention_share = mlp_share = None
            if drop_path is not None:
                attention_share, mlp_share = drop_path.shares(i, depth=len(self.blocks), clips=tokens.shape[0])
            queries = policy.score.queries(p)
            tokens, received = block.attend(tokens, queries=queries, mask=token_mask(alive, p), share=attention_share)
            scored_ids = patch_ids
            score = policy.score(BlockSignals(received[:, p:], patch_ids, patch_mean, patch_std, i))
            selection = policy.stages[i](score, alive) if i in policy.stages else None
            if selection is not None:
                tokens, patch_ids, alive = select(tokens, patch_ids, selection, extra_tokens=p)
            tokens = block.feed_forward(tokens, share=mlp_share)
            is_alive = jnp.ones(patch_ids.shape, bool) if alive is None else alive
            trace.append(BlockTrace(score, scored_ids, patch_ids, is_alive, tokens))
        return tokens, alive, tuple(trace)


class Block(nnx.Module):
    """One pre-norm transformer block, offered as its two halves so that tokens can leave in between."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)

    def attend(
        self,
        tokens: Float[Array, "b s d"],
        *,
        queries: slice,
        mask: Bool[Array, "b s"] | None,
        share: Float[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s"]]:
        """First half: tokens after attention and residual, and the attention each token received from `queries`.

        `share` multiplies each clip's update (None: 1), as `DropPath` draws it.
        """
        update, received = self.attention(self.norm1(tokens), queries=queries, mask=mask)
        return stored(tokens + scaled(update, share)), received

    def feed_forward(
        self, tokens: Float[Array, "b s d"], *, share: Float[Array, "b"] | None = None
    ) -> Float[Array, "b s d"]:
        """Second half: tokens after the MLP and its residual. `share` as in `attend`."""
        return stored(tokens + scaled(self.mlp(self.norm2(tokens)), share))


class Attention(nnx.Module):
    """Multi-head self-attention with biased qkv, scale c ** -0.5."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.out = Linear(config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b s d"], *, queries: slice, mask: Bool[Array, "b s"] | None
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s"]]:
        mixed, received = attend(tokens, self.project, queries=queries, mask=mask)
        return self.out(rearrange(mixed, "b s h c -> b s (h c)"))[:, : tokens.shape[1]], received

    def project(self, tokens: Float[Array, "b s d"], roles: slice) -> Float[Array, "b s r h c"]:
        """The tokens as queries (role 0), keys (1) or values (2), or as several of them."""
        d = tokens.shape[-1]
        columns = slice(d * roles.start, d * roles.stop)
        return rearrange(self.qkv(tokens, columns), "b s (r h c) -> b s r h c", h=self.heads, c=d // self.heads)


class Mlp(nnx.Module):
    """Two linear layers around the exact GELU."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.fc1 = Linear(config.width, config.mlp_width, dtype=dtype, rngs=rngs)
        self.fc2 = GeluLinear(config.mlp_width, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.fc2(self.fc1(tokens))


def scaled(update: Float[Array, "b s d"], share: Float[Array, "b"] | None) -> Float[Array, "b s d"]:
    """Each clip's update times its share, float32; None leaves it alone."""
    return update if share is None else update * share[:, None, None]


def select(
    tokens: Float[Array, "b s d"], patch_ids: Int[Array, "b n"], selection: Selection, *, extra_tokens: int
) -> tuple[Float[Array, "b pk d"], Int[Array, "b k"], Bool[Array, "b k"] | None]:
    """Tokens and original positions of the selected patches, in the selection's order, extra tokens kept in front."""
    patches = jnp.take_along_axis(tokens[:, extra_tokens:], selection.index[:, :, None], axis=1)
    tokens = jnp.concatenate([tokens[:, :extra_tokens], patches], axis=1)
    return tokens, jnp.take_along_axis(patch_ids, selection.index, axis=1), selection.alive


def token_mask(alive: Bool[Array, "b n"] | None, extra_tokens: int) -> Bool[Array, "b s"] | None:
    """The patches' mask with the always-alive extra tokens in front."""
    return None if alive is None else jnp.pad(alive, ((0, 0), (extra_tokens, 0)), constant_values=True)
