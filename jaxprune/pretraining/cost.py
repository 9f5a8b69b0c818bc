"""The cost of a pretraining step's forward pass: multiply-accumulates, counted as `jaxprune.cost` counts them."""

import dataclasses

from jaxprune.config import ModelConfig
from jaxprune.cost import attention_macs, mlp_macs
from jaxprune.pretraining.decoders import META_WIDTH, PlainDecoder
from jaxprune.pretraining.model import PretrainingConfig


def encoder_macs(config: ModelConfig, *, visible: int) -> int:
    """The encoder's for one clip of which it sees so many patches. All patches are embedded, before the mask."""
    tokens = config.extra_tokens + visible
    block = attention_macs(config, tokens) + mlp_macs(config, tokens)
    return config.patches * config.patch**2 * config.width + config.depth * block


def decoder_macs(config: PretrainingConfig, *, visible: int) -> int:
    """The decoder's for one clip: embedding, blocks over all patches, and the prediction of all pixels.

    The network behind the window decoder's position bias is counted once a clip, though a batch shares it.
    """
    encoder, decoder = config.encoder, config.decoder
    sizes = dataclasses.replace(encoder, width=decoder.width, heads=decoder.heads)
    ends = (encoder.extra_tokens + visible) * encoder.width * decoder.width
    if isinstance(decoder, PlainDecoder):
        tokens = encoder.extra_tokens + encoder.patches
        block = attention_macs(sizes, tokens) + mlp_macs(sizes, tokens)
    else:
        within = decoder.window**2
        windows = encoder.patches // within
        bias = within**2 * META_WIDTH * (2 + decoder.heads)
        block = windows * (attention_macs(sizes, within) + mlp_macs(sizes, within)) + bias
    return ends + decoder.depth * block + encoder.patches * decoder.width * encoder.patch**2
