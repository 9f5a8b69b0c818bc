"""DynamicViT's predictors: small networks that say which patches to keep (Rao et al. 2021).

A predictor reads the residual stream before a block. Here are the network, the decisions drawn from it in training, and
the ratios of patches that its stages keep. The policies made of them are `jaxprune.reduction.dynamic`'s, the losses
that train them `jaxprune.training.dynamic_losses`'.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.ops.layers import GeluLinear, LayerNorm, Linear, gelu

EPS = 1e-5  # of the predictor's LayerNorm: torch's default, other than in the blocks
KEEP = 0  # channel of a predictor's output; the other one is dropping


class Predictor(nnx.Module):
    """The log-probabilities of keeping and of dropping each patch.

    Half of the channels stay each patch's own. The other half is averaged over the patches that are still there, and
    every patch reads the mean. Raises `ValueError` for a width that 4 does not divide.
    """

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        check_width(width)
        self.width = width
        init = nnx.initializers.truncated_normal(0.02)
        self.norm = LayerNorm(width, eps=EPS, dtype=dtype, rngs=rngs)
        self.embed = Linear(width, width, init=init, dtype=dtype, rngs=rngs)
        self.hidden1 = Linear(width, width // 2, init=init, dtype=dtype, rngs=rngs)
        self.hidden2 = GeluLinear(width // 2, width // 4, init=init, dtype=dtype, rngs=rngs)
        self.decide = GeluLinear(width // 4, 2, init=init, dtype=jnp.float32, rngs=rngs)

    def __call__(self, patches: Float[Array, "b n d"], decision: Float[Array, "b n"]) -> Float[Array, "b n 2"]:
        """Log-probabilities, float32. `decision` is 1 for patches that are still there, 0 for the others.

        A clip without any patch reads zeros as its mean, where the original divides by zero.
        """
        own, shared = jnp.split(gelu(self.embed(self.norm(patches))), 2, axis=-1)
        total = decision.sum(axis=1, keepdims=True)
        share = decision / jnp.where(total > 0, total, 1)
        mean = jnp.einsum("bnd,bn->bd", shared, share.astype(shared.dtype), preferred_element_type=jnp.float32)
        mean = jnp.broadcast_to(mean[:, None].astype(own.dtype), own.shape)
        hidden = self.hidden2(self.hidden1(jnp.concatenate([own, mean], axis=-1)))
        return jax.nn.log_softmax(self.decide(hidden), axis=-1)


def predictor_macs(width: int, patches: int) -> int:
    """Multiply-accumulates of a predictor's four linear layers for one clip."""
    return patches * (width * width + width * (width // 2) + (width // 2) * (width // 4) + (width // 4) * 2)


def straight_through(logits: Float[Array, "b n 2"]) -> Float[Array, "b n"]:
    """1 for patches whose first logit is the higher one, else 0, with the gradient of the softmax (temperature 1).

    With Gumbel noise added to log-probabilities this is a sample of the decision (Jang et al. 2017). As in the
    original, a 1 may be one rounding error away from 1.
    """
    soft = jax.nn.softmax(logits, axis=-1)[..., KEEP]
    hard = (jnp.argmax(logits, axis=-1) == KEEP).astype(soft.dtype)
    return jax.lax.stop_gradient(hard - soft) + soft


def stage_ratios(ratios: float | Sequence[float], *, stages: int) -> tuple[float, ...]:
    """The share of the initial patches that each stage keeps. One number r stands for r, r ** 2, r ** 3 and so on.

    Raises `ValueError` for another number of ratios than `stages`, ratios outside (0, 1], and ratios that rise.
    """
    if isinstance(ratios, int | float):
        ratios = [ratios ** (stage + 1) for stage in range(stages)] if 0 < ratios <= 1 else [ratios]
    ratios = tuple(map(float, ratios))
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio {ratio!r} is not allowed; it must be greater than 0 and at most 1")
    if len(ratios) != stages:
        raise ValueError(f"{len(ratios)} ratios {ratios} were given for {stages} predictors; give one for each")
    if any(later > earlier for earlier, later in itertools.pairwise(ratios)):
        raise ValueError(
            f"the ratios {ratios} rise, but a dropped patch never returns; give each as a share of all patches, falling"
        )
    return ratios


def ratio_count(ratio: float, patches: int) -> int:
    """Patches that a stage keeps of the model's `patches`: `trunc(patches * ratio)` in Python floats, as published.

    Raises `ValueError` where nothing would be left.
    """
    count = math.trunc(patches * ratio)
    if count < 1:
        raise ValueError(f"ratio {ratio!r} keeps none of {patches} patches; choose a larger one")
    return count


def check_width(width: int) -> None:
    """Raises `ValueError` for a width that a predictor cannot halve twice."""
    if width % 4:
        raise ValueError(f"a model of width {width} cannot have predictors: they need a width that 4 divides")
