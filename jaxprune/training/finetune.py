"""A whole fine-tuning run in one directory: data, starting weights, training, choosing, and the model that comes out.

`finetune` yields what happens. Carrying a run out is `jaxprune.training.run`'s matter, what it begins with
`jaxprune.training.start`'s, and what it trains for `jaxprune.training.classification`'s,
`jaxprune.training.distillation`'s and `jaxprune.training.dynamic`'s.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flax import nnx

from jaxprune import checkpoint
from jaxprune.cost import macs
from jaxprune.models import Classifier, topk
from jaxprune.parallel.processes import by_first
from jaxprune.training import learning
from jaxprune.training.classification import Classification
from jaxprune.training.distillation import Distillation, Sandwich
from jaxprune.training.dynamic import LearnedPruning
from jaxprune.training.events import Metric
from jaxprune.training.pruning import MOST_SIZES
from jaxprune.training.run import Event, Options, Run
from jaxprune.training.run_directory import MODEL, padding_of
from jaxprune.training.settings import Recipe
from jaxprune.training.start import Sources, fitted, padded, starting_model
from jaxprune.training.task import Task


def finetune(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    seed: int,
    sources: Sources = Sources(),  # noqa: B008, both are frozen
    options: Options = Options(),  # noqa: B008
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains a recipe in the directory `out`, or goes on with the run that is there, yielding what happens.

    Each epoch ends with an evaluation at the target keep rate: on the validation clips, or on the test clips where
    there are no others. Drawn keep rates are evaluated at the highest, the middle and the lowest, and the mean of the
    three scores counts. The model saved is the best on validation. Without validation clips it is the last, because
    choosing on the test clips would flatter it, and the best epoch's score is reported beside it. The run ends with an
    evaluation at every rate that the model is for. A finished run yields its result again, and loses the checkpoints
    that it need not keep. Raises `ValueError` and `OSError` in words for the user, also where another process is at
    work in `out`.

    All processes of a run (`jaxprune.parallel.processes.joined`) call this alike, with `out` on a disk that all of them
    see. The first writes there, and all yield the same.
    """
    dataset = sources.of(recipe).read()
    recipe, notes = fitted(recipe, dataset)
    recipe, more = padded(recipe, begun=padding_of(out))
    notes += (*more, *many_sizes(recipe), *masks_that_stay(recipe))
    run = FineTuning(recipe=recipe, dataset=dataset, out=Path(out), seed=seed, options=options)
    yield from run.events(notes, stop)


def many_sizes(recipe: Recipe) -> tuple[str, ...]:
    """A note where the run may compile its step for more than ten sizes."""
    prune = recipe.prune
    beside = 2 + bool(recipe.augment.patch_mask and prune.falls)  # both ends, and all patches before the shrinking
    if not prune.moves or prune.buckets + beside <= MOST_SIZES:
        return ()
    most, enough = prune.buckets + beside, MOST_SIZES - beside
    return (f"--prune.buckets {prune.buckets} may compile {most} sizes; {enough} keep them to {MOST_SIZES}",)


def masks_that_stay(recipe: Recipe) -> tuple[str, ...]:
    """A note where drawn keep rates leave the spectrogram's masks on, which a falling one takes away once it falls."""
    on = [name for name in ("time_mask", "freq_mask") if getattr(recipe.augment, name)]
    if not on or not recipe.prune.draws or recipe.prune.lowest == 1:
        return ()
    options = " ".join(f"--augment.{name.replace('_', '-')} 0" for name in on)
    return (
        f"the spectrogram's masks ({' and '.join(on)}) stay on while keep rates are drawn; on real speech they cost 2 "
        f"to 3 points at low keep rates, and {options} takes them away",
    )


class FineTuning(Run):
    """A run of the recipe's pruning method."""

    chooses = True

    @property
    def kind(self) -> type[Classification]:
        """The task that the recipe describes."""
        return task_of(self.recipe)

    def starting_model(self) -> tuple[Classifier, tuple[str, ...]]:
        return starting_model(self.recipe, self.dataset.labels, seed=self.seed)

    def prepared(self, model: Classifier, *, steps_per_epoch: int) -> tuple[nnx.Module, Task]:
        model = self.kind.begin(self.recipe, model, self.dataset.labels)
        return model, self.kind(self.recipe, model, steps_per_epoch=steps_per_epoch, seed=self.seed)

    def outcome(self, model: nnx.Module) -> Classifier:
        return self.kind.end(model)

    @property
    def balanced(self) -> bool:
        return self.recipe.loop.balanced

    @property
    def each_epoch(self) -> dict[str, Any]:
        return {"keep_rates": self.recipe.prune.watched, "metric": self._metric}

    @property
    def at_end(self) -> dict[str, Any]:
        return {"keep_rates": self.recipe.prune.rates, "metric": self._metric}

    @property
    def _metric(self) -> Metric:
        return "accuracy" if self.dataset.single_label else "mAP"

    def costs(self, model: Classifier, task: Classification) -> dict[str, int]:
        """Multiply-accumulates at the lowest keep rate, and without pruning."""
        lowest = task.policy(model, self.recipe.prune.lowest)
        return {"macs": macs(model, lowest), "unpruned_macs": macs(model, topk(model, {}))}

    def save_model(self, model: Classifier, *, step: int) -> None:
        recipe = self.recipe
        averaged = f", weights averaged (EMA {recipe.loop.ema:g})" if recipe.loop.ema else ""
        taught = f", taught by {recipe.distill.teacher}" if recipe.distill.teacher else ""
        card = recipe.card(
            model.config,
            labels=self.dataset.labels,
            source=f"fine-tuned by jaxprune: recipe {recipe.name}, seed {self.seed}, step {step}, "
            f"keep rate {recipe.prune.in_words}, from {recipe.start.checkpoint or 'scratch'}{averaged}{taught}",
        )
        by_first(lambda: str(checkpoint.save(self.out / MODEL, model, card=card, overwrite=True)))


def task_of(recipe: Recipe) -> type[Classification]:
    """The task of a recipe: learned pruning, or fine-tuning with or without a teacher."""
    if recipe.prune.method == "dynamic":
        return LearnedPruning
    match recipe.distill.teacher:
        case "":
            return Classification
        case learning.ITSELF:
            return Sandwich
    return Distillation
