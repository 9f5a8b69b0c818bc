"""The pieces that studies of Arabic Speech Commands share: trainings that go on where they were cut off, the clips that
a model labels right, and intervals over clips and over speakers.

Clips of one speaker are alike, so intervals over speakers are the honest ones for words.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Num

from jaxprune.analysis.bootstrap import DEFAULT, mean, ratio
from jaxprune.cli.progress import show
from jaxprune.config import Card, ModelConfig
from jaxprune.data.batches import eval_batches
from jaxprune.data.records import Dataset, Split
from jaxprune.evaluation.per_clip import answer
from jaxprune.json_files import read_json
from jaxprune.learned import rate_for_saving
from jaxprune.models import Classifier
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.reduction.policy import Policy
from jaxprune.registry import LEARNED
from jaxprune.training.dynamic_settings import Dynamic
from jaxprune.training.finetune import finetune
from jaxprune.training.learning import Cosine
from jaxprune.training.pretraining_settings import recipe_from_json
from jaxprune.training.run_directory import MODEL, RECIPE
from jaxprune.training.settings import Prune, Recipe
from jaxprune.training.start import AnyRecipe

STOPPED = 143
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training: its directory's name, the recipe, and the run beside it that it starts from, if any."""

    name: str
    recipe: Recipe
    start: str = ""


def located(made: AnyRecipe, root: Path) -> AnyRecipe:
    """The recipe with the place of its clips."""
    return dataclasses.replace(made, data=dataclasses.replace(made.data, root=str(root)))


def recipe_of(run: Path) -> Recipe:
    """The recipe that a run of fine-tuning was made with. Raises `ValueError` for one of pretraining."""
    return Recipe.from_json(_recorded(run))


def _recorded(run: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(run / RECIPE).items() if name != "seed"}


def lineage(recipe: AnyRecipe) -> tuple[AnyRecipe, ...]:
    """The recipe, that of the run it starts from, and so on, without names and without places of clips and of runs.

    Runs whose lineages are equal differ in seeds alone. A start that is no run keeps its place.
    """
    bare, start = dataclasses.replace(located(recipe, Path()), name="", source=""), recipe.start.checkpoint
    run = Path(start).parent if Path(start).name == MODEL else Path(start)
    if not start or not (run / RECIPE).is_file():
        return (bare,)
    before = recipe_from_json(_recorded(run))
    return dataclasses.replace(bare, start=dataclasses.replace(bare.start, checkpoint="")), *lineage(before)


def second_stage(first: Recipe, *, epochs: int) -> Recipe:
    """The recipe of a tuning that follows training without pruning: shorter, at half the learning rate.

    Without masks of the spectrogram: they would stop where the keep rate falls, and go on where it is 1 or drawn. It
    warms up for two epochs at most, and evaluates four times at least.
    """
    schedule, every = first.schedule, min(first.loop.evaluate_every, max(1, epochs // 4))
    if isinstance(schedule, Cosine):
        schedule = dataclasses.replace(schedule, warmup_epochs=min(2, schedule.warmup_epochs))
    return dataclasses.replace(
        first,
        augment=dataclasses.replace(first.augment, time_mask=0, freq_mask=0),
        optimizer=dataclasses.replace(first.optimizer, base_lr=first.optimizer.base_lr / 2),
        schedule=schedule,
        loop=dataclasses.replace(first.loop, epochs=epochs, evaluate_every=every),
    )


def learning(recipe: Recipe, config: ModelConfig, *, blocks: tuple[int, ...], saving: float) -> Recipe:
    """The recipe with predictors that learn a saving: alone in the first fifth, then with the rest at equal speed.

    `config` is the geometry of the model that it starts from.
    """
    return dataclasses.replace(
        recipe,
        prune=Prune(method=LEARNED, keep_rate=rate_for_saving(config, blocks, saving), blocks=blocks),
        dynamic=Dynamic(slow=1.0, alone=recipe.loop.epochs // 5),
    )


def done(run: Run, place: Path, *, seed: int, stop: StopOnSignal) -> bool:
    """Trains a run unless it is finished; False where it was asked to stop before the end.

    Raises `ValueError` where the directory holds a run with other settings.
    """
    directory, made = place / run.name, run.recipe
    if run.start:
        made = dataclasses.replace(
            made, start=dataclasses.replace(made.start, checkpoint=str(place / run.start / MODEL))
        )
    return show(finetune(made, directory, seed=seed, stop=stop), directory, title=run.name).result is not None


def correct(
    dataset: Dataset, split: Split, *, model: Classifier, card: Card, policies: Mapping[Key, Policy]
) -> dict[Key, Bool[np.ndarray, "clips"]]:
    """The clips of a split that the model labels right, under each policy. Raises `ValueError` for unusable clips."""
    fixed = {str(key): functools.partial(_always, policy) for key, policy in policies.items()}
    with eval_batches(dataset, split, frames=model.config.frames, batch_size=64) as batches:
        found = answer(model, batches, card=card, policies=fixed, single_label=True)
    if found.unusable:
        raise ValueError(f"{len(found.unusable)} clips cannot be used, such as {next(iter(found.unusable))}")
    return {key: found.ranks[str(key)] == 0 for key in policies}


def _always(policy: Policy, indices: object, kept: object) -> Policy:
    return policy


def speakers(dataset: Dataset, split: Split) -> list[str]:
    """The speaker of each clip, by its file's name."""
    return [Path(record.path).name.partition("_")[0] for record in dataset.clips(split)]


def shares(name: str, values: Num[np.ndarray, "clips"], who: Sequence[str]) -> dict[str, Any]:
    """The mean of values, with 95 % intervals over clips and over speakers, of whom all clips are drawn together."""
    return of_columns(name, values[:, None], who)[0]


def of_columns(name: str, values: Num[np.ndarray, "clips columns"], who: Sequence[str]) -> list[dict[str, Any]]:
    """`shares` of each column, all from the same draws."""
    persons, of = np.unique(who, return_inverse=True)
    belongs = (of == np.arange(len(persons))[:, None]).astype(float)  # speakers clips
    counts = np.repeat(belongs.sum(axis=1, keepdims=True), values.shape[1], axis=1)
    by_clip = mean(values.astype(float), bootstrap=DEFAULT)
    by_speaker = ratio(belongs @ values, counts, bootstrap=DEFAULT)
    return [
        {
            name: float(clips.value),
            f"{name}_over_clips": [float(clips.low), float(clips.high)],
            f"{name}_over_speakers": [float(persons.low), float(persons.high)],
        }
        for clips, persons in ((by_clip[i], by_speaker[i]) for i in range(values.shape[1]))
    ]


def ends(interval: Sequence[float]) -> str:
    """An interval of shares in percent: `90.10 to 92.00`."""
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f}"
