"""The two published optimisers as optax transformations, with their parameter groups.

`optimizer` makes one from a recipe's settings. Groups are read off the parameters' dotted names (as in
`jaxprune.checkpoint.leaves`), so a transformation works on any tree that has them: a model's `nnx.Param` state or the
same arrays as plain dictionaries. Only trained parameters get there: AudioMAE's position table is none. The learning
rate's course is `jaxprune.training.schedules`' matter.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.checkpoint import dotted
from jaxprune.training.settings import AdamL2, AdamW

Tree = Any  # a pytree of arrays, one per parameter
NEVER_DECAYED = ("extra_tokens", "positions")
# True for parameters that weight decay acts on, by dotted name and number of axes.
Decayed = Callable[[str, int], bool]
# The factor on a parameter's learning rate, by dotted name and the update's number.
Pace = Callable[[str, jax.Array], jax.Array | float]


def finetuning_decay(name: str, ndim: int) -> bool:
    """The rule of both fine-tuning codes: no decay of biases, norms, extra tokens and position tables."""
    return ndim > 1 and name.partition(".")[0] not in NEVER_DECAYED


@dataclasses.dataclass(frozen=True)
class Group:
    """A parameter's part in training: `layer` 0 (embeddings) to depth + 1 (after the blocks), and `decayed` or not."""

    layer: int
    decayed: bool


def optimizer(
    settings: AdamW | AdamL2,
    learning_rate: optax.ScalarOrSchedule,
    *,
    depth: int,
    decayed: Decayed = finetuning_decay,
    pace: Pace | None = None,
) -> optax.GradientTransformation:
    """The optimiser for a model of `depth` blocks, for `optax` or `nnx.Optimizer(model, ..., wrt=nnx.Param)`.

    `learning_rate` is a number or a schedule of the update's number. `decayed` chooses the parameters that AdamW's
    weight decay acts on. `pace` gives single parameters a learning rate of their own (None: all have the same).
    Gradients are clipped to the settings' global norm (torch divides by the norm plus 1e-6 there, optax by the norm),
    then handed to the optimiser. Steps equal `torch.optim.AdamW` and `torch.optim.Adam`
    (`test_ten_steps_equal_pytorch`).
    """
    match settings:
        case AdamW():
            steps = adamw(settings, learning_rate, depth=depth, decayed=decayed)
        case AdamL2():
            steps = adam_l2(settings, learning_rate)
    steps = steps if pace is None else optax.chain(steps, paced(pace))
    return optax.chain(optax.clip_by_global_norm(settings.clip), steps) if settings.clip else steps


def paced(pace: Pace) -> optax.GradientTransformation:
    """Multiplies each parameter's update, weight decay included, by its factor. Moments see every gradient."""

    def update(updates: Tree, state: optax.ScaleByScheduleState, params: Tree | None = None) -> tuple[Tree, Any]:
        paced = map_named(lambda name, update: update * pace(name, state.count), updates)
        return paced, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.int32(0)), update)


def adamw(
    settings: AdamW, learning_rate: optax.ScalarOrSchedule, *, depth: int, decayed: Decayed
) -> optax.GradientTransformation:
    """AdamW whose updates, decay included, are scaled by layer_decay ** (depth + 1 - layer) (AudioMAE, BEiT)."""

    def scale(name: str, update: jax.Array) -> jax.Array:
        return update * settings.layer_decay ** (depth + 1 - group(name, ndim=update.ndim, depth=depth).layer)

    def mask(params: Tree) -> Tree:
        return map_named(lambda name, leaf: decayed(name, leaf.ndim), params)

    return optax.chain(
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=1e-8),
        optax.add_decayed_weights(settings.weight_decay, mask=mask),
        optax.stateless(lambda updates, params: map_named(scale, updates)),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam_l2(settings: AdamL2, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam on the gradient plus weight_decay times the parameter, for every parameter alike (AST)."""
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate),
    )


def group(name: str, *, ndim: int, depth: int) -> Group:
    """The group of a parameter, by its dotted name and number of axes, in a model of `depth` blocks.

    Patch projection, extra tokens and position table are layer 0, block i is layer i + 1, norms after the blocks and
    the head are depth + 1. Biases, norms, extra tokens and position tables are not decayed.
    """
    first = name.partition(".")[0]
    if first in (*NEVER_DECAYED, "patch_embed"):
        layer = 0
    elif match := re.match(r"encoder\.blocks\.(\d+)\.", name):
        layer = int(match[1]) + 1
    else:
        layer = depth + 1
    return Group(layer, decayed=finetuning_decay(name, ndim))


def map_named(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """A tree of the same structure, each leaf from its dotted name and value."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(tree_name(path), leaf), tree)


def tree_name(path: tuple) -> str:
    """A leaf's dotted name, from JAX's keys, without the `value` inside an `nnx.Variable`."""
    keys = [getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))) for entry in path]
    return dotted(tuple(key for key in keys if key != "value"))
