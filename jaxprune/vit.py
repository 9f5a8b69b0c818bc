"""The transformer both models share: attention, MLP, block, and the encoder that asks a policy for fewer tokens.

It knows `Tokens`, whose first p are extra tokens, and a policy; patches, position tables, pooling and heads are
`jaxprune.models`' matter. Parameters are float32; products run in the compute dtype, while the tokens that blocks
add to, norms, softmax and scores are float32 whatever that is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxprune.config import ModelConfig
from jaxprune.ops.attention import attend, mean_keys
from jaxprune.ops.layers import GeluLinear, LayerNorm, Linear
from jaxprune.ops.xla_cpu import stored
from jaxprune.reduction import groups
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.scores import BlockSignals
from jaxprune.reduction.tokens import UNCHANGED, Tokens


@struct.dataclass
class BlockTrace:
    """The patch tokens that one block scored, and those that left it.

    `score` `(b, n)` float32 is for the tokens in the block's attention, `scored_ids` `(b, n)` says which original
    patches those are; `patch_ids` `(b, k)` are the original positions that left, in token order, -1 for a token made
    from several, and `alive` `(b, k)` which of them are real (all, unless a masked stage left surplus). `tokens`
    `(b, p + k, d)` leave the block, extra tokens first. `held` is None while every token is one of `patches`; read
    `groups`. `decision` `(b, k)` is DynamicViT's in training, else None.
    """

    score: Float[Array, "b n"]
    scored_ids: Int[Array, "b n"]
    patch_ids: Int[Array, "b k"]
    alive: Bool[Array, "b k"]
    tokens: Float[Array, "b pk d"]
    held: Int[Array, "b n0"] | None = None
    decision: Float[Array, "b k"] | None = None
    patches: int = struct.field(pytree_node=False, default=0)

    @property
    def groups(self) -> Int[Array, "b n0"]:
        """The patch token that holds each original patch, int32, counted without the extra tokens; -1 for none."""
        if self.held is not None:
            return self.held
        return groups.of_positions(self.patch_ids, self.alive, patches=self.patches)

    @property
    def sizes(self) -> Int[Array, "b k"]:
        """The number of original patches in each token, int32; 0 for a dead one."""
        return groups.sizes(self.groups, tokens=self.patch_ids.shape[1])


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
    """Pre-norm blocks. The policy reduces tokens before a block's attention, or between its attention and MLP."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.extra_tokens = config.extra_tokens
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])

    def __call__(
        self,
        tokens: Tokens,
        policy: Policy,
        *,
        patch_mean: Float[Array, "b n0"],
        patch_std: Float[Array, "b n0"],
        drop_path: DropPath | None = None,
    ) -> tuple[Tokens, tuple[BlockTrace, ...]]:
        """The tokens after the last block, and one trace a block.

        Means and deviations are of the input's patches, by original position. Raises `ValueError` if the policy names
        a block the encoder does not have.
        """
        if beyond := sorted(set(policy.stages) - set(range(len(self.blocks)))):
            raise ValueError(
                f"the policy prunes at blocks {beyond}, but the model has blocks 0 to {len(self.blocks) - 1}"
            )
        p, patches, trace = self.extra_tokens, patch_mean.shape[1], []
        for i, block in enumerate(self.blocks):
            attention_share = mlp_share = None
            if drop_path is not None:
                attention_share, mlp_share = drop_path.shares(i, depth=len(self.blocks), clips=len(tokens.values))
            reduction = policy.stages.get(i, UNCHANGED)
            entering = tokens = reduction.before(tokens)
            values, received = block.attend(
                tokens.values,
                queries=policy.score.queries(p),
                mask=tokens.of_all(tokens.alive, extra=True),
                bias=tokens.of_all(tokens.key_bias, extra=0),
                decision=tokens.of_all(tokens.decision, extra=1),
                share=attention_share,
            )
            keys = functools.partial(block.mean_keys, tokens.values)
            seen = BlockSignals(
                received[:, p:], tokens.patch_ids, patch_mean, patch_std, i, held=tokens.held, keys=keys
            )
            score = policy.score(seen)
            tokens = reduction.between(tokens.replace(values=values), seen.replace(score=score))
            tokens = tokens.replace(values=block.feed_forward(tokens.values, share=mlp_share))
            alive = jnp.ones(tokens.patch_ids.shape, bool) if tokens.alive is None else tokens.alive
            trace.append(
                BlockTrace(
                    score,
                    entering.patch_ids,
                    tokens.patch_ids,
                    alive,
                    tokens.values,
                    held=tokens.held,
                    decision=tokens.decision,
                    patches=patches,
                )
            )
        return tokens, tuple(trace)


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
        bias: Float[Array, "b s"] | None = None,
        decision: Float[Array, "b s"] | None = None,
        share: Float[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s"]]:
        """First half: tokens after attention and residual, and the attention each token received from `queries`.

        `mask`, `bias` and `decision` are of the tokens as keys. `share` multiplies each clip's update (None: 1), as
        `DropPath` draws it.
        """
        update, received = self.attention(self.norm1(tokens), queries=queries, mask=mask, bias=bias, decision=decision)
        return stored(tokens + scaled(update, share)), received

    def mean_keys(self, tokens: Float[Array, "b s d"]) -> Float[Array, "b s c"]:
        """The keys of the block's attention, averaged over heads, float32, for tokens that enter it."""
        return mean_keys(self.norm1(tokens), self.attention.project)

    def feed_forward(
        self, tokens: Float[Array, "b s d"], *, share: Float[Array, "b"] | None = None
    ) -> Float[Array, "b s d"]:
        """Second half: tokens after the MLP and its residual. `share` as in `attend`."""
        return stored(tokens + scaled(self.mlp(self.norm2(tokens)), share))


class Attention(nnx.Module):
    """Multi-head self-attention with biased qkv, scale c ** -0.5. `attend` is the way it is computed."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.heads = config.heads
        self.attend = attend
        self.qkv = Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.out = Linear(config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b s d"],
        *,
        queries: slice,
        mask: Bool[Array, "b s"] | None,
        bias: Float[Array, "b s"] | None,
        decision: Float[Array, "b s"] | None,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s"]]:
        seen = {"mask": mask, "bias": bias, "decision": decision}
        mixed, received = self.attend(tokens, self.project, queries=queries, **seen)
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
