"""The layers that blocks and heads are made of, as `nnx` modules: linear, GELU with a linear layer, and LayerNorm.

What they compute is everyone's; their gradients are written out because of what automatic ones keep from the forward
pass. These keep a layer's input and compute the rest again, which takes less time than reading it from memory.
Parameters are float32, products run in the compute dtype, everything between products is float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.ops.xla_cpu import later, product

XAVIER = nnx.initializers.xavier_uniform()


class Linear(nnx.Linear):
    """A biased linear layer on the last axis of `(*b, d)`, computed as one product of two matrices; all its columns, or
    some.

    It starts as MAE's do, Xavier uniform with zero bias: unlike timm's fixed deviation of 0.02, its scale follows the
    width.
    """

    def __init__(self, d: int, e: int, *, dtype: Any, rngs: nnx.Rngs, init: nnx.Initializer = XAVIER):
        super().__init__(d, e, dtype=dtype, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"], columns: slice = slice(None)) -> Float[Array, "*b e"]:
        kernel, bias = self.kernel[...][:, columns], self.bias[...][columns]
        # With more axes, XLA's CPU compiler makes the gradients from transposed copies of the cotangent, element by
        # element, and computes whatever led to the cotangent once more inside those copies.
        y = self.product(*self.promote_dtype((x.reshape(-1, x.shape[-1]), kernel, bias), dtype=self.dtype))
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def product(
        self, x: Float[Array, "rows d"], kernel: Float[Array, "d e"], bias: Float[Array, "e"]
    ) -> Float[Array, "rows e"]:
        """The product in the compute dtype."""
        return product(x, kernel) + bias[None]


class GeluLinear(Linear):
    """The exact GELU of every number, then a linear layer."""

    def product(self, x, kernel, bias):
        return gelu_product(x, kernel, bias)


@jax.custom_vjp
def gelu_product(
    x: Float[Array, "rows d"], kernel: Float[Array, "d e"], bias: Float[Array, "e"]
) -> Float[Array, "rows e"]:
    """gelu(x) @ kernel + bias. Its gradient keeps x."""
    return product(gelu(x), kernel) + bias[None]


def gelu_product_gradient(kept, d_y):
    """Gradients of `gelu_product`; GELU and its slope are computed again from the kept input."""
    x, kernel = kept
    x = later(x, than=d_y)
    d_x = product(d_y, kernel.T).astype(jnp.float32) * gelu_slope(x)
    return d_x.astype(x.dtype), product(gelu(x).T, d_y), d_y.sum(axis=0)


gelu_product.defvjp(lambda x, kernel, bias: (gelu_product(x, kernel, bias), (x, kernel)), gelu_product_gradient)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The exact GELU as PyTorch writes it. `jax.nn.gelu` goes through erfc, which takes a CPU two to three times as
    long."""
    wide = x.astype(jnp.float32)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def gelu_slope(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The derivative of `gelu`, float32."""
    x = x.astype(jnp.float32)
    return normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5


def normal_cdf(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The standard normal distribution function, through erf."""
    return 0.5 * (1 + jax.lax.erf(x * 2**-0.5))


class LayerNorm(nnx.LayerNorm):
    """LayerNorm on the last axis with float32 statistics; the two-pass variance, because the one-pass form cancels."""

    def __init__(self, width: int, *, eps: float, dtype: Any, rngs: nnx.Rngs):
        super().__init__(width, epsilon=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        rows = x.reshape(-1, x.shape[-1])
        y = normalised(rows, self.scale[...], self.bias[...], self.epsilon).astype(self.dtype)
        return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalised(
    x: Float[Array, "rows d"], scale: Float[Array, "d"], bias: Float[Array, "d"], eps: float
) -> Float[Array, "rows d"]:
    """Zero mean and unit variance, times scale, plus bias; float32. Its gradient keeps x, mean and deviation."""
    return with_statistics(x, scale, bias, eps)[0]


def with_statistics(x, scale, bias, eps):
    """The normalised rows, and what the gradient needs of them."""
    mean = x.mean(axis=1, keepdims=True, dtype=jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(x - mean).mean(axis=1, keepdims=True) + eps)
    return (x - mean) * inverse * scale[None] + bias[None], (x, mean, inverse, scale)


def normalised_gradient(_eps, kept, d_y):
    """Gradients of LayerNorm from the kept input and its statistics."""
    x, mean, inverse, scale = kept
    unit = (later(x, than=d_y) - mean) * inverse
    d_unit = d_y * scale[None]
    along = (d_unit * unit).mean(axis=1, keepdims=True)
    d_x = inverse * (d_unit - d_unit.mean(axis=1, keepdims=True) - unit * along)
    return d_x.astype(x.dtype), (d_y * unit).sum(axis=0), d_y.sum(axis=0)


normalised.defvjp(with_statistics, normalised_gradient)
