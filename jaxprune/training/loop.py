"""The training loop: a recipe's updates, one after the other, and what happens between them.

A `Training` holds the present state and moves it on. Before each update the task makes a plan on the host
(`jaxprune.training.task`). The rest is the device's (`jaxprune.training.step`), from a key that is a function of the
seed and the step. So a run is decided by its recipe, data and seed, and goes on from a saved state as if it had not
been interrupted. Steps are updates, counted from 0. A state of step n has seen n updates. Reports are
`jaxprune.training.events`, saving is `jaxprune.training.checkpoints`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.data.batches import Batch, Batches
from jaxprune.parallel.devices import Layout, on_host
from jaxprune.training.events import Evaluation, Step, not_finite, offenders
from jaxprune.training.optim import Pace
from jaxprune.training.step import Measured, Program, State, Weights
from jaxprune.training.task import Plan, Sound, Task


class Training:
    """A run of a task: its compiled programs, and the `state` that `fit` moves on.

    The devices of `layout` (default: all, each with all weights) share each batch. A batch, and each of its
    `accumulate` parts, must divide by their number. `pace` gives single parameters a learning rate of their own
    (`jaxprune.training.optim.optimizer`).

    Several processes each have such a training and their rows of every batch. All call the same methods.
    """

    def __init__(
        self,
        task: Task,
        model: nnx.Module,
        *,
        seed: int = 0,
        layout: Layout | None = None,
        pace: Pace | None = None,
    ):
        loop = task.recipe.loop
        self.layout = Layout() if layout is None else layout
        self.layout.check(loop.batch // loop.accumulate)
        self.task, self.recipe = task, task.recipe
        self.steps_per_epoch = task.steps_per_epoch
        self.total_steps = loop.epochs * self.steps_per_epoch
        self._program = Program(task, model, layout=self.layout, pace=pace)
        self._key = self._program.key(seed)
        self.state = self._program.begin(model)

    @property
    def compilations(self) -> int:
        """The sizes that the step was traced for so far."""
        return self._program.compilations

    def plan(self, step: int) -> Plan:
        """An update's plan, which the task makes."""
        return self.task.plan(step)

    def step(self, batch: Batch) -> Measured:
        """One update with a batch (this process's rows): changes `state`, and returns before the device is done."""
        return self._run(batch, self.plan(int(self.state.step)))

    def fit(
        self,
        batches: Batches,
        *,
        evaluate: Callable[[], Evaluation] | None = None,
        save: Callable[[int, Evaluation | None], Any] | None = None,
        save_every: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step | Evaluation]:
        """Trains from the present state to the end of the recipe, yielding each update and each evaluation.

        `batches` stand where the state does. `stop()` is asked after each update; if it is true, training leaves.
        `save(step, evaluation)` is called after each evaluation, every `save_every` steps, and before leaving. All
        updates until then have been yielded and were finite. An update is yielded while the next one runs. Raises
        `NotFinite` with the clips whose loss is not finite, before anything of it is saved. It names all clips of the
        batch if only the gradient is not finite.
        """
        clock, waited = _Clock(), batches.waited
        running = None
        for step in range(int(self.state.step), self.total_steps):
            batch, plan, sizes = next(batches), self.plan(step), self.compilations
            wait, waited = batches.waited - waited, batches.waited
            measured = self._run(batch, plan)
            compiled = self.compilations > sizes
            if running is not None:
                running.compiled |= compiled
                yield self._finish(running, batches, clock=clock)
            running = _Running(step, plan, indices=batch.indices, measured=measured, compiled=compiled, wait=wait)
            done, stopping = step + 1, stop()
            due = done % (self.recipe.loop.evaluate_every * self.steps_per_epoch) == 0 or done == self.total_steps
            if due or stopping or (save_every and done % save_every == 0):
                yield self._finish(running, batches, clock=clock)
                running = None
                evaluation = evaluate() if due and evaluate is not None else None
                if evaluation is not None:
                    yield evaluation
                if save is not None:
                    save(done, evaluation)
                clock.lap()
            if stopping:
                return

    def evaluate(self, batches: Batches, *, params: Weights | None = None, **asked: Any) -> Evaluation:
        """The present outcome (`State.outcome`, or `params`) on every clip of the batches, without augmentation.

        The weights stay where they are. The task does the work: `asked` is handed to it, and it raises what it raises.
        """
        model = self._program.model((self.state.outcome if params is None else params) | self.state.tables)
        return self.task.evaluate(model, batches, step=int(self.state.step), layout=self.layout, **asked)

    def model(self, params: Weights | None = None) -> nnx.Module:
        """The model with the present outcome (or `params`), as copies."""
        weights = (self.state.outcome if params is None else params) | self.state.tables
        return self._program.model({name: jnp.array(on_host(leaf), copy=True) for name, leaf in weights.items()})

    def put(self, state: State) -> None:
        """Takes a restored state as the present one."""
        self.state = self.layout.put(state)

    def _run(self, batch: Batch, plan: Plan) -> Measured:
        sound = Sound(*self.layout.share((batch.waveforms, batch.lengths, batch.targets, batch.weights)))
        self.state, measured = self._program(self.state, self._key, sound, plan)
        return measured

    def _finish(self, running: "_Running", batches: Batches, *, clock: "_Clock") -> Step:
        """Waits for an update, and reports it. Raises `NotFinite`."""
        step, measured = running.step, running.measured
        loss, gradient = float(measured.loss), float(measured.gradient)
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            losses, clips = map(on_host, (measured.losses, self.layout.share(running.indices)))
            raise not_finite(step, loss, clips=batches.names(offenders(losses, clips)))
        seconds = clock.lap()
        return Step(
            step=step,
            epoch=step // self.steps_per_epoch,
            loss=loss,
            gradient=gradient,
            lr=float(measured.lr),
            keep_rate=running.plan.keep_rate_now,
            seconds=seconds,
            clips_per_second=self.recipe.loop.batch / seconds,
            waiting=min(1.0, running.wait / seconds),
            compiled=running.compiled,
        )


@dataclasses.dataclass
class _Running:
    """The update that the device is at. `wait` is how long its batch was waited for, in seconds."""

    step: int
    plan: Plan
    _: dataclasses.KW_ONLY
    indices: np.ndarray
    measured: Measured
    compiled: bool
    wait: float


class _Clock:
    """Seconds from one lap to the next."""

    def __init__(self):
        self._began = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        return seconds
