"""A whole fine-tuning run in one directory: data, starting weights, training, choosing, and the model that comes out.

`finetune` puts the parts together (`jaxprune.data.published`, `jaxprune.training.loop`,
`jaxprune.training.checkpoints`); `scripts/finetune.py` shows what it yields. Own data and other heads are fitted here,
too: what a recipe becomes on the data at hand.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxprune import checkpoint
from jaxprune.cost import macs
from jaxprune.data.batches import Shard, Workers, eval_batches, train_batches
from jaxprune.data.published import ESC50, AudioSet, Folder, Manifest, Shards, Source, SpeechCommands, VoxCeleb1
from jaxprune.data.records import Dataset, Split
from jaxprune.data.shards import is_shards
from jaxprune.files import write_text
from jaxprune.models import Classifier, build, topk
from jaxprune.parallel.devices import Layout, divided, whole
from jaxprune.parallel.processes import by_first, gather, is_first, together
from jaxprune.training.checkpoints import (
    CHECKPOINTS,
    METRICS,
    RESULT,
    Checkpoints,
    Facts,
    MetricsLog,
    clear,
    finished,
    finite,
    open_run,
    start_or_resume,
)
from jaxprune.training.events import Evaluation, Metric, Step
from jaxprune.training.loop import Training
from jaxprune.training.settings import Recipe
from jaxprune.training.tensorboard import EVENTS, EventLog

MODEL = "model"
SPREADS = {"whole": whole, "divided": divided}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """What `data.root` does not say about where the clips are."""

    # ESC-50: the fold to test on.
    fold: int = 1
    # Label file, where classes are not in alphabetical order; AudioSet: by default class_labels_indices.csv in root.
    labels: Path | None = None
    # AudioSet: the JSON file of the training clips.
    train_json: Path | None = None
    # AudioSet: the JSON file of the evaluation clips.
    test_json: Path | None = None
    # VoxCeleb-1: other folders that hold speakers.
    also: tuple[Path, ...] = ()

    def source(self, recipe: Recipe) -> Source:
        """The recipe's data set at its root: shards if they are there, a published one by name, else own data.

        Raises `ValueError` where no root is given.
        """
        root = Path(recipe.data.root)
        if not recipe.data.root:
            raise ValueError(f"where {recipe.data.dataset} lies was not said; give --data.root")
        if is_shards(root):
            return Shards(root=root, fold=self.fold, labels=self.labels)
        match recipe.data.dataset:
            case "esc50":
                return ESC50(root=root, fold=self.fold)
            case "speechcommands":
                return SpeechCommands(root=root, labels=self.labels)
            case "voxceleb1":
                return VoxCeleb1(root=root, also=self.also, labels=self.labels)
            case "audioset":
                labels = self.labels or root / "class_labels_indices.csv"
                return AudioSet(labels=labels, train=self.train_json, test=self.test_json, root=root)
        return Manifest(path=root, labels=self.labels) if root.is_file() else Folder(root=root, labels=self.labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is carried out, which does not decide its numbers (but for the batch of evaluation, in rounding)."""

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
    """What is about to happen: the recipe as resolved, whether it goes on from `step`, and what there is to say."""

    recipe: Recipe
    dataset: Dataset
    step: int
    total_steps: int
    selects_on: Split | None
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: `result` is what result.json holds, or None where it was asked to stop after `step`."""

    step: int
    result: dict[str, Any] | None


Event = Beginning | Step | Evaluation | Outcome


def finetune(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    seed: int,
    where: Where = Where(),
    options: Options = Options(),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains a recipe in the directory `out`, or goes on with the run that is there, yielding what happens.

    Evaluated after each epoch at the base keep rate, on the validation clips, or where there are none on the test
    clips. The model saved is the best on validation; without validation clips it is the last, because choosing on the
    test clips would flatter it: the best epoch's score is reported beside it. A finished run's result comes again, and
    checkpoints that it need not keep are removed. Raises `ValueError` and `OSError` in words for the user.

    All processes of a run (`jaxprune.parallel.processes.joined`) call this alike, with `out` on a disk that all of them
    see. The first writes there; all yield the same.
    """
    dataset = where.source(recipe).read()
    recipe, notes = fitted(recipe, dataset)
    sizes = dataset.sizes()
    selects_on: Split | None = next((split for split in ("validation", "test") if split in sizes), None)
    metric: Metric = "accuracy" if dataset.single_label else "mAP"
    out = Path(out)
    result = by_first(lambda: finished(out, recipe, seed=seed))
    if result is not None:
        tidy(out, options)
        step = result["steps"]
        already = f"{out} holds this run, and it is finished: this is its result"
        yield Beginning(
            recipe=recipe,
            dataset=dataset,
            step=step,
            total_steps=step,
            selects_on=selects_on,
            notes=(*notes, already),
        )
        yield Outcome(step=step, result=result)
        return
    model, more = starting_model(recipe, dataset.labels, seed=seed)
    facts, loop = recipe.data, recipe.loop
    workers = Workers(threads=options.threads, processes=options.processes)
    shard = Shard(index=jax.process_index(), count=jax.process_count())
    layout = Layout(spread=SPREADS[options.weights])
    size = options.eval_batch or loop.batch // loop.accumulate
    layout.check(size)
    train = train_batches(
        dataset,
        frames=facts.frames,
        batch_size=loop.batch,
        epochs=loop.epochs,
        seed=seed,
        shard=shard,
        workers=workers,
        unusable=options.unusable,
    )
    with train:
        training = Training(recipe, model, steps_per_epoch=train.steps, seed=seed, layout=layout)
        parameters = sum(leaf.size for leaf in training.state.params.values())

        def evaluate(split: Split, params: dict | None = None) -> Evaluation:
            clips = eval_batches(
                dataset,
                split,
                frames=facts.frames,
                batch_size=size,
                shard=shard,
                workers=workers,
                unusable=options.unusable,
            )
            with clips:
                found = training.evaluate(clips, keep_rate=recipe.prune.keep_rate, metric=metric, params=params)
                clips.count_bad(gather(clips.unusable))
            return found

        by_first(lambda: open_run(out, recipe, seed=seed))
        with Checkpoints(out / CHECKPOINTS, keep=options.keep) as checkpoints:
            training.put(start_or_resume(checkpoints, training.state, train))
            step = int(training.state.step)
            yield Beginning(
                recipe=recipe,
                dataset=dataset,
                step=step,
                total_steps=training.total_steps,
                selects_on=selects_on,
                notes=(*notes, *more),
            )

            def save(done: int, evaluation: Evaluation | None) -> None:
                train.count_bad(gather(train.unusable))
                beside = Facts(recipe=recipe, labels=dataset.labels, seed=seed, place=train.get_state())
                checkpoints.save(training.state, beside, evaluation=evaluation)

            with ExitStack() as stack:
                log = stack.enter_context(MetricsLog(out / METRICS, step=step)).write if is_first() else ignore
                drawn = options.tensorboard and is_first()
                draw = stack.enter_context(EventLog(out / EVENTS, step=step)).write if drawn else ignore
                for event in training.fit(
                    train,
                    evaluate=(lambda: evaluate(selects_on)) if selects_on else None,
                    save=save,
                    save_every=options.save_every or None,
                    stop=together(stop, done=step),
                ):
                    log(event)
                    draw(event)
                    yield event
            checkpoints.wait()
            step = int(training.state.step)
            if step < training.total_steps:
                yield Outcome(step=step, result=None)
                return
            best = checkpoints.best
            chosen = best if selects_on == "validation" and best is not None else step
            params = training.state.params if chosen == step else checkpoints.params(chosen, training.state)
            final = training.model(params)
            scores = {split: evaluate(split, params) for split in ("validation", "test") if split in sizes}
            card = recipe.card(
                training.config,
                labels=dataset.labels,
                source=f"fine-tuned by jaxprune: recipe {recipe.name}, seed {seed}, step {chosen}, "
                f"keep rate {recipe.prune.keep_rate:g}, from {recipe.start.checkpoint or 'scratch'}",
            )
            by_first(lambda: str(checkpoint.save(out / MODEL, final, card=card, overwrite=True)))
            rates = dict.fromkeys(recipe.prune.blocks, recipe.prune.keep_rate)
            result = {
                "recipe": recipe.to_json(),
                "seed": seed,
                "data_set": dataset.name,
                "clips": sizes,
                "steps": step,
                "saved_step": chosen,
                "saved": "best on validation" if chosen != step or selects_on == "validation" else "last",
                "best_step": best,
                "best_score": None if best is None else checkpoints.score(best),
                "scores": {split: finite(dataclasses.asdict(found)) for split, found in scores.items()},
                "macs": macs(final, topk(final, rates)),
                "unpruned_macs": macs(final, topk(final, {})),
                "parameters": parameters,
                "compilations": training.compilations,
                "unusable": train.unusable,
                "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
                "model": str(out / MODEL),
            }
            by_first(lambda: write_text(out / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n"))
        tidy(out, options)
        yield Outcome(step=step, result=result)


def tidy(out: Path, options: Options) -> None:
    """Removes the checkpoints of a finished run, unless they are to be kept. All processes call it alike."""
    if not options.keep_checkpoints:
        by_first(lambda: clear(out))


def fitted(recipe: Recipe, dataset: Dataset) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the data set's number of classes and the fold it tests on, and what was changed, in words.

    The fold is in the recipe so that a run is not resumed on another one, whose test clips it has trained on. Raises
    `ValueError` for a loss that the labels do not allow.
    """
    notes = ()
    tested = {record.fold for record in dataset.records if record.split == "test" and record.fold is not None}
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folds=tuple(sorted(tested))))
    if recipe.data.classes != len(dataset.labels):
        notes = (f"{dataset.name} has {len(dataset.labels)} classes, not {recipe.data.classes}: the head has as many",)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, classes=len(dataset.labels)))
    if recipe.loop.loss == "ce" and not dataset.single_label:
        raise ValueError(f"{dataset.name} has clips of several classes; the loss must be bce (--loop.loss bce)")
    return recipe, notes


def starting_model(recipe: Recipe, labels: tuple[str, ...], *, seed: int) -> tuple[Classifier, tuple[str, ...]]:
    """The recipe's model for these classes, and what was changed, in words.

    From `start.checkpoint` with its position table fitted to the recipe's frames, and a new head, norm included, where
    its classes are not these in this order; else of `start.size` from random weights. Raises `ValueError` for a
    checkpoint of another family.
    """
    start, facts, dtype = recipe.start, recipe.data, recipe.precision.compute
    if not start.checkpoint:
        return build(recipe.model(), dtype=dtype, seed=seed), ("the model starts from random weights",)
    card = checkpoint.load_card(start.checkpoint)
    if card.model.family != start.family:
        raise ValueError(f"{start.checkpoint} holds an {card.model.family}; the recipe trains an {start.family}")
    loaded = checkpoint.load(start.checkpoint, frames=facts.frames)
    weights = {name: np.asarray(leaf[...]) for name, leaf in checkpoint.leaves(loaded).items()}
    config = dataclasses.replace(loaded.config, classes=facts.classes)
    fresh, notes = build(config, dtype=dtype, seed=seed), []
    if card.model.frames != facts.frames:
        notes.append(f"the position table was fitted from {card.model.frames} frames to {facts.frames}")
    if card.model.classes != facts.classes or (card.labels and card.labels != labels):
        kept = {name: np.asarray(leaf[...]) for name, leaf in checkpoint.leaves(fresh).items() if in_head(name)}
        weights = {name: leaf for name, leaf in weights.items() if not in_head(name)} | kept
        notes.append(f"the head is new: the checkpoint's {card.model.classes} classes are not these {facts.classes}")
    return checkpoint.fill(fresh, weights, source=start.checkpoint), tuple(notes)


def ignore(event: Event) -> None:
    """What the processes after the first do with what would be written."""


def in_head(name: str) -> bool:
    """Whether a weight is of the classifier, its LayerNorm included (AST's `mlp_head`, AudioMAE's `fc_norm` and
    `head`)."""
    return name.startswith(("head.", "head_norm."))
