"""A whole fine-tuning run in one directory: data, starting weights, training, choosing, and the model that comes out.

`finetune` puts the parts together and yields what happens; showing it is the command's part. A step is
`jaxprune.training.loop`'s matter, what a run begins with `jaxprune.training.start`'s, and its files are
`jaxprune.training.run_directory`'s.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import jax

from jaxprune import checkpoint
from jaxprune.cost import macs
from jaxprune.data.background import background
from jaxprune.data.batches import Batches, Workers, as_it_is, eval_batches, train_batches
from jaxprune.data.order import ProcessRows
from jaxprune.data.records import Dataset, Split
from jaxprune.files import locked, write_text
from jaxprune.models import Classifier, topk
from jaxprune.parallel.devices import Layout, divided, whole
from jaxprune.parallel.processes import by_first, gather, is_first, together
from jaxprune.training.checkpoints import Checkpoints, Facts, start_or_resume
from jaxprune.training.classification import Classification
from jaxprune.training.dynamic import LearnedPruning
from jaxprune.training.events import Evaluation, Metric, Step
from jaxprune.training.loop import Training
from jaxprune.training.run_directory import (
    CHECKPOINTS,
    METRICS,
    MODEL,
    RESULT,
    MetricsLog,
    clear,
    finished,
    finite,
    open_run,
    padding_of,
)
from jaxprune.training.settings import Recipe
from jaxprune.training.start import Sources, fitted, padded, starting_model
from jaxprune.training.step import Weights
from jaxprune.training.tensorboard import EVENTS, EventLog

KINDS = {"topk": Classification, "dynamic": LearnedPruning}
SPREADS = {"whole": whole, "divided": divided}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of carrying a run out. They affect speed and storage, not results (but for rounding in evaluation)."""

    # Clips evaluated together; 0: as many as are trained on together.
    eval_batch: int = 0
    # Steps between checkpoints within an epoch; 0: only after each epoch.
    save_every: int = 0
    # Latest checkpoints to keep, beside the best, until the run is finished.
    keep: int = 2
    # Keep them after that, too; they hold the optimiser's moments, and the model is saved without them.
    keep_checkpoints: bool = False
    # Threads that decode clips.
    threads: int = 2
    # Processes that decode clips, beside the threads.
    processes: int = 0
    # Share of the clips that may be damaged or silent.
    unusable: float = 0.01
    # Weights and the optimiser's moments: whole on every device, or divided among all of them (FSDP) to save memory.
    weights: Literal["whole", "divided"] = "whole"
    # Write TensorBoard event files, too; needs tensorboardX, which the extra "tensorboard" installs.
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """A run is about to begin, or to go on after `step`: the recipe as resolved, and `notes` for the user."""

    recipe: Recipe
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


