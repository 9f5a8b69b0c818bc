import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import small

from jaxprune.models import abstract
from jaxprune.ops import attention_chunked as attention_parts
from jaxprune.ops.layers import GeluLinear, LayerNorm, Linear

ROWS, D, E = 10, 6, 4
X = np.random.default_rng(0).standard_normal((2, 5, D)).astype(np.float32) * 3
LAYERS = {  # ours, PyTorch's
    "linear": (
        lambda: Linear(D, E, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        lambda x, weight, bias: torch.nn.functional.linear(x, weight.T, bias),
    ),
    "gelu": (
        lambda: GeluLinear(D, E, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        lambda x, weight, bias: torch.nn.functional.linear(torch.nn.functional.gelu(x), weight.T, bias),
    ),
    "norm": (
        lambda: LayerNorm(D, eps=1e-2, dtype=jnp.float32, rngs=nnx.Rngs(0)),
        lambda x, weight, bias: torch.nn.functional.layer_norm(x, (D,), weight, bias, eps=1e-2),
    ),
}


def weights(layer: nnx.Module, *, seed: int) -> dict[str, np.ndarray]:
    """Random ones in the layer, given back as `weight` and `bias`."""
    rng, drawn = np.random.default_rng(seed), {}
    for _, leaf in nnx.to_flat_state(nnx.state(layer)):
        leaf[...] = jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)
    for name in ("kernel", "scale", "bias"):
        if (leaf := getattr(layer, name, None)) is not None:
            drawn["bias" if name == "bias" else "weight"] = np.asarray(leaf[...])
    return drawn


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_gradients_equal_pytorchs(name):
    make, reference = LAYERS[name]
    layer = make()
    drawn = {key: torch.tensor(value, requires_grad=True) for key, value in weights(layer, seed=1).items()}
    x = torch.tensor(X, requires_grad=True)
    expected = reference(x, **drawn)
    expected.square().sum().backward()

    def loss(layer, x):
        y = layer(x)
        return (y**2).sum(), y

    (d_layer, d_x), y = nnx.jit(nnx.grad(loss, argnums=(0, 1), has_aux=True))(layer, jnp.asarray(X))
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_x, x.grad, rtol=1e-5, atol=1e-4)
    d_weight = d_layer.scale if name == "norm" else d_layer.kernel
    np.testing.assert_allclose(d_weight[...], drawn["weight"].grad, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(d_layer.bias[...], drawn["bias"].grad, rtol=1e-5, atol=1e-4)


def test_some_columns_of_a_linear_layer_are_those_of_the_whole():
    layer = Linear(D, E, dtype=jnp.float32, rngs=nnx.Rngs(0))
    weights(layer, seed=2)
    x = jnp.asarray(X)
    np.testing.assert_allclose(layer(x, slice(1, 3)), layer(x)[..., 1:3], atol=1e-6)


def test_half_precision_is_rounded_once_between_products():
    """GELU in float32 of the rounded input, then one rounding: what PyTorch's autocast does."""
    layer = GeluLinear(D, D, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.eye(D)
    x = torch.tensor(X).bfloat16()
    expected = torch.nn.functional.gelu(x)
    np.testing.assert_array_equal(
        np.asarray(layer(jnp.asarray(X, jnp.bfloat16)), np.float32), np.asarray(expected.float())
    )


@pytest.mark.compiled
def test_a_block_keeps_little_more_than_what_enters_its_layers(monkeypatch):
    """That is 1 + 1 + 3 + 1 arrays of tokens for attention, 1 + 1 + 4 for the MLP. It is 17 in all here, and 27 if what
    the gradients compute again is taken for the forward pass's."""
    monkeypatch.setattr(attention_parts, "WHOLE_BYTES", 0)

    def held(depth: int) -> float:
        config = small("audiomae", depth=depth)
        graph, state = nnx.split(abstract(config))
        mel = jax.ShapeDtypeStruct((32, config.frames, config.mels), jnp.float32)
        loss = lambda state, mel: nnx.merge(graph, state)(mel).logits.sum()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(state, mel).compile()
        tokens = 4 * 32 * (1 + config.patches) * config.width
        return program.memory_analysis().temp_size_in_bytes / tokens

    assert (held(6) - held(3)) / 3 < 20
