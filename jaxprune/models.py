"""AST and AudioMAE, side by side: how a spectrogram becomes tokens and how tokens become logits.

The blocks between are `jaxprune.vit`'s, the pruning `jaxprune.reduction.policy`'s. The two classes hold what
separates the models in code: how tokens are embedded and pooled, and the score of the published pruning. The facts that
differ are in `jaxprune.families`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from jaxprune.config import ModelConfig
from jaxprune.ops.layers import LayerNorm, Linear
from jaxprune.positions import patch_corners, sincos_positions
from jaxprune.reduction.policy import Policy, masked_stages, stage_rates, top_k_stages
from jaxprune.reduction.predictors import Predictor
from jaxprune.reduction.scores import ClsAttention, ReceivedAttention, Score
from jaxprune.reduction.tokens import Tokens
from jaxprune.vit import BlockTrace, DropPath, Encoder


@struct.dataclass
class Output:
    """A forward pass. Under jit, what nobody reads costs nothing.

    `logits` `(b, y)` are float32. `features` `(b, d)` are the pooled tokens that the head's norm reads. `tokens_in`
    `(b, s, d)` enter block 0. `trace` has one `BlockTrace` a block.
    """

    logits: Float[Array, "b y"]
    features: Float[Array, "b d"]
    tokens_in: Float[Array, "b s d"]
    trace: tuple[BlockTrace, ...]


class FixedTable(nnx.Variable):
    """A fixed array that is saved with the parameters but never trained."""


class Classifier(nnx.Module):
    """The parts that AST and AudioMAE share. `config` and the compute dtype are fixed at construction."""

    score: ClassVar[Score]
    head_std: ClassVar[float] = 0.02

    def __init__(self, config: ModelConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.patch_embed = Linear(config.patch**2, config.width, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.head_norm = LayerNorm(config.width, eps=config.head_norm_eps, dtype=jnp.float32, rngs=rngs)
        start = nnx.initializers.truncated_normal(self.head_std)
        self.head = Linear(config.width, config.classes, init=start, dtype=jnp.float32, rngs=rngs)
        self.predictors = nnx.List([Predictor(config.width, dtype=dtype, rngs=rngs) for _ in config.predictors])

    def __call__(
        self,
        mel: Float[Array, "b t f"],
        policy: Policy | None = None,
        *,
        visible: Int[Array, "b n"] | None = None,
        drop_path: DropPath | None = None,
    ) -> Output:
        """Logits and trace for a normalised spectrogram; no policy means no pruning, with the family's own score
        traced.

        Training passes two values more: `visible`, the original positions of the patches that enter block 0 in their
        order (None: all), from which every later count starts while traces keep naming original positions; and
        `drop_path` (None: no branch is dropped). Raises `ValueError` when the spectrogram's size is not the
        configuration's.
        """
        expected = (self.config.frames, self.config.mels)
        if mel.ndim != 3 or mel.shape[1:] != expected:
            raise ValueError(
                f"the spectrogram has shape {mel.shape}; this model reads (batch, {expected[0]} frames, "
                f"{expected[1]} mel bins)"
            )
        policy = topk(self, {}) if policy is None else policy
        patches = cut_patches(mel, self.config)  # b n pixels
        tokens_in = self.embed(self.patch_embed(patches))
        patch_ids = jnp.broadcast_to(jnp.arange(patches.shape[1], dtype=jnp.int32), patches.shape[:2])
        tokens = Tokens(tokens_in, patch_ids, extra_tokens=self.config.extra_tokens)
        if visible is not None:
            tokens = tokens.select(visible, alive=None)
            tokens_in = tokens.values
        pixels = patches.astype(jnp.float32)
        tokens, trace = self.encoder(
            tokens,
            policy,
            patch_mean=pixels.mean(axis=-1),
            patch_std=pixels.std(axis=-1, ddof=1),
            drop_path=drop_path,
        )
        features = self.pool(tokens.values, tokens.alive, tokens.weights)
        return Output(self.head(self.head_norm(features)), features, tokens_in, trace)

    def embed(self, patches: Float[Array, "b n d"]) -> Float[Array, "b s d"]:
        """Projected patches with position table and extra tokens, float32 whatever the compute dtype."""
        raise NotImplementedError

    def final_norm(self, tokens: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Each token after the transformer's last LayerNorm, float32. AudioMAE's comes after the mean in `pool`."""
        raise NotImplementedError

    def pool(
        self,
        tokens: Float[Array, "b s d"],
        alive: Bool[Array, "b n"] | None,
        weights: Float[Array, "b n"] | None = None,
    ) -> Float[Array, "b d"]:
        """The clip's feature vector, float32. A mean over patch tokens takes each at its weight (None: 1)."""
        raise NotImplementedError


