"""The cost of a forward pass: multiply-accumulates of the matrix products and the patch embedding, by formula.

Norms, softmax, GELU and selection by score are left out, as is usual. Products that a reduction makes are counted: a
predictor's, the comparisons of tokens and the sums of merged ones. `jaxprune benchmark` measures time.
"""

import dataclasses
from collections.abc import Mapping

from jaxprune.config import ModelConfig
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.tokens import UNCHANGED, Reduction


def macs(model: Classifier, policy: Policy, *, visible: int | None = None) -> int:
    """Multiply-accumulates for one clip under a policy; divide by 1e9 for GMACs.

    A masked reduction counts its capacity, which is what the device computes. `visible` patches enter block 0 (None:
    all); the others are embedded all the same.
    """
    return macs_of_stages(model.config, policy.stages, visible=visible)


def macs_of_counts(config: ModelConfig, kept: Mapping[int, int], *, visible: int | None = None) -> int:
    """`macs` where each pruning block keeps so many patches, between attention and MLP."""
    return macs_of_stages(config, {block: _Leaves(count) for block, count in kept.items()}, visible=visible)


def macs_of_stages(config: ModelConfig, reductions: Mapping[int, Reduction], *, visible: int | None = None) -> int:
    """`macs` of a model of this geometry, by its blocks' reductions."""
    patches = config.patches if visible is None else visible
    p = config.extra_tokens
    total = config.patches * config.patch**2 * config.width
    for block in range(config.depth):
        reduction = reductions.get(block, UNCHANGED)
        total += reduction.macs(patches, width=config.width, heads=config.heads, extra_tokens=p)
        patches = reduction.size_before(patches)
        total += attention_macs(config, p + patches)
        patches = reduction.size(patches)
        total += mlp_macs(config, p + patches)
    return total + config.width * config.classes


@dataclasses.dataclass
class _Leaves(Reduction):
    """Some reduction that leaves so many patches."""

    count: int

    def size(self, patches: int) -> int:
        return self.count


def attention_macs(config: ModelConfig, tokens: int) -> int:
    """qkv and output projections, logits, and the weighted sum of values."""
    return 4 * tokens * config.width**2 + 2 * tokens**2 * config.width


def mlp_macs(config: ModelConfig, tokens: int) -> int:
    """Both linear layers."""
    return 2 * tokens * config.width * config.mlp_width
