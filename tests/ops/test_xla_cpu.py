import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.ops.xla_cpu import later, product, stored

ODD = [0.0, -0.0, 2e-38, -3.7, jnp.inf, jnp.nan]


def test_stored_numbers_and_their_cotangents_are_exact():
    x = jnp.asarray([[ODD]])
    value, back = jax.jit(lambda x: jax.vjp(stored, x))(x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(back(x)[0], x)


def test_numbers_that_wait_are_exact_whatever_they_wait_for():
    x = jnp.asarray([ODD] * len(ODD))
    np.testing.assert_array_equal(jax.jit(later)(x, than=jnp.asarray(ODD)[:, None]), x)


def test_products_of_bfloat16_are_those_of_its_numbers_forward_and_backward():
    rng = np.random.default_rng(0)
    x, y, d = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((33, 48), (48, 20), (33, 20)))
    found, back = jax.jit(lambda x, y: jax.vjp(product, x, y))(x, y)
    wide = [np.asarray(array, np.float64) for array in (x, y, d)]
    expected = (wide[0] @ wide[1], wide[2] @ wide[1].T, wide[0].T @ wide[2])
    for ours, exact in zip((found, *back(d)), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=2**-8, atol=1e-5)


def test_on_a_cpu_no_product_of_bfloat16_is_one_of_float32():
    x, y = jnp.ones((64, 64), jnp.bfloat16), jnp.ones((64, 64), jnp.bfloat16)
    lowered = jax.jit(product).lower(x, y).as_text()
    assert "(tensor<64x64xbf16>, tensor<64x64xbf16>) -> tensor<64x64xf32>" in lowered


def test_products_of_float32_are_left_alone():
    x = jnp.ones((3, 3))
    assert "dot_general" in str(jax.make_jaxpr(product)(x, x))
    assert "platform_index" not in str(jax.make_jaxpr(product)(x, x))
