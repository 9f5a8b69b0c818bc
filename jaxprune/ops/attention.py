"""Softmax attention that also says what every token received, by the way that suits the device.

Nothing holds all the weights `(b, h, s, s)`: bfloat16 goes through a library's fused kernels on a GPU
(`jaxprune.ops.attention_cudnn`), all else in parts (`jaxprune.ops.attention_chunked`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxprune.ops import attention_chunked, attention_cudnn, attention_weighted

Project = Callable[[Float[Array, "b s d"], slice], Float[Array, "b s r h c"]]

ROLES = slice(0, 3)  # queries, keys, values


def attend(
    tokens: Float[Array, "b s d"],
    project: Project,
    *,
    queries: slice,
    mask: Bool[Array, "b s"] | None,
    bias: Float[Array, "b s"] | None = None,
    decision: Float[Array, "b s"] | None = None,
) -> tuple[Float[Array, "b rows h c"], Float[Array, "b s"]]:
    """Softmax attention, scale c ** -0.5, and the attention that each token received.

    The second result is float32, the mean over heads and over the unmasked `queries`. `project(tokens, roles)` gives
    the tokens as queries, keys or values, or as several of them. A token where `mask` is False gets weight 0 as a key
    and does not count as a query. Its own output row is finite; ignore it. The cuDNN path may append one padding row;
    ignore it. `bias` is added to the scaled logits of a key, the same for all heads and queries. It gets no gradient,
    and attention that has one does not go through cuDNN. `decision` says how much each key counts, as DynamicViT trains
    (`jaxprune.ops.attention_weighted`). Both results have a gradient. Raises `ValueError` for a decision with a bias.
    """
    if decision is not None:
        if bias is not None:
            raise ValueError("tokens of different sizes cannot be decided on; train predictors without merging")
        decision = decision if mask is None else decision * mask
        return attention_weighted.attend(project(tokens, ROLES), queries=queries, decision=decision)
    qkv = jax.eval_shape(lambda tokens: project(tokens, ROLES), tokens)
    if bias is None and attention_cudnn.suits(qkv.dtype, channels=qkv.shape[-1]):
        return attention_cudnn.attend(tokens, project, queries=queries, mask=mask)
    return attention_chunked.attend(project(tokens, ROLES), queries=queries, mask=mask, bias=bias)


def mean_keys(tokens: Float[Array, "b s d"], project: Project) -> Float[Array, "b s c"]:
    """The tokens' keys, averaged over heads, float32. XLA finds the projection that `attend` makes and shares it."""
    return project(tokens, ROLES)[:, :, 1].astype(jnp.float32).mean(axis=2)
