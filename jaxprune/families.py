"""The table of facts in which the two model families differ.

AST (Gong et al. 2021) and AudioMAE (Huang et al. 2022) share all code but what these facts name, and the methods of
their classes in `jaxprune.models`. `jaxprune.convert` has the same table for tensors in PyTorch checkpoints.
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
    `head_norm_eps` belongs to the classifier's LayerNorm, as published. `strides` are those that it was published with,
    the original's first; there are none where patches lie edge to edge. `positions` are learned, or the fixed table of
    sines and cosines. `in_transformers` says that Hugging Face's `transformers` has the classifier, `pretrains` that
    it learns from masked patches without labels.
    """

    sizes: tuple[str, ...]
    extra_tokens: int
    fastest: Literal["time", "frequency"]
    head_norm_eps: float
    strides: tuple[int, ...]
    positions: Literal["learned", "sincos"]
    in_transformers: bool
    pretrains: bool


FAMILIES: Mapping[str, FamilyFacts] = MappingProxyType(
    {
        "ast": FamilyFacts(
            sizes=("micro", "mini", "tiny", "small", "base"),
            extra_tokens=2,  # CLS and distillation
            fastest="time",  # frequency-major
            head_norm_eps=1e-5,
            strides=(10, 16),  # the original's, then the pruning work's
            positions="learned",
            in_transformers=True,
            pretrains=False,
        ),
        "audiomae": FamilyFacts(
            sizes=("micro", "mini", "small", "base", "large"),
            extra_tokens=1,  # CLS
            fastest="frequency",  # time-major
            head_norm_eps=1e-6,
            strides=(),
            positions="sincos",
            in_transformers=False,
            pretrains=True,
        ),
    }
)
