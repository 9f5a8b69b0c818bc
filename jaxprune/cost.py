"""The cost of a forward pass: multiply-accumulates of the matrix products and the patch embedding, by formula.

Norms, softmax, GELU and selection are left out, as is usual; `jaxprune benchmark` measures time.
"""

from collections.abc import Mapping

from jaxprune.config import ModelConfig
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy


def macs(model: Classifier, policy: Policy, *, visible: int | None = None) -> int:
    """Multiply-accumulates for one clip under a policy; divide by 1e9 for GMACs.

    A masked stage counts its capacity, which is what the device computes. `visible` patches enter block 0 (None: all);
    the others are embedded all the same.
    """
    config = model.config
    patches = config.patches if visible is None else visible
    kept, left = {}, patches
    for block in sorted(policy.stages):
        kept[block] = left = policy.stages[block].size(left)
    return macs_of_counts(config, kept, visible=patches)


def macs_of_counts(config: ModelConfig, kept: Mapping[int, int], *, visible: int | None = None) -> int:
    """`macs` where each pruning block keeps so many patches."""
    patches = config.patches if visible is None else visible
    total = config.patches * config.patch**2 * config.width
    for block in range(config.depth):
        total += attention_macs(config, config.extra_tokens + patches)
        patches = kept.get(block, patches)
        total += mlp_macs(config, config.extra_tokens + patches)
    return total + config.width * config.classes


def attention_macs(config: ModelConfig, tokens: int) -> int:
    """qkv and output projections, logits, and the weighted sum of values."""
    return 4 * tokens * config.width**2 + 2 * tokens**2 * config.width


def mlp_macs(config: ModelConfig, tokens: int) -> int:
    """Both linear layers."""
    return 2 * tokens * config.width * config.mlp_width
