"""A training run in one directory, whatever is trained: its settings, its steps, its checkpoints and its result.

`Run` goes through a run and yields what happens. Showing it is the command's part. `jaxprune.training.finetune` and
`jaxprune.training.pretrain` are its two kinds. A step is `jaxprune.training.loop`'s matter, and a run's files are
`jaxprune.training.run_directory`'s.
"""

import abc
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
from flax import nnx

from jaxprune.data.background import background
from jaxprune.data.batches import Batches, Workers, eval_batches, train_batches
from jaxprune.data.order import ProcessRows
from jaxprune.data.records import Dataset, Split
from jaxprune.data.rows import as_it_is
from jaxprune.files import locked, write_text
from jaxprune.parallel.devices import Layout, divided, whole
from jaxprune.parallel.processes import by_first, gather, is_first, together
from jaxprune.training.checkpoints import Checkpoints, Facts, start_or_resume
from jaxprune.training.events import Evaluation, Step
from jaxprune.training.loop import Training
from jaxprune.training.run_directory import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    RESULT,
    AnyRecipe,
    MetricsLog,
    clear,
    finished,
    finite,
    open_run,
)
from jaxprune.training.step import Weights
from jaxprune.training.task import Task
from jaxprune.training.tensorboard import EVENTS, EventLog

SPREADS = {"whole": whole, "divided": divided}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of carrying a run out. They affect speed and storage, not results (but for rounding in evaluation)."""

    # Clips evaluated together; 0: as many as are trained on together.
    eval_batch: int = 0
    # Steps between checkpoints; 0: only with each evaluation.
    save_every: int = 0
    # Latest checkpoints to keep, beside the best, until the run is finished.
    keep: int = 2
    # Keep them after that, too; they hold the optimiser's moments, and the model is saved without them.
    keep_checkpoints: bool = False
    # Threads that decode clips.
    threads: int = 2
    # Processes that decode clips, beside the threads.
    processes: int = 0
    # Decoded training clips that each process keeps in memory for the epochs to come, in MB; 0: none.
    held: int = 512
    # Share of the clips that may be damaged or silent.
    unusable: float = 0.01
    # Weights and the optimiser's moments: whole on every device, or divided among all of them (FSDP) to save memory.
    weights: Literal["whole", "divided"] = "whole"
    # Write TensorBoard event files, too; needs tensorboardX, which the extra "tensorboard" installs.
    tensorboard: bool = False


def slower_in_bfloat16(compute: str) -> tuple[str, ...]:
    """A note where a CPU is to train in bfloat16, by which small models lose even where it has instructions for it."""
    if compute != "bfloat16" or jax.default_backend() != "cpu":
        return ()
    return (
        "on a CPU training in bfloat16 may be slower than in float32 (AudioMAE mini took 1.4 times as long on one with "
        "avx512_bf16); --precision.compute float32 is the other choice",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """A run is about to begin, or to go on after `step`: the recipe as resolved, and `notes` for the user."""

    recipe: AnyRecipe
    dataset: Dataset
    step: int
    total_steps: int
    selects_on: Split | None
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a run: `result` is what result.json holds, or None where it was asked to stop after `step`."""

    step: int
    result: dict[str, Any] | None


