"""DynamicViT's losses, against plain PyTorch written clip by clip and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from quick import quick_compiling  # noqa: F401
from reduction.torch_dynamic import distillation, ratio_loss

from jaxprune.training import dynamic_losses as losses

STAGES, CLIPS, PATCHES, WIDTH = 3, 4, 10, 8
RATIOS = (0.7, 0.49, 0.343)
RNG = np.random.default_rng(0)
DECISIONS = (RNG.random((STAGES, CLIPS, PATCHES)) < 0.6).astype(np.float32)
STUDENT, TEACHER = RNG.standard_normal((2, CLIPS, PATCHES, WIDTH)).astype(np.float32)


def pulled(function, *arrays):
    """A loss that averages a number a clip, and its gradient by the first array."""
    value, gradient = jax.value_and_grad(lambda x, *rest: function(x, *rest).mean())(*map(jnp.asarray, arrays))
    return float(value), np.asarray(gradient)


@pytest.mark.parametrize("of_batch", [False, True])
def test_the_ratio_binds_each_clip_or_the_batch(of_batch):
    ours = {False: losses.ratio_loss, True: losses.batch_ratio_loss}[of_batch]
    value, gradient = pulled(lambda decisions: ours(decisions, RATIOS), DECISIONS)
    theirs = torch.tensor(DECISIONS, requires_grad=True)
    expected = ratio_loss(theirs, RATIOS, of_batch=of_batch)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-7)


def test_a_clip_may_keep_more_than_another_only_where_the_batch_is_bound():
    decisions = np.ones((1, 2, PATCHES), np.float32)
    decisions[:, 1] = 0
    each = losses.ratio_loss(jnp.asarray(decisions), (0.5,))
    together = losses.batch_ratio_loss(jnp.asarray(decisions), (0.5,))
    np.testing.assert_allclose(each, 0.25, atol=1e-7)
    np.testing.assert_allclose(together, 0, atol=1e-7)


@pytest.mark.parametrize("mse", [True, False])
def test_tokens_are_compared_where_they_are_kept(mse):
    ours = losses.token_square_error if mse else losses.token_divergence
    kept = DECISIONS[-1].copy()
    kept[0] = 0  # a clip that keeps nothing
    value, gradient = pulled(lambda student: ours(student, jnp.asarray(TEACHER), kept=jnp.asarray(kept)), STUDENT)
    student = torch.tensor(STUDENT, requires_grad=True)
    expected = distillation(student, torch.tensor(TEACHER), kept=torch.tensor(kept), mse=mse)
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_the_divergence_of_classes_is_torchs_distributions(binary):
    student, teacher = RNG.standard_normal((2, CLIPS, 5)).astype(np.float32)
    ours = losses.binary_divergence if binary else losses.divergence
    made = torch.distributions.Bernoulli if binary else torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(*(made(logits=torch.tensor(x)) for x in (teacher, student)))
    expected = expected.mean(dim=-1) if binary else expected
    np.testing.assert_allclose(ours(jnp.asarray(student), jnp.asarray(teacher)), expected, atol=1e-6)


@pytest.mark.parametrize("ours", [losses.token_square_error, losses.token_divergence])
def test_a_batch_that_keeps_nothing_has_loss_zero(ours):
    value, gradient = pulled(
        lambda student: ours(student, jnp.asarray(TEACHER), kept=jnp.zeros((CLIPS, PATCHES))), STUDENT
    )
    assert value == 0
    assert not gradient.any()
