"""The two published decoders of masked pretraining: plain blocks, and blocks that attend in shifted local windows.

A decoder reads every patch's code, seen or not, and returns as many. Embedding the encoder's output before it and
predicting pixels after it are `jaxprune.pretraining.model`'s matter. Each is described by a small configuration that
builds it: a new decoder is one of those and one module.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx, struct
from jaxtyping import Array, Float, Key

from jaxprune.config import LARGEST, ModelConfig
from jaxprune.ops.layers import LayerNorm, Linear
from jaxprune.vit import Block, Mlp

EPS = 1e-6
LEAST_TEMPERATURE = 0.01
META_WIDTH = 384  # of the small network behind the position bias


@struct.dataclass
class BiasDropout:
    """Dropout inside the network that makes window attention's position bias. The released code has 0.1."""

    key: Key[Array, ""]
    rate: float = struct.field(pytree_node=False, default=0.1)

    def __call__(self, x: Float[Array, "*b"], *, block: int, layer: int) -> Float[Array, "*b"]:
        key = jax.random.fold_in(jax.random.fold_in(self.key, block), layer)
        return jnp.where(jax.random.bernoulli(key, 1 - self.rate, x.shape), x / (1 - self.rate), 0)


class Decoder(nnx.Module):
    """Blocks between the embedded tokens and the prediction."""

    @abc.abstractmethod
    def __call__(self, tokens: Float[Array, "b 1+n d"], *, dropout: BiasDropout | None) -> tuple[Array, ...]:
        """The tokens that leave each block, `(b, n, d)`, or `(b, 1 + n, d)` with CLS; the first token entering is it.

        The last n of a block's are the patches' codes.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """The sizes of every decoder. Raises `ValueError` for one out of range, and where the heads do not divide the
    width."""

    # Width of the decoder's tokens.
    width: int = 512
    # Blocks.
    depth: int = 8
    # Attention heads; they divide the width.
    heads: int = 16

    def __post_init__(self):
        for name in ("width", "depth", "heads"):
            value = getattr(self, name)
            if not 1 <= value <= LARGEST[name]:
                raise ValueError(
                    f"the decoder's {name} is {value}; it must be at least 1 and at most {LARGEST[name]:,}"
                )
        if self.width % self.heads:
            raise ValueError(
                f"the decoder's width {self.width} cannot be split over {self.heads} heads; "
                "choose heads that divide the width"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainDecoder(DecoderSizes):
    """Ordinary transformer blocks over CLS and all patches (mode 0 of the released code)."""

    def build(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs) -> "PlainBlocks":
        """The decoder's blocks with fresh weights."""
        return PlainBlocks(self, config, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowDecoder(DecoderSizes):
    """Swin-v2 blocks in windows of 4 x 4 patches, every other one shifted by two time steps (mode 1, the recipe's).

    CLS is left out before the blocks. The released code always builds 16 of them. Raises `ValueError` for a shift that
    is not less than the window.
    """

    # Blocks, every other one shifted.
    depth: int = 16
    # Patches along each side of a window.
    window: int = 4
    # Time steps that every other block is shifted by.
    shift: int = 2

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.shift < self.window <= LARGEST["patch"]:
            raise ValueError(
                f"windows of {self.window} cannot be shifted by {self.shift}; the shift must be less than the window"
            )

    def build(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs) -> "WindowBlocks":
        """The decoder's blocks with fresh weights. Raises `ValueError` for a grid that windows do not divide."""
        time, freq = config.grid
        if time % self.window or freq % self.window:
            raise ValueError(
                f"a grid of {time} x {freq} patches cannot be cut into windows of {self.window} x {self.window}; "
                "choose frames and mel bins that can, or the plain decoder"
            )
        return WindowBlocks(self, config, dtype=dtype, rngs=rngs)


DecoderConfig = PlainDecoder | WindowDecoder


class PlainBlocks(Decoder):
    """The encoder's own blocks, at the decoder's width."""

    def __init__(self, decoder: PlainDecoder, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        sizes = dataclasses.replace(config, width=decoder.width, heads=decoder.heads, norm_eps=EPS)
        self.blocks = nnx.List([Block(sizes, dtype=dtype, rngs=rngs) for _ in range(decoder.depth)])

    def __call__(self, tokens, *, dropout):
        left = []
        for block in self.blocks:
            tokens, _ = block.attend(tokens, queries=slice(None), mask=None)
            tokens = block.feed_forward(tokens)
            left.append(tokens)
        return tuple(left)


class WindowBlocks(Decoder):
    """Blocks with window attention, unshifted and shifted in turn."""

    def __init__(self, decoder: WindowDecoder, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        sizes = dataclasses.replace(config, width=decoder.width, heads=decoder.heads, norm_eps=EPS)
        self.grid, self.window, self.shift = config.grid, decoder.window, decoder.shift
        self.blocks = nnx.List(
            [WindowBlock(sizes, window=decoder.window, dtype=dtype, rngs=rngs) for _ in range(decoder.depth)]
        )

    def __call__(self, tokens, *, dropout):
        time, freq = self.grid
        grid = rearrange(tokens[:, 1:], "b (t f) d -> b t f d", t=time, f=freq)
        left = []
        for i, block in enumerate(self.blocks):
            shift = self.shift * (i % 2)
            windows = self.cut(jnp.roll(grid, -shift, axis=1))
            windows = block(windows, apart=self.apart(shift), dropout=dropout, index=i)
            grid = jnp.roll(self.join(windows), shift, axis=1)
            left.append(rearrange(grid, "b t f d -> b (t f) d"))
        return tuple(left)

    def cut(
        self, grid: Float[Array, "b t f d"] | Float[np.ndarray, "b t f d"]
    ) -> Float[Array, "b g s d"] | Float[np.ndarray, "b g s d"]:
        """The g windows of a grid, their tokens time-major."""
        return rearrange(grid, "b (gt t) (gf f) d -> b (gt gf) (t f) d", t=self.window, f=self.window)

    def join(self, windows: Float[Array, "b g s d"]) -> Float[Array, "b t f d"]:
        steps = self.grid[0] // self.window
        return rearrange(windows, "b (gt gf) (t f) d -> b (gt t) (gf f) d", gt=steps, t=self.window)

    def apart(self, shift: int) -> Float[np.ndarray, "g s s"]:
        """-100 between tokens that a roll by `shift` brought from the two ends of the clip into one window, else 0."""
        time, freq = self.grid
        region = np.zeros((1, time, freq, 1), np.float32)
        if shift:
            region[:, time - self.window : time - shift] = 1
            region[:, time - shift :] = 2
        region = self.cut(region)[0, :, :, 0]  # g s
        return np.where(region[:, :, None] == region[:, None, :], 0, -100).astype(np.float32)


class WindowBlock(nnx.Module):
    """A post-norm block: x + norm(attention(x)), then x + norm(MLP(x))."""

    def __init__(self, sizes: ModelConfig, *, window: int, dtype: Any, rngs: nnx.Rngs):
        self.attention = WindowAttention(sizes, window=window, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(sizes.width, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(sizes, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(sizes.width, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        windows: Float[Array, "b g s d"],
        *,
        apart: Float[np.ndarray, "g s s"],
        dropout: BiasDropout | None,
        index: int,
    ) -> Float[Array, "b g s d"]:
        windows = windows + self.norm1(self.attention(windows, apart=apart, dropout=dropout, index=index))
        return windows + self.norm2(self.mlp(windows))


class WindowAttention(nnx.Module):
    """Cosine attention among the tokens of a window, a temperature a head, with a bias learned from their offsets."""

    def __init__(self, sizes: ModelConfig, *, window: int, dtype: Any, rngs: nnx.Rngs):
        self.heads = sizes.heads
        self.qkv = Linear(sizes.width, 3 * sizes.width, dtype=dtype, rngs=rngs)
        self.out = Linear(sizes.width, sizes.width, dtype=dtype, rngs=rngs)
        self.temperature = nnx.Param(jnp.ones(sizes.heads))
        self.meta1 = Linear(2, META_WIDTH, dtype=jnp.float32, rngs=rngs)
        self.meta2 = Linear(META_WIDTH, sizes.heads, dtype=jnp.float32, rngs=rngs)
        self.window = window

    def __call__(
        self,
        windows: Float[Array, "b g s d"],
        *,
        apart: Float[np.ndarray, "g s s"],
        dropout: BiasDropout | None,
        index: int,
    ) -> Float[Array, "b g s d"]:
        q, k, v = rearrange(self.qkv(windows), "b g s (r h c) -> r b g h s c", r=3, h=self.heads)
        dots = jnp.einsum("bghqc,bghkc->bghqk", q, k, preferred_element_type=jnp.float32)
        lengths = _length(q)[..., :, None] * _length(k)[..., None, :]
        cosine = dots / jnp.maximum(lengths, 1e-6)
        logits = cosine / jnp.maximum(self.temperature[...], LEAST_TEMPERATURE)[None, None, :, None, None]
        bias = self.bias(dropout, index=index)[None] + apart[:, None]  # g h s s
        weights = jax.nn.softmax(logits + bias[None], axis=-1).astype(v.dtype)
        return self.out(rearrange(jnp.einsum("bghqk,bghkc->bghqc", weights, v), "b g h s c -> b g s (h c)"))

    def bias(self, dropout: BiasDropout | None, *, index: int) -> Float[Array, "h s s"]:
        """One number a head and pair of tokens, from the logarithm of their distance in time and frequency."""
        within = np.stack(np.unravel_index(np.arange(self.window**2), (self.window, self.window)), axis=1)
        offset = (within[:, None] - within[None, :]).astype(np.float32)  # query minus key
        hidden = jax.nn.relu(self.meta1(jnp.asarray(np.sign(offset) * np.log1p(np.abs(offset)))))
        hidden = hidden if dropout is None else dropout(hidden, block=index, layer=0)
        bias = self.meta2(hidden)
        bias = bias if dropout is None else dropout(bias, block=index, layer=1)
        return rearrange(bias, "q k h -> h q k")


def _length(x: Float[Array, "*b c"]) -> Float[Array, "*b"]:
    """Euclidean length, with gradient 0 at 0."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
