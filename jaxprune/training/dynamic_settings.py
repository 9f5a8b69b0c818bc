"""Settings of learned pruning: the losses that train DynamicViT's predictors, and the two speeds (Rao et al. 2021).

The defaults are those published for DeiT-S. `jaxprune.training.dynamic` carries them out.
"""

import dataclasses
from typing import Literal

from jaxprune.training.checks import not_negative, share, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Settings of --prune.method dynamic, unread otherwise. A teacher is the run's starting model, unpruned."""

    # Weight of the loss that draws the kept share to its ratio, averaged over stages; published too: 5 for DeiT-B.
    ratio_weight: float = 2.0
    # Whose kept share is bound to the ratio: each clip's, or the batch's as a whole.
    bound: Literal["clip", "batch"] = "clip"
    # Weight of the divergence from the teacher's classes; 0 for none.
    classes_weight: float = 0.5
    # Weight of the distance from the teacher's tokens, where patches are kept; 0 for none.
    tokens_weight: float = 0.5
    # That distance: squared, or the divergence of the channels' softmax (published for LV-ViT).
    tokens: Literal["square", "divergence"] = "square"
    # Factor on the learning rate of all but the predictors.
    slow: float = 0.01
    # Epochs at the beginning in which the predictors learn alone.
    alone: int = 5
    # False leaves extra tokens and position table as they are, as the original does by a slip.
    embeddings: bool = True

    def __post_init__(self):
        for name in ("ratio_weight", "classes_weight", "tokens_weight"):
            not_negative(name, getattr(self, name))
        if self.bound not in ("clip", "batch"):
            raise ValueError(f"bound is {self.bound!r}; it must be 'clip' or 'batch'")
        if self.tokens not in ("square", "divergence"):
            raise ValueError(f"tokens is {self.tokens!r}; it must be 'square' or 'divergence'")
        share("slow", self.slow, most=1.0)
        whole_number("alone", self.alone, least=0)

    @property
    def taught(self) -> bool:
        """True if the losses need the teacher."""
        return self.classes_weight > 0 or self.tokens_weight > 0
