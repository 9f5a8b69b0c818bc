"""One update on the device: from waveforms and a key to new weights, in one jitted program.

`Program` holds a task's program, which is compiled once for every structure of a plan. It keeps no state: the same
arguments give the same result on any number of devices, up to rounding. `jaxprune.training.task` says what is learned,
`jaxprune.training.loop` feeds the batches; where arrays lie is `jaxprune.parallel.devices`' matter.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from jaxprune.checkpoint import dotted
from jaxprune.evaluation.metrics import weighted_mean
from jaxprune.parallel.devices import Layout, on_host
from jaxprune.training import schedules
from jaxprune.training.optim import Pace, optimizer
from jaxprune.training.task import Plan, Sound, Task

Weights = dict[str, Array]  # by dotted name


@struct.dataclass
class State:
    """Everything that changes in training, and `step`, the number of updates made.

    `params` are trained and `tables` are fixed, by dotted name. `optimizer` is the optimiser's own state. `average` is
    the running average of `params`, or empty where the recipe has none.
    """

    params: Weights
    tables: Weights
    optimizer: Any
    step: Int[Array, ""]
    average: Weights = struct.field(default_factory=dict)

    @property
    def outcome(self) -> Weights:
        """The trained parameters to evaluate and to save: their average, where there is one."""
        return self.average or self.params


@struct.dataclass
class Measured:
    """An update's report: the mean loss, each clip's (in the batch's order), the gradient's global norm, the learning
    rate."""

    loss: Float[Array, ""]
    losses: Float[Array, "b"]
    gradient: Float[Array, ""]
    lr: Float[Array, ""]


class Program:
    """The jitted update of a task for models like the given one, on the devices of a layout.

    `pace` gives single parameters a learning rate of their own (`jaxprune.training.optim.optimizer`).
    `compilations` counts the sizes that it was traced for.
    """

    def __init__(self, task: Task, model: nnx.Module, *, layout: Layout, pace: Pace | None = None):
        self.task, self.layout = task, layout
        self.compilations = 0
        self._lr = schedules.learning_rate(task.recipe, steps_per_epoch=task.steps_per_epoch)
        self._optimizer = optimizer(
            task.recipe.optimizer, self._lr, depth=model.config.depth, decayed=task.decayed, pace=pace
        )
        self._graph, state = nnx.split(model)
        # Shapes alone: the program holds no weights.
        self._leaves = [
            (path, leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)))
            for path, leaf in nnx.to_flat_state(state)
        ]
        self._step = jax.jit(self._update, donate_argnums=0)

    def begin(self, model: nnx.Module) -> State:
        """The state before the first update, of copies: the program reuses its buffers, the caller's model stays."""
        params, tables = (
            self.layout.put({dotted(path): on_host(leaf[...]) for path, leaf in nnx.to_flat_state(part)})
            for part in nnx.state(model, nnx.Param, ...)
        )
        moments = jax.jit(lambda params: self.layout.lay(self._optimizer.init(params)))(params)
        average = jax.tree.map(jnp.copy, params) if self.task.recipe.loop.ema else {}
        return State(params, tables, moments, self.layout.put(jnp.int32(0)), average)

    def key(self, seed: int) -> Key[Array, ""]:
        """The key of a run. The seed is no part of the program, so that runs share it."""
        return jax.jit(jax.random.key, out_shardings=self.layout.whole)(seed)

    def __call__(self, state: State, key: Key[Array, ""], sound: Sound, plan: Plan) -> tuple[State, Measured]:
        """One update. It takes the state's buffers, and returns before the device is done."""
        return self._step(state, key, sound, plan)

    def lowered(self, state: State, key: Key[Array, ""], sound: Sound, plan: Plan) -> jax.stages.Lowered:
        """The program for such arguments before XLA has it. `sound` may be shapes that say where they lie."""
        shape = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.layout.whole)
        return self._step.lower(self.layout.describe(state), shape, sound, plan)

    def model(self, weights: Weights) -> nnx.Module:
        """The model that has these weights, `params` and `tables` together."""
        leaves = [(path, leaf.replace(weights[dotted(path)])) for path, leaf in self._leaves]
        return nnx.merge(self._graph, nnx.from_flat_state(leaves))

    def _update(self, state: State, key: Key[Array, ""], sound: Sound, plan: Plan) -> tuple[State, Measured]:
        """Averages the gradients of the batch's parts, and makes one update."""
        self.compilations += 1
        key = jax.random.fold_in(key, state.step)

        def of_part(params: Weights, key: Key[Array, ""], part: Sound) -> tuple[Array, Array]:
            model = self.model(self.layout.gathered(params | state.tables))
            losses = self.task.losses(model, key, part, plan)
            return weighted_mean(losses, part.weights), losses

        gradient_of = jax.value_and_grad(of_part, has_aux=True)
        parts = self.task.recipe.loop.accumulate
        if parts == 1:
            (loss, losses), gradient = gradient_of(state.params, key, sound)
        else:

            def add(total: Any, part: Int[Array, ""]) -> tuple[Any, Array]:
                # Part i has rows i, i + parts ...: each device keeps its own rows.
                rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:])[:, part], sound)
                (loss, losses), gradient = gradient_of(state.params, jax.random.fold_in(key, part), rows)
                return jax.tree.map(jnp.add, total, (loss, gradient)), losses

            nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
            total, losses = jax.lax.scan(add, nothing, jnp.arange(parts))
            loss, gradient = jax.tree.map(lambda x: x / parts, total)
            losses = losses.T.reshape(-1)
        updates, moments = self._optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        losses = jax.lax.with_sharding_constraint(losses, self.layout.rows)
        measured = Measured(loss, losses, optax.tree.norm(gradient), jnp.float32(self._lr(state.step)))
        average = averaged(state.average, params, step=state.step, decay=self.task.recipe.loop.ema)
        return self.layout.lay(State(params, state.tables, moments, state.step + 1, average)), measured


def averaged(average: Weights, params: Weights, *, step: Int[Array, ""], decay: float) -> Weights:
    """The running average after the update of number `step`, counted from 0: d average + (1 - d) params.

    d is the decay, or (1 + step) / (10 + step) where that is less, so that the starting weights are soon forgotten
    (Polyak and Juditsky 1992; the warm-up is TensorFlow's). An empty average stays empty.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return {name: d * leaf + (1 - d) * params[name] for name, leaf in average.items()}
