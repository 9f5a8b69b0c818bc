import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import random_mel, small
from quick import quick_compiling  # noqa: F401

from jaxprune.models import build, masked_topk, topk
from jaxprune.ops import attention_cudnn


@pytest.fixture
def elsewhere(monkeypatch):
    """XLA's implementation of the library function that cuDNN implements on a GPU."""
    monkeypatch.setattr(attention_cudnn, "LIBRARY", "xla")


@pytest.fixture
def works():
    """`works`, that tries afresh."""
    attention_cudnn.works.cache_clear()
    yield attention_cudnn.works
    attention_cudnn.works.cache_clear()


@pytest.mark.parametrize("family", ["ast", "audiomae"])
@pytest.mark.parametrize(
    ("policy", "options"), [(topk, {}), (masked_topk, {"multiple": 4})], ids=["gathered", "masked"]
)
def test_a_model_answers_through_fused_kernels_as_it_does_in_parts(elsewhere, monkeypatch, family, policy, options):
    """Few queries (AST) and many (AudioMAE), odd and even numbers of tokens: same answers, patches and gradients."""
    model = build(small(family, depth=3), seed=1)
    rule = policy(model, {1: 0.7, 2: 0.6}, **options)
    log_mel = jnp.asarray(random_mel(model.config, clips=2))

    def run():
        def loss(model):
            output = model(log_mel, rule)
            return (output.logits**2).sum(), output

        (_, output), gradient = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(model)
        return output, jax.tree.leaves(gradient)

    parts, parts_gradient = run()
    monkeypatch.setattr(attention_cudnn, "suits", lambda *_, **__: True)
    monkeypatch.setattr(attention_cudnn, "QUERIES", 4)
    fused, fused_gradient = run()
    np.testing.assert_allclose(fused.logits, parts.logits, atol=1e-5)
    for ours, theirs in zip(fused.trace, parts.trace, strict=True):
        assert (ours.patch_ids == theirs.patch_ids).all()
        np.testing.assert_allclose(ours.score, theirs.score, atol=1e-6)
    for ours, theirs in zip(fused_gradient, parts_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, float(jnp.abs(theirs).max())))


def test_sums_of_weights_stay_exact_to_a_thousandth_in_half_precision(elsewhere):
    """Although the library rounds its results to 8 bits, 4 in a thousand."""
    q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 513, 2, 64)), jnp.bfloat16)
    asked = jnp.ones((1, 513)).at[:, 0].set(0)
    _, sums = attention_cudnn.mixed_and_sums(q, k, v, None, asked, 513)
    logits = np.einsum("bqhc,bkhc->bhqk", np.asarray(q, np.float64), np.asarray(k, np.float64)) / 8
    weights = np.exp(logits)
    expected = (weights / weights.sum(axis=-1, keepdims=True))[:, :, 1:].sum(axis=(1, 2))
    np.testing.assert_allclose(sums, expected, rtol=1e-3)


def test_a_library_that_agrees_with_the_plain_formula_is_taken_also_while_tracing(elsewhere, works):
    assert jax.jit(lambda x: x if works(16) else -x)(1) == 1


def test_a_library_that_is_not_there_is_done_without(works):
    """As cuDNN is on a CPU."""
    with pytest.warns(RuntimeWarning, match=r"without cudnn \(.*cuDNN"):
        assert not works(16)


def test_a_library_that_gives_other_results_is_done_without(elsewhere, works, monkeypatch):
    mix = attention_cudnn.mix
    monkeypatch.setattr(attention_cudnn, "mix", lambda q, k, v, mask, real: mix(q, k, v, mask, q.shape[1]))
    with pytest.warns(RuntimeWarning, match="off by"):
        assert not works(16)


@pytest.mark.parametrize(
    ("dtype", "channels", "backend", "way"),
    [
        (jnp.bfloat16, 64, "gpu", True),
        (jnp.bfloat16, 64, "cpu", False),
        (jnp.bfloat16, 64, "tpu", False),
        (jnp.float32, 64, "gpu", False),
        (jnp.bfloat16, 12, "gpu", False),
        (jnp.bfloat16, 256, "gpu", False),
    ],
)
def test_only_what_the_library_can_do_goes_through_it(monkeypatch, dtype, channels, backend, way):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention_cudnn, "works", lambda *_: True)
    assert attention_cudnn.suits(dtype, channels=channels) is way
