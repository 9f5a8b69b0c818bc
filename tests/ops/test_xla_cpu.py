import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.ops.xla_cpu import later, stored

ODD = [0.0, -0.0, 2e-38, -3.7, jnp.inf, jnp.nan]


def test_stored_numbers_and_their_cotangents_are_exact():
    x = jnp.asarray([[ODD]])
    value, back = jax.jit(lambda x: jax.vjp(stored, x))(x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(back(x)[0], x)


def test_numbers_that_wait_are_exact_whatever_they_wait_for():
    x = jnp.asarray([ODD] * len(ODD))
    np.testing.assert_array_equal(jax.jit(later)(x, than=jnp.asarray(ODD)[:, None]), x)
