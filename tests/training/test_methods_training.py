"""Training through other methods than top-k: gradients in masked sizes, and a run whose keep rate falls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import random_mel, small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.registry import METHODS
from jaxprune.training.pruning import Prune
from jaxprune.training.schedules import compilations, stages_at

MEL = jnp.asarray(random_mel(small("ast"), clips=2))


@pytest.mark.parametrize(("family", "method"), [("ast", "tome"), ("audiomae", "evit"), ("ast", "hybrid")])
def test_gradients_in_a_shared_size_are_those_of_the_rates_own(family, method):
    model = jaxprune.build(small(family, width=24, depth=2), seed=1)
    graph, state = nnx.split(model)
    prune = Prune(method=method, keep_rate=0.4, blocks=(0, 1), shrink_epochs=1, buckets=2)
    rate = 0.85

    @jax.jit
    def gradient(policy):
        return jax.grad(lambda state: (nnx.merge(graph, state)(MEL, policy).logits ** 2).sum())(state)

    score = METHODS[method].score(model.config, 0)
    shared = stages_at(rate, prune, config=model.config, patches=64)
    own = METHODS[method].exact(model.config, dict.fromkeys((0, 1), rate), 64)
    assert any(one.size(64) > other.size(64) for one, other in zip(shared.values(), own.values(), strict=True))
    exact, masked = (gradient(jaxprune.Policy(score, stages)) for stages in (own, shared))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(masked), strict=True):
        np.testing.assert_allclose(b, a, atol=3e-6 * max(1.0, float(jnp.abs(a).max())))


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if method.between))
def test_losses_in_a_shared_size_are_those_of_exact_gathering(method):
    """Of every method whose rate may be drawn from a range."""
    model = jaxprune.build(small("audiomae", width=24, depth=2), seed=1)
    prune, labels = Prune(method=method, sample=("0.4-1",), blocks=(0, 1), buckets=2), jnp.array([1, 4])
    score = METHODS[method].score(model.config, 3)
    graph, state = nnx.split(model)

    @jax.jit
    def losses(policy):
        logits = nnx.merge(graph, state)(MEL, policy).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    shared = stages_at(0.85, prune, config=model.config, patches=64)
    own = METHODS[method].exact(model.config, dict.fromkeys((0, 1), 0.85), 64)
    assert any(one.size(64) > other.size(64) for one, other in zip(shared.values(), own.values(), strict=True))
    found, expected = (losses(jaxprune.Policy(score, stages)) for stages in (shared, own))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_random_choice_is_another_in_each_step_and_no_other_program():
    config = small("ast", width=24)
    first, second = (METHODS["random"].score(config, step) for step in (1, 2))
    assert (jax.random.key_data(first.key) != jax.random.key_data(second.key)).any()
    assert jax.tree.structure(first) == jax.tree.structure(second)


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if method.between))
def test_any_rate_training_compiles_ten_sizes_at_most(method):
    prune = Prune(method=method, sample=("0.4-1",))
    drawn = np.random.default_rng(0).uniform(0.4, 1, 200).tolist()
    assert compilations([1.0, 0.4, *drawn], prune, config=small("ast", width=24), patches=64) <= 10


def test_a_listed_rate_of_pooling_is_a_size_of_its_own():
    prune = Prune(method="pool", sample=("1", "0.7", "0.5"))
    config = small("audiomae", width=24)
    sizes = [sorted(stages_at(rate, prune, config=config, patches=64)) for rate in (1, 0.7, 0.5)]
    assert sizes[0] == []
    assert len(sizes[1]) >= 1
    assert sizes[1] != sizes[2]
    with pytest.raises(ValueError, match="does not occur"):
        stages_at(0.3, prune, config=config, patches=64)
    assert dataclasses.replace(prune, sample=("1", "0.6")).method == "pool"