class AST(Classifier):
    """Audio Spectrogram Transformer (Gong et al. 2021): patches frequency-major, CLS and distillation tokens."""

    score = ClsAttention()

    def __init__(self, config: ModelConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        init = nnx.initializers.truncated_normal(0.02)
        self.extra_tokens = nnx.Param(init(rngs.params(), (config.extra_tokens, config.width)))
        # As large as a patch's own code: trained from scratch, the blocks tell places apart from the first step.
        places = nnx.initializers.truncated_normal(0.3)
        self.positions = nnx.Param(places(rngs.params(), (config.extra_tokens + config.patches, config.width)))
        self.norm = LayerNorm(config.width, eps=config.norm_eps, dtype=jnp.float32, rngs=rngs)

    def embed(self, patches):
        extra = jnp.broadcast_to(self.extra_tokens[...], (patches.shape[0], *self.extra_tokens[...].shape))
        return jnp.concatenate([extra, patches], axis=1) + self.positions[...][None]

    def final_norm(self, tokens):
        return self.norm(tokens)

    def pool(self, tokens, alive, weights=None):
        return self.norm(tokens[:, : self.config.extra_tokens]).mean(axis=1)


class AudioMAE(Classifier):
    """AudioMAE's fine-tuned encoder (Huang et al. 2022): patches time-major, CLS token, mean-pooled patches."""

    score = ReceivedAttention()
    head_std = 2e-5  # a new classifier starts all but silent (the fine-tuning recipe)

    def __init__(self, config: ModelConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        init = nnx.initializers.truncated_normal(0.02)
        self.extra_tokens = nnx.Param(init(rngs.params(), (config.extra_tokens, config.width)))
        self.positions = FixedTable(jnp.asarray(sincos_positions(config), jnp.float32))

    def embed(self, patches):
        p, positions = self.config.extra_tokens, self.positions[...]
        extra = jnp.broadcast_to(self.extra_tokens[...] + positions[:p], (patches.shape[0], *positions[:p].shape))
        return jnp.concatenate([extra, patches + positions[None, p:]], axis=1)

    def final_norm(self, tokens):
        return self.head_norm(tokens)

    def pool(self, tokens, alive, weights=None):
        patches = tokens[:, self.config.extra_tokens :]
        if weights is not None:
            weights = weights if alive is None else jnp.where(alive, weights, 0)
            total = jnp.sum(patches * weights[:, :, None], axis=1, where=None if alive is None else alive[:, :, None])
            return total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
        if alive is None:
            return patches.mean(axis=1)
        # A clip may have lost all its patches to an intensity range: its mean is then zero, not 0 / 0.
        total = jnp.sum(patches, axis=1, where=alive[:, :, None])
        return total / jnp.maximum(alive.sum(axis=1, keepdims=True), 1)


CLASSES = {"ast": AST, "audiomae": AudioMAE}


def build(config: ModelConfig, *, dtype: Any = jnp.float32, seed: int = 0) -> Classifier:
    """A freshly initialised model of the configuration's family."""
    return CLASSES[config.family](config, dtype=dtype, rngs=nnx.Rngs(seed))


def abstract(config: ModelConfig, *, dtype: Any = jnp.float32) -> Classifier:
    """The same model with shapes in place of arrays, to be filled from a checkpoint."""
    return nnx.eval_shape(lambda: build(config, dtype=dtype))


def deepened(model: Classifier, depth: int, *, seed: int = 0) -> Classifier:
    """A model of `depth` blocks that computes the same: fresh ones stand between the model's own, spread evenly.

    The output layers of the fresh attentions and MLPs are zero, so that each adds nothing until it is trained. For
    growing a model while it trains (progressive stacking, Gong et al. 2019), because a shallow one leaves chance level
    sooner. Its first block stays the first and its last the last. Raises `ValueError` where it has more blocks already.
    """
    own = model.config.depth
    if depth < own:
        raise ValueError(f"the model has {own} blocks, more than {depth}; blocks can only be added")
    places = {i: round(i * (depth - 1) / max(own - 1, 1)) for i in range(own)}
    predictors = tuple(places[block] for block in model.config.predictors)
    config = dataclasses.replace(model.config, depth=depth, predictors=predictors)
    grown = build(config, dtype=model.dtype, seed=seed)
    for place, block in enumerate(grown.encoder.blocks):
        if place not in places.values():
            for last in (block.attention.out, block.mlp.fc2):
                last.kernel[...] = jnp.zeros_like(last.kernel[...])
    kept = [
        ((*path[:2], places[path[2]], *path[3:]) if path[:2] == ("encoder", "blocks") else path, leaf)
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    ]
    nnx.update(grown, nnx.from_flat_state(kept))
    return grown


def topk(model: Classifier, keep_rate: float | Mapping[int, float], *, score: Score | None = None) -> Policy:
    """The published pruning: exact top-k by the family's own score (or `score`).

    `keep_rate` is one rate for blocks 3, 6 and 9, or a mapping from 0-based block to rate; an empty mapping prunes
    nothing. Raises `ValueError` for a rate outside (0, 1] or a block the model does not have.
    """
    rates = stage_rates(keep_rate, depth=model.config.depth)
    return Policy(model.score if score is None else score, top_k_stages(rates))


def masked_topk(
    model: Classifier,
    keep_rate: float | Mapping[int, float],
    *,
    multiple: int | None = None,
    patches: int | None = None,
    score: Score | None = None,
) -> Policy:
    """`topk` in masked mode: the same patches kept, counts traced, so that other rates reuse the compilation.

    Capacities are the full length, or each count rounded up to a `multiple`. `patches` enter block 0: all of the
    model's, or fewer where the call names `visible` ones. Raises as `topk`.
    """
    rates = stage_rates(keep_rate, depth=model.config.depth)
    entering = model.config.patches if patches is None else patches
    stages = masked_stages(rates, patches=entering, multiple=multiple)
    return Policy(model.score if score is None else score, stages)


def for_inference(model: Classifier) -> Classifier:
    """The model with each layer's weights in the dtype of its products, for forward passes alone.

    A model in bfloat16 keeps float32 weights, which training adds to, and rounds them in every call. Here they are
    rounded once, to the same numbers. One clip on a CPU otherwise waits longer for that than for some of the products.
    """
    if model.dtype == jnp.float32:
        return model
    copy = nnx.merge(*nnx.split(model))
    for _, layer in nnx.iter_modules(copy):
        if isinstance(layer, Linear):
            layer.kernel = nnx.Param(layer.kernel[...].astype(layer.dtype))
    return copy


def jit_forward(model: Classifier, read: Callable[[Output], Any] = lambda output: output) -> Callable[..., Any]:
    """A jitted `(mel, policy) -> read(output)` over the model's present weights.

    `read` picks what is computed and returned; the rest of the forward pass is dropped. Splitting the model once makes
    a call cost 0.5 ms of Python instead of `nnx.jit`'s 10 ms for 12 blocks.
    """
    graph, state = nnx.split(for_inference(model))

    @jax.jit
    def run(state: nnx.State, mel: Float[Array, "b t f"], policy: Policy) -> Any:
        return read(nnx.merge(graph, state)(mel, policy))

    return lambda mel, policy: run(state, mel, policy)


compiled = jit_forward  # its name until version 0.2


def cut_patches(mel: Float[Array, "b t f"], config: ModelConfig) -> Float[Array, "b n pixels"]:
    """Every patch in the family's order, its pixels flattened time-major; patches overlap where a stride is short."""
    within = np.arange(config.patch)
    frames, bins = (patch_corners(config)[:, axis, None] + within for axis in (0, 1))  # n pt, n pf
    return rearrange(mel[:, frames[:, :, None], bins[:, None, :]], "b n pt pf -> b n (pt pf)")
