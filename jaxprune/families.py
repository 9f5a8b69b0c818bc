"""The table of facts in which the two model families differ.

AST (Gong et al. 2021) and AudioMAE (Huang et al. 2022) share all code but what these facts name, and the methods of
their classes in `jaxprune.models`. The names of tensors in PyTorch checkpoints are `jaxprune.convert`'s matter.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Family = Literal["ast", "audiomae"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """Facts of one family.

    `sizes` are names in `jaxprune.config.SIZES`. `extra_tokens` stand before the patches and are never pruned.
    `fastest` is the axis along which neighbouring patches follow each other in the family's patch order.
    `head_norm_eps` belongs to the classifier's LayerNorm, as published.
    """

    sizes: tuple[str, ...]
    extra_tokens: int
    fastest: Literal["time", "frequency"]
    head_norm_eps: float


FAMILIES: Mapping[str, FamilyFacts] = MappingProxyType(
    {
        "ast": FamilyFacts(
            sizes=("micro", "tiny", "small", "base"),
            extra_tokens=2,  # CLS and distillation
            fastest="time",  # frequency-major
            head_norm_eps=1e-5,
        ),
        "audiomae": FamilyFacts(
            sizes=("micro", "small", "base", "large"),
            extra_tokens=1,  # CLS
            fastest="frequency",  # time-major
            head_norm_eps=1e-6,
        ),
    }
)