Event = Beginning | Step | Evaluation | Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(abc.ABC):
    """A run by its settings, and its steps. `chooses` says that the best model on validation clips is the one saved.

    A kind of run adds what is trained: the model and its task, its evaluation, cost and card.
    """

    chooses: ClassVar[bool]

    recipe: AnyRecipe
    dataset: Dataset
    out: Path
    seed: int
    options: Options

    @property
    def selects_on(self) -> Split | None:
        """The split that is evaluated while training."""
        sizes = self.dataset.sizes()
        return next((split for split in ("validation", "test") if split in sizes), None)

    def events(self, notes: tuple[str, ...], stop: Callable[[], bool]) -> Iterator[Event]:
        """Everything that happens, alone in the directory: a finished run's result, or the run to its end."""
        with ExitStack() as held:
            by_first(lambda: held.enter_context(locked(self.out)))
            result = by_first(lambda: finished(self.out, self.recipe, seed=self.seed))
            yield from self.carry_out(notes, stop) if result is None else self.again(result, notes)

    def again(self, result: dict[str, Any], notes: tuple[str, ...]) -> Iterator[Event]:
        """A finished run's result."""
        tidy(self.out, self.options)
        step = result["steps"]
        already = f"{self.out} holds this run, and it is finished: this is its result"
        yield self._beginning(step=step, total_steps=step, notes=(*notes, already))
        yield Outcome(step=step, result=result)

    def carry_out(self, notes: tuple[str, ...], stop: Callable[[], bool]) -> Iterator[Event]:
        """The run from its latest checkpoint, or from the start, to its end or to where it is asked to stop."""
        model, more = self.starting_model()
        layout = Layout(spread=SPREADS[self.options.weights])
        layout.check(self._eval_batch)
        with self._train_batches() as batches:
            model, task = self.prepared(model, steps_per_epoch=batches.steps)
            training = Training(task, model, seed=self.seed, layout=layout, pace=task.pace)
            by_first(lambda: open_run(self.out, self.recipe, seed=self.seed))
            with Checkpoints(self.out / CHECKPOINTS, keep=self.options.keep) as checkpoints:
                training.put(start_or_resume(checkpoints, training.state, batches))
                step, total = int(training.state.step), training.total_steps
                slower = slower_in_bfloat16(self.recipe.precision.compute)
                yield self._beginning(step=step, total_steps=total, notes=(*notes, *more, *slower))
                yield from self._train(training, batches, checkpoints, stop)
                checkpoints.wait()
                step = int(training.state.step)
                result = self._finish(training, checkpoints, batches.unusable) if step == total else None
        if result is not None:
            tidy(self.out, self.options)
        yield Outcome(step=step, result=result)

    def _train(
        self, training: Training, batches: Batches, checkpoints: Checkpoints, stop: Callable[[], bool]
    ) -> Iterator[Any]:
        """The updates that are left, each logged, with checkpoints on the way."""

        def save(done: int, evaluation: Evaluation | None) -> None:
            batches.count_bad(gather(batches.unusable))
            beside = Facts(recipe=self.recipe, labels=self.dataset.labels, seed=self.seed, place=batches.get_state())
            checkpoints.save(training.state, beside, evaluation=evaluation)

        step, split = int(training.state.step), self.selects_on
        events = training.fit(
            batches,
            evaluate=(lambda: self.evaluate(training, split, asked=self.each_epoch)) if split else None,
            save=save,
            save_every=self.options.save_every or None,
            stop=together(stop, done=step),
        )
        with ExitStack() as stack:
            logs = []
            if is_first():
                logs.append(stack.enter_context(MetricsLog(self.out / METRICS, step=step)))
                if self.options.tensorboard:
                    logs.append(stack.enter_context(EventLog(self.out / EVENTS, step=step)))
            for event in events:
                for log in logs:
                    log.write(event)
                yield event
                if isinstance(event, Evaluation):
                    yield from self.also(training, event)

    def _finish(self, training: Training, checkpoints: Checkpoints, unusable: dict[str, str]) -> dict[str, Any]:
        """Chooses the model, evaluates and saves it, and writes the result."""
        last, best = int(training.state.step), checkpoints.best
        chosen = best if self.chooses and self.selects_on == "validation" and best is not None else last
        params = training.state.outcome if chosen == last else checkpoints.outcome(chosen, training.state)
        sizes = self.dataset.sizes()
        scores = {
            split: self.evaluate(training, split, params, asked=self.at_end)
            for split in ("validation", "test")
            if split in sizes
        }
        model = self.outcome(training.model(params))
        self.save_model(model, step=chosen)
        result = {
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "data_set": self.dataset.name,
            "clips": sizes,
            "steps": last,
            "saved_step": chosen,
            "saved": "best on validation" if self.chooses and self.selects_on == "validation" else "last",
            "best_step": best,
            "best_score": None if best is None else checkpoints.score(best),
            "scores": {split: finite(dataclasses.asdict(found)) for split, found in scores.items()},
            **self.costs(model, training.task),
            "parameters": sum(leaf.size for leaf in params.values()),
            "compilations": training.compilations,
            "unusable": unusable,
            "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            "model": str(self.out / MODEL),
        }
        by_first(lambda: write_text(self.out / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n"))
        return result

    @abc.abstractmethod
    def starting_model(self) -> tuple[nnx.Module, tuple[str, ...]]:
        """The model before the first update, and the changes to its checkpoint, in words."""

    @abc.abstractmethod
    def prepared(self, model: nnx.Module, *, steps_per_epoch: int) -> tuple[nnx.Module, Task]:
        """The model as it is trained, and the task."""

    def outcome(self, model: nnx.Module) -> nnx.Module:
        """The model to save, of the one trained."""
        return model

    @property
    def balanced(self) -> bool:
        """True if clips of rare classes are drawn more often. Without labels there are none."""
        return False

    @property
    @abc.abstractmethod
    def each_epoch(self) -> dict[str, Any]:
        """The arguments of an evaluation after an epoch (`Task.evaluate`)."""

    @property
    @abc.abstractmethod
    def at_end(self) -> dict[str, Any]:
        """The arguments of the last evaluation."""

    def also(self, training: Training, evaluation: Evaluation) -> Iterator[Any]:
        """Yields further events after an evaluation. All processes ask for them."""
        yield from ()

    @abc.abstractmethod
    def costs(self, model: nnx.Module, task: Task) -> dict[str, int]:
        """Multiply-accumulates of one clip: `macs`, `unpruned_macs`, and what else is to be reported."""

    @abc.abstractmethod
    def save_model(self, model: nnx.Module, *, step: int) -> None:
        """Writes the model of a step into the run's directory. All processes call it alike."""

    def evaluate(
        self, training: Training, split: Split, params: Weights | None = None, *, asked: dict[str, Any]
    ) -> Evaluation:
        """The present outcome (or `params`) on a split."""
        with eval_batches(self.dataset, split, batch_size=self._eval_batch, **self._reading()) as clips:
            found = training.evaluate(clips, params=params, **asked)
            clips.count_bad(gather(clips.unusable))
        return found

    def _train_batches(self) -> Batches:
        loop, augment = self.recipe.loop, self.recipe.augment
        vary = as_it_is
        if augment.background:
            folder = Path(augment.background)
            vary = background(folder, snr=augment.background_snr, share=augment.background_share)
        return train_batches(
            self.dataset,
            batch_size=loop.batch,
            epochs=loop.epochs,
            seed=self.seed,
            balanced=self.balanced,
            vary=vary,
            **self._reading(),
        )

    @property
    def _eval_batch(self) -> int:
        loop = self.recipe.loop
        return self.options.eval_batch or loop.batch // loop.accumulate

    def _reading(self) -> dict[str, Any]:
        """The settings of every loader of this process."""
        return {
            "frames": self.recipe.data.frames,
            "process": ProcessRows(index=jax.process_index(), count=jax.process_count()),
            "workers": Workers(threads=self.options.threads, processes=self.options.processes, held=self.options.held),
            "unusable": self.options.unusable,
        }

    def _beginning(self, *, step: int, total_steps: int, notes: tuple[str, ...]) -> Beginning:
        return Beginning(
            recipe=self.recipe,
            dataset=self.dataset,
            step=step,
            total_steps=total_steps,
            selects_on=self.selects_on,
            notes=notes,
        )


def tidy(out: Path, options: Options) -> None:
    """Removes the checkpoints of a finished run, unless they are to be kept. All processes call it alike."""
    if not options.keep_checkpoints:
        by_first(lambda: clear(out))