def finetune(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    seed: int,
    sources: Sources = Sources(),  # noqa: B008, both are frozen
    options: Options = Options(),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains a recipe in the directory `out`, or goes on with the run that is there, yielding what happens.

    Evaluated after each epoch at the target keep rate, on the validation clips, or where there are none on the test
    clips. Where keep rates are drawn, that is at the highest, the middle and the lowest, and the mean of the three
    scores counts. The model saved is the best on validation; without validation clips it is the last, because choosing
    on the test clips would flatter it: the best epoch's score is reported beside it. The end is evaluated at every rate
    that the model is for. A finished run's result comes again, and checkpoints that it need not keep are removed.
    Raises `ValueError` and `OSError` in words for the user, also where another process is at work in `out`.

    All processes of a run (`jaxprune.parallel.processes.joined`) call this alike, with `out` on a disk that all of them
    see. The first writes there; all yield the same.
    """
    dataset = sources.of(recipe).read()
    recipe, notes = fitted(recipe, dataset)
    recipe, more = padded(recipe, begun=padding_of(out))
    notes += more
    run = _Run(recipe=recipe, dataset=dataset, out=Path(out), seed=seed, options=options)
    with ExitStack() as held:
        by_first(lambda: held.enter_context(locked(run.out)))
        result = by_first(lambda: finished(run.out, recipe, seed=seed))
        yield from run.carry_out(notes, stop) if result is None else run.again(result, notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run by its settings, and its steps."""

    recipe: Recipe
    dataset: Dataset
    out: Path
    seed: int
    options: Options

    @property
    def kind(self) -> type[Classification]:
        """The task that the recipe's method is."""
        return KINDS[self.recipe.prune.method]

    @property
    def selects_on(self) -> Split | None:
        """The split evaluated after each epoch."""
        sizes = self.dataset.sizes()
        return next((split for split in ("validation", "test") if split in sizes), None)

    def again(self, result: dict[str, Any], notes: tuple[str, ...]) -> Iterator[Event]:
        """A finished run's result."""
        tidy(self.out, self.options)
        step = result["steps"]
        already = f"{self.out} holds this run, and it is finished: this is its result"
        yield self._beginning(step=step, total_steps=step, notes=(*notes, already))
        yield Outcome(step=step, result=result)

    def carry_out(self, notes: tuple[str, ...], stop: Callable[[], bool]) -> Iterator[Event]:
        """The run from its latest checkpoint, or from the start, to its end or to where it is asked to stop."""
        model, more = starting_model(self.recipe, self.dataset.labels, seed=self.seed)
        layout = Layout(spread=SPREADS[self.options.weights])
        layout.check(self._eval_batch)
        with self._train_batches() as batches:
            model = self.kind.begin(self.recipe, model, self.dataset.labels)
            task = self.kind(self.recipe, model, steps_per_epoch=batches.steps, seed=self.seed)
            training = Training(task, model, seed=self.seed, layout=layout, pace=task.pace)
            by_first(lambda: open_run(self.out, self.recipe, seed=self.seed))
            with Checkpoints(self.out / CHECKPOINTS, keep=self.options.keep) as checkpoints:
                training.put(start_or_resume(checkpoints, training.state, batches))
                step, total = int(training.state.step), training.total_steps
                yield self._beginning(step=step, total_steps=total, notes=(*notes, *more))
                yield from self._train(training, batches, checkpoints, stop)
                checkpoints.wait()
                step = int(training.state.step)
                result = self._finish(training, checkpoints, batches.unusable) if step == total else None
        if result is not None:
            tidy(self.out, self.options)
        yield Outcome(step=step, result=result)

    def _train(
        self, training: Training, batches: Batches, checkpoints: Checkpoints, stop: Callable[[], bool]
    ) -> Iterator[Step | Evaluation]:
        """The updates that are left, each logged, with checkpoints on the way."""

        def save(done: int, evaluation: Evaluation | None) -> None:
            batches.count_bad(gather(batches.unusable))
            beside = Facts(recipe=self.recipe, labels=self.dataset.labels, seed=self.seed, place=batches.get_state())
            checkpoints.save(training.state, beside, evaluation=evaluation)

        step, split, watched = int(training.state.step), self.selects_on, self.recipe.prune.watched
        events = training.fit(
            batches,
            evaluate=(lambda: self._evaluate(training, split, keep_rates=watched)) if split else None,
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

    def _finish(self, training: Training, checkpoints: Checkpoints, unusable: dict[str, str]) -> dict[str, Any]:
        """Chooses the model, evaluates and saves it, and writes the result."""
        last, best = int(training.state.step), checkpoints.best
        chosen = best if self.selects_on == "validation" and best is not None else last
        params = training.state.outcome if chosen == last else checkpoints.outcome(chosen, training.state)
        sizes = self.dataset.sizes()
        scores = {
            split: self._evaluate(training, split, params, keep_rates=self.recipe.prune.rates)
            for split in ("validation", "test")
            if split in sizes
        }
        model = self.kind.end(training.model(params))
        self._save_model(model, step=chosen)
        result = {
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "data_set": self.dataset.name,
            "clips": sizes,
            "steps": last,
            "saved_step": chosen,
            "saved": "best on validation" if chosen != last or self.selects_on == "validation" else "last",
            "best_step": best,
            "best_score": None if best is None else checkpoints.score(best),
            "scores": {split: finite(dataclasses.asdict(found)) for split, found in scores.items()},
            "macs": macs(model, training.task.policy(model, self.recipe.prune.lowest)),
            "unpruned_macs": macs(model, topk(model, {})),
            "parameters": sum(leaf.size for leaf in params.values()),
            "compilations": training.compilations,
            "unusable": unusable,
            "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            "model": str(self.out / MODEL),
        }
        by_first(lambda: write_text(self.out / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n"))
        return result

    def _save_model(self, model: Classifier, *, step: int) -> None:
        recipe = self.recipe
        averaged = f", weights averaged (EMA {recipe.loop.ema:g})" if recipe.loop.ema else ""
        card = recipe.card(
            model.config,
            labels=self.dataset.labels,
            source=f"fine-tuned by jaxprune: recipe {recipe.name}, seed {self.seed}, step {step}, "
            f"keep rate {recipe.prune.in_words}, from {recipe.start.checkpoint or 'scratch'}{averaged}",
        )
        by_first(lambda: str(checkpoint.save(self.out / MODEL, model, card=card, overwrite=True)))

    def _evaluate(
        self, training: Training, split: Split, params: Weights | None = None, *, keep_rates: tuple[float, ...]
    ) -> Evaluation:
        """The present outcome (or `params`) on a split."""
        metric: Metric = "accuracy" if self.dataset.single_label else "mAP"
        with eval_batches(self.dataset, split, batch_size=self._eval_batch, **self._reading()) as clips:
            found = training.evaluate(clips, keep_rates=keep_rates, metric=metric, params=params)
            clips.count_bad(gather(clips.unusable))
        return found

    def _train_batches(self) -> Batches:
        loop, augment = self.recipe.loop, self.recipe.augment
        vary = as_it_is
        if augment.background:
            folder = Path(augment.background)
            vary = background(folder, snr=augment.background_snr, share=augment.background_share)
        return train_batches(
            self.dataset, batch_size=loop.batch, epochs=loop.epochs, seed=self.seed, vary=vary, **self._reading()
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
            "workers": Workers(threads=self.options.threads, processes=self.options.processes),
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
