"""Masked-autoencoder pretraining of AudioMAE's encoder: masks, decoders, the model with its loss, and its checkpoint.

The encoder's blocks, patches and position table are the classifier's and lie in `jaxprune` itself. Training loops are
`jaxprune.training`'s, and PyTorch checkpoints are `jaxprune.convert`'s.
"""

from jaxprune.pretraining.decoders import BiasDropout, PlainDecoder, WindowDecoder
from jaxprune.pretraining.masks import (
    Mask,
    RandomMask,
    TimeFrequencyMask,
    draw_noise,
    random_visible,
    removed,
    time_frequency_visible,
)
from jaxprune.pretraining.model import Pretrained, Pretraining, PretrainingConfig

__all__ = [
    "BiasDropout",
    "Mask",
    "PlainDecoder",
    "Pretrained",
    "Pretraining",
    "PretrainingConfig",
    "RandomMask",
    "TimeFrequencyMask",
    "WindowDecoder",
    "draw_noise",
    "random_visible",
    "removed",
    "time_frequency_visible",
]
