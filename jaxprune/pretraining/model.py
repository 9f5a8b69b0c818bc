"""AudioMAE's first half: an encoder that sees a few patches, a decoder that predicts the others (Huang et al. 2022).

The encoder is the classifier's own (`jaxprune.vit.Encoder`), and so are patches and position table.
`jaxprune.pretraining.masks` draws the masks, and `jaxprune.pretraining.decoders` has the decoders.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx, struct
from jaxtyping import Array, Float, Int

from jaxprune.config import ModelConfig
from jaxprune.families import FAMILIES
from jaxprune.models import AudioMAE, FixedTable, cut_patches
from jaxprune.ops.layers import LayerNorm, Linear
from jaxprune.positions import sincos_positions
from jaxprune.pretraining.decoders import EPS, BiasDropout, DecoderConfig
from jaxprune.pretraining.masks import removed
from jaxprune.reduction.policy import Policy
from jaxprune.reduction.tokens import Tokens
from jaxprune.vit import Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The encoder's geometry and the decoder's. The encoder's `classes` are not used.

    Raises `ValueError` for a family other than AudioMAE, and as the decoder's own sizes do.
    """

    encoder: ModelConfig
    decoder: DecoderConfig

    def __post_init__(self):
        if not FAMILIES[self.encoder.family].pretrains:
            raise ValueError(f"family is {self.encoder.family!r}; masked pretraining is AudioMAE's")


@struct.dataclass
class Pretrained:
    """`latent` `(b, 1 + k, d)`: CLS and the visible patches after the encoder's last norm. `prediction`
    `(b, n, pixels)`: the pixels of every patch, time-major, in the family's patch order. Both float32.

    The rest is the way there, which costs nothing under jit where nobody reads it. `tokens_in` enter the encoder and
    `blocks` leave each of its blocks. `mixed` `(b, 1 + n, w)` enter the decoder and `decoder_blocks` leave its blocks.
    """

    latent: Float[Array, "b pk d"]
    prediction: Float[Array, "b n pixels"]
    tokens_in: Float[Array, "b pk d"]
    blocks: tuple[Float[Array, "b pk d"], ...]
    mixed: Float[Array, "b s w"]
    decoder_blocks: tuple[Float[Array, "b _ w"], ...]


