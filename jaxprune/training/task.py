"""A training's task: the one value that tells fine-tuning from pretraining.

The step (`jaxprune.training.step`) and the loop (`jaxprune.training.loop`) are the same for every task. A task gives
them the recipe, the plan of each update, each clip's loss and the evaluation. `jaxprune.training.classification` is
fine-tuning.
"""

from typing import Any, Protocol, runtime_checkable

from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from jaxprune.data.batches import Batches
from jaxprune.parallel.devices import Layout
from jaxprune.training.augment import Number
from jaxprune.training.events import Evaluation
from jaxprune.training.schedules import Course


@struct.dataclass
class Sound:
    """A batch on the device: `jaxprune.data.batches.Batch` without its indices."""

    waveforms: Float[Array, "b samples"]
    lengths: Int[Array, "b"]
    targets: Float[Array, "b y"]
    weights: Float[Array, "b"]


@runtime_checkable
class Plan(Protocol):
    """The host's decisions for one update, a pytree. `keep_rate_now`, the share of patches kept, is reported."""

    keep_rate_now: Number


@runtime_checkable
class Task(Protocol):
    """Something to learn from batches, and its measure. `steps_per_epoch` is the loader's (`Batches.steps`)."""

    recipe: Course
    steps_per_epoch: int

    def plan(self, step: int) -> Plan:
        """An update's plan. A plan of another structure compiles the step anew."""

    def losses(self, model: nnx.Module, key: Key[Array, ""], sound: Sound, plan: Plan) -> Float[Array, "b"]:
        """Each clip's loss, inside the jitted step. Everything random is drawn from `key`."""

    def decayed(self, name: str, ndim: int) -> bool:
        """True for parameters that weight decay acts on, by dotted name and number of axes."""

    def evaluate(self, model: nnx.Module, batches: Batches, *, step: int, layout: Layout, **asked: Any) -> Evaluation:
        """The model on every clip of the batches, without augmentation, after `step` updates."""
