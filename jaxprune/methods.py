"""The ways to reduce tokens, each as the policy that a model is called with.

What each computes is in `jaxprune.reduction`; here are its published settings, and what is refused.
"""

from collections.abc import Mapping

from jaxprune.models import Classifier
from jaxprune.reduction.fusing import Fuse
from jaxprune.reduction.policy import Policy, stage_rates
from jaxprune.reduction.scores import ClsAttention, Score


def evit(model: Classifier, keep_rate: float | Mapping[int, float], *, score: Score | None = None) -> Policy:
    """EViT (Liang et al. 2022): top-k, whose dropped patches live on as one token.

    `keep_rate` is as in `topk`; each pruning block's count takes in the token fused before. The score is the
    published one, the attention of the CLS query, in both families; `topk`'s own for AudioMAE is `ReceivedAttention()`.
    Raises `ValueError` as `topk`.
    """
    rates = stage_rates(keep_rate, depth=model.config.depth)
    return Policy(ClsAttention() if score is None else score, {block: Fuse(rate) for block, rate in rates.items()})