class Pretraining(nnx.Module):
    """Masked autoencoder over AudioMAE's encoder. `config` and the compute dtype are fixed at construction."""

    def __init__(self, config: PretrainingConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        encoder, decoder = config.encoder, config.decoder
        self.settings, self.config = config, encoder
        self.dtype = jnp.dtype(dtype)
        init = nnx.initializers.normal(0.02)
        self.patch_embed = Linear(encoder.patch**2, encoder.width, dtype=dtype, rngs=rngs)
        self.extra_tokens = nnx.Param(init(rngs.params(), (encoder.extra_tokens, encoder.width)))
        self.positions = FixedTable(jnp.asarray(sincos_positions(encoder), jnp.float32))
        self.encoder = Encoder(encoder, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(encoder.width, eps=EPS, dtype=dtype, rngs=rngs)
        self.decoder_embed = Linear(encoder.width, decoder.width, dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(init(rngs.params(), (decoder.width,)))
        places = sincos_positions(dataclasses.replace(encoder, width=decoder.width, heads=decoder.heads))
        self.decoder_positions = FixedTable(jnp.asarray(places, jnp.float32))
        self.decoder = decoder.build(encoder, dtype=dtype, rngs=rngs)
        self.decoder_norm = LayerNorm(decoder.width, eps=EPS, dtype=dtype, rngs=rngs)
        self.predict = Linear(decoder.width, encoder.patch**2, dtype=jnp.float32, rngs=rngs)

    embed = AudioMAE.embed

    def __call__(
        self, mel: Float[Array, "b t f"], visible: Int[Array, "b k"], *, dropout: BiasDropout | None = None
    ) -> Pretrained:
        """Codes of the visible patches and a prediction of all, from a normalised spectrogram.

        `visible` are original positions in the order the encoder takes them. `dropout` (None: none, as in evaluation)
        is the window decoder's. Raises `ValueError` when the spectrogram's size is not the configuration's.
        """
        return self.read(cut_patches(mel, self.config), visible, dropout=dropout)

    def loss(
        self,
        mel: Float[Array, "b t f"],
        visible: Int[Array, "b k"],
        *,
        normalise: bool = True,
        dropout: BiasDropout | None = None,
    ) -> Float[Array, ""]:
        """Squared error of the predicted pixels, mean over a patch and over all removed patches of the batch.

        With `normalise` a patch's pixels lose their mean and are divided by sqrt(variance + 1e-6), unbiased variance.
        """
        # Of every clip as many patches are removed, so the mean of the clips' means is the mean over all patches.
        return self.losses(mel, visible, normalise=normalise, dropout=dropout).mean()

    def losses(
        self,
        mel: Float[Array, "b t f"],
        visible: Int[Array, "b k"],
        *,
        normalise: bool = True,
        dropout: BiasDropout | None = None,
    ) -> Float[Array, "b"]:
        """Each clip's part of `loss`: the mean over its own removed patches."""
        patches = cut_patches(mel, self.config)
        output = self.read(patches, visible, dropout=dropout)
        target = normalised(patches) if normalise else patches
        error = jnp.square(output.prediction - target).mean(axis=-1)
        return error.mean(axis=-1, where=removed(visible, patches=patches.shape[1]))

    def read(
        self, patches: Float[Array, "b n pixels"], visible: Int[Array, "b k"], *, dropout: BiasDropout | None
    ) -> Pretrained:
        """Encodes the visible patches and predicts the pixels of all."""
        tokens_in, blocks = self.encode(patches, visible)
        latent = self.norm(blocks[-1]).astype(jnp.float32)
        mixed = self.mix(latent, visible)
        behind = self.decoder(mixed, dropout=dropout)
        codes = behind[-1][:, -patches.shape[1] :]  # without CLS, where the decoder has it
        prediction = self.predict(self.decoder_norm(codes))
        return Pretrained(latent, prediction, tokens_in, blocks, mixed, behind)

    def encode(
        self, patches: Float[Array, "b n pixels"], visible: Int[Array, "b k"]
    ) -> tuple[Float[Array, "b pk d"], tuple[Float[Array, "b pk d"], ...]]:
        """CLS and the visible patches before the first block, and after each."""
        tokens = self.embed(self.patch_embed(patches))
        patch_ids = jnp.broadcast_to(jnp.arange(patches.shape[1], dtype=jnp.int32), patches.shape[:2])
        tokens = Tokens(tokens, patch_ids, extra_tokens=1).select(visible, alive=None)
        unread = jnp.zeros(patches.shape[:2])  # no score looks at the pixels, because nothing is pruned
        _, trace = self.encoder(tokens, Policy(AudioMAE.score, {}), patch_mean=unread, patch_std=unread)
        return tokens.values, tuple(block.tokens for block in trace)

    def mix(self, latent: Float[Array, "b pk d"], visible: Int[Array, "b k"]) -> Float[Array, "b s w"]:
        """The decoder's input: the visible patches' codes at their places, the mask token at all others."""
        codes = self.decoder_embed(latent).astype(jnp.float32)
        count = len(self.decoder_positions[...]) - 1
        patches = repeat(self.mask_token[...], "d -> b n d", b=latent.shape[0], n=count)
        patches = jax.vmap(lambda patches, at, codes: patches.at[at].set(codes))(patches, visible, codes[:, 1:])
        return jnp.concatenate([codes[:, :1], patches], axis=1) + self.decoder_positions[...][None]


def normalised(patches: Float[Array, "b n pixels"]) -> Float[Array, "b n pixels"]:
    """Each patch without its mean, over sqrt(unbiased variance + 1e-6). A constant patch becomes 0."""
    mean = patches.mean(axis=-1, keepdims=True)
    return (patches - mean) / jnp.sqrt(patches.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
