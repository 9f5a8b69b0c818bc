"""The losses that train DynamicViT's predictors (Rao et al. 2021, section 3.4).

Beside the classes' loss: a stage's share of kept patches is drawn to its ratio, and the model is held to the unpruned
teacher's classes and tokens. Each loss is a number a clip, to be averaged over clips. b clips, n patches, d width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Decisions = Float[Array, "stages b n"]


def ratio_loss(decisions: Decisions, ratios: tuple[float, ...]) -> Float[Array, "b"]:
    """The squared difference of each clip's kept share and the ratio, summed over stages.

    So every clip is bound to the ratio. The published weight of 2 is for this sum divided by the number of stages.
    """
    return jnp.square(decisions.mean(axis=2) - jnp.asarray(ratios)[:, None]).sum(axis=0)


def batch_ratio_loss(decisions: Decisions, ratios: tuple[float, ...]) -> Float[Array, "b"]:
    """`ratio_loss` of the share kept in the whole batch, the same number for every clip.

    A clip may keep more than another (`dynamic` in the original code).
    """
    loss = jnp.square(decisions.mean(axis=(1, 2)) - jnp.asarray(ratios)).sum()
    return jnp.broadcast_to(loss, decisions.shape[1:2])


def token_square_error(
    student: Float[Array, "b n d"], teacher: Float[Array, "b n d"], *, kept: Float[Array, "b n"]
) -> Float[Array, "b"]:
    """The squared difference of tokens, averaged over channels and over the kept patches of the batch.

    `kept` is the last stage's decision. Patches above 0.5 count. A clip's number is its part of the batch's mean, times
    b. No gradient goes to the teacher or to the decision. A batch without a kept patch has loss 0.
    """
    return _over_kept(jnp.square(student - jax.lax.stop_gradient(teacher)).mean(axis=-1), kept)


def token_divergence(
    student: Float[Array, "b n d"], teacher: Float[Array, "b n d"], *, kept: Float[Array, "b n"]
) -> Float[Array, "b"]:
    """`token_square_error` with another distance of two tokens: the divergence of their channels' softmax.

    KL(teacher || student), as the original has it for LV-ViT.
    """
    return _over_kept(divergence(student, teacher), kept)


def divergence(student: Float[Array, "*b y"], teacher: Float[Array, "*b y"]) -> Float[Array, "*b"]:
    """KL(teacher || student) of the two softmaxes over the last axis, in nats. No gradient goes to the teacher."""
    student, teacher = jax.nn.log_softmax(student), jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
    return (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)


def binary_divergence(student: Float[Array, "*b y"], teacher: Float[Array, "*b y"]) -> Float[Array, "*b"]:
    """KL(teacher || student) of each class's sigmoid, averaged over classes, in nats: for clips of several classes.

    No gradient goes to the teacher. The original has single labels alone.
    """
    teacher = jax.lax.stop_gradient(teacher)
    present = jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student)
    absent = jax.nn.log_sigmoid(-teacher) - jax.nn.log_sigmoid(-student)
    share = jax.nn.sigmoid(teacher)
    return (share * present + (1 - share) * absent).mean(axis=-1)


def _over_kept(error: Float[Array, "b n"], kept: Float[Array, "b n"]) -> Float[Array, "b"]:
    """Each clip's part, times b, of the mean over all kept patches of the batch."""
    counts = jax.lax.stop_gradient(kept) > 0.5
    return error.shape[0] * jnp.sum(error, axis=1, where=counts) / jnp.maximum(counts.sum(), 1)
