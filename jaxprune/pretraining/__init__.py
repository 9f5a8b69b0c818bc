"""Masked-autoencoder pretraining of AudioMAE's encoder: masks, decoders, and the model with its loss.

The encoder's blocks, patches and position table are the classifier's and lie in `jaxprune` itself. Training loops are
`jaxprune.training`'s; PyTorch checkpoints are `jaxprune.convert`'s.
"""

from jaxprune.pretraining.decoders import BiasDropout, PlainDecoder, WindowDecoder
from jaxprune.pretraining.masks import draw_noise, random_visible, removed, time_frequency_visible
from jaxprune.pretraining.model import Pretrained, Pretraining, PretrainingConfig

__all__ = [
    "BiasDropout",
    "PlainDecoder",
    "Pretrained",
    "Pretraining",
    "PretrainingConfig",
    "WindowDecoder",
    "draw_noise",
    "random_visible",
    "removed",
    "time_frequency_visible",
]
