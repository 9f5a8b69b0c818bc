"""The cost of pruning on real recordings: every number of the results page from the raw data set.

    python -m scripts.studies.arabic data/arabic-speech-commands --out runs/arabic
    python -m scripts.studies.arabic data/arabic-speech-commands --out runs/arabic --families ast --tasks words

For each family, task and seed a model is trained without pruning. From it others are tuned, all for as many steps: at
one keep rate each, at any keep rate, and at any keep rate with the unpruned pass as teacher. AST starts from the
shipped `ast-words`, AudioMAE from an encoder that is pretrained here, once; on words it is trained from random weights,
too, to tell what the pretraining gives. Each model is then measured at every keep rate, on the validation clips, by
which everything was chosen, and on the test clips. The same command goes on where it was cut off.

Intervals are over clips, and over speakers. Clips of one speaker are alike, so the second are the honest ones for
words.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Bool, Num

from jaxprune import checkpoint
from jaxprune.analysis.bootstrap import DEFAULT, mean, ratio
from jaxprune.cli import console as cli
from jaxprune.cli.pretrain import PRETRAINING as WORDING
from jaxprune.cli.progress import show
from jaxprune.config import Card, Family
from jaxprune.cost import macs
from jaxprune.data.batches import eval_batches
from jaxprune.data.published import ArabicSpeechCommands
from jaxprune.data.records import Dataset, Split
from jaxprune.evaluation.per_clip import answer
from jaxprune.files import write_json
from jaxprune.models import Classifier, topk
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.reduction.policy import Policy
from jaxprune.training.finetune import finetune
from jaxprune.training.learning import ITSELF, Distill
from jaxprune.training.pretrain import pretrain
from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES
from jaxprune.training.recipes import recipe
from jaxprune.training.run_directory import MODEL, RESULT
from jaxprune.training.settings import Recipe
from jaxprune.training.start import AnyRecipe

STOPPED = 143
RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
DRAWN = ("1", "0.9", "0.8", "0.7", "0.6", "0.5")
UNPRUNED, PRETRAINED = "unpruned", "pretrained"
PRETRAINING = "audiomae-arabic-words-pretrain"
# The unpruned runs of a family and task, each with the checkpoint it starts from: `PRETRAINED` is the one pretrained
# here, none is random weights. The first run is the one that others are tuned from, and compared with.
STARTS = {
    ("ast", "words"): {UNPRUNED: "ast-words"},
    ("ast", "speakers"): {UNPRUNED: "ast-words"},
    ("audiomae", "words"): {UNPRUNED: PRETRAINED, "random-start": ""},
    ("audiomae", "speakers"): {UNPRUNED: PRETRAINED},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training: its directory below the seed's, the recipe, and the run that it starts from, if any."""

    name: str
    recipe: Recipe
    start: str = ""


def main(
    root: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    families: tuple[Family, ...] = ("ast", "audiomae"),
    tasks: tuple[Literal["words", "speakers"], ...] = ("words", "speakers"),
    tuned: tuple[float, ...] = (0.9, 0.7, 0.5),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> int:
    """Train and measure everything, and print the tables.

    Args:
        root: the data set, in its published layout or with clips.csv.
        out: directory of all runs, models and results; the same one goes on.
        families: ast and audiomae.
        tasks: words, or the speakers who say them.
        tuned: keep rates that a model each is tuned for.
        seeds: of weights, order and augmentation; a run each.
    """
    with StopOnSignal() as stop:
        for seed, family, task in itertools.product(seeds, families, tasks):
            starts = dict(STARTS[family, task])
            if PRETRAINED in starts.values() and not pretrained(root, out / PRETRAINED, stop=stop):
                return STOPPED
            starts |= {name: str(out / PRETRAINED) for name, start in starts.items() if start == PRETRAINED}
            planned = list(runs(located(recipe(f"{family}-arabic-{task}"), root), starts=starts, tuned=tuned))
            place = out / f"{family}-{task}-{seed}"
            for run in planned:
                if not done(run, place, seed=seed, stop=stop):
                    return STOPPED
            measured = measure(root, task, place, planned)
            write_json(place / "rates.json", measured)
            print_rows(measured, title=f"{family}, {task}, seed {seed}")
    return 0


def pretrained(root: Path, place: Path, *, stop: StopOnSignal) -> bool:
    """Pretrains the encoder unless it is done; False where it was asked to stop before the end."""
    if (place / RESULT).exists():
        return True
    events = pretrain(located(PRETRAINING_RECIPES[PRETRAINING], root), place, seed=0, stop=stop)
    return show(events, place, title=PRETRAINED, wording=WORDING).result is not None


def located(made: AnyRecipe, root: Path) -> AnyRecipe:
    """The recipe with the place of its clips."""
    return dataclasses.replace(made, data=dataclasses.replace(made.data, root=str(root)))


def runs(base: Recipe, *, starts: Mapping[str, str], tuned: Sequence[float]) -> Iterator[Run]:
    """The trainings of one family, task and seed, each after the one that it starts from.

    The unpruned ones come first: their names with the checkpoints that they start from.
    """
    for name, start in starts.items():
        yield Run(name=name, recipe=dataclasses.replace(base, start=dataclasses.replace(base.start, checkpoint=start)))
    short = dataclasses.replace(
        base,
        optimizer=dataclasses.replace(base.optimizer, base_lr=base.optimizer.base_lr / 2),
        loop=dataclasses.replace(base.loop, epochs=base.loop.epochs // 3),
    )
    for rate in tuned:
        falling = dataclasses.replace(base.prune, keep_rate=rate, shrink_start=1, shrink_epochs=4)
        name = f"tuned-{rate:g}"
        yield Run(
            name=name, recipe=dataclasses.replace(short, name=f"{base.name}-{name}", prune=falling), start=UNPRUNED
        )
    drawn = dataclasses.replace(base.prune, sample=DRAWN)
    anyrate = dataclasses.replace(short, name=f"{base.name}-any", prune=drawn)
    yield Run(name="any", recipe=anyrate, start=UNPRUNED)
    taught = dataclasses.replace(anyrate, name=f"{base.name}-any-taught", distill=Distill(teacher=ITSELF))
    yield Run(name="any-taught", recipe=taught, start=UNPRUNED)


def done(run: Run, place: Path, *, seed: int, stop: StopOnSignal) -> bool:
    """Trains a run unless it is finished; False where it was asked to stop before the end."""
    directory = place / run.name
    if (directory / RESULT).exists():
        return True
    made = run.recipe
    if run.start:
        made = dataclasses.replace(
            made, start=dataclasses.replace(made.start, checkpoint=str(place / run.start / MODEL))
        )
    return show(finetune(made, directory, seed=seed, stop=stop), directory, title=run.name).result is not None


def measure(root: Path, task: str, place: Path, planned: Sequence[Run]) -> list[dict[str, object]]:
    """A row for each run, split and keep rate. Differences are from the first run's model at rate 1, clip by clip."""
    dataset = ArabicSpeechCommands(root=root, task=task).read()
    rows, reference = [], {}
    for run in planned:
        model, card = checkpoint.load(place / run.name), checkpoint.load_card(place / run.name)
        policies = {rate: topk(model, dict.fromkeys(run.recipe.prune.blocks, rate)) for rate in RATES}
        for split in ("validation", "test"):
            right = correct(dataset, split, model=model, card=card, policies=policies)
            first = reference.setdefault(split, right[1.0])
            who = speakers(dataset, split)
            for rate, found in right.items():
                cost, whole = macs(model, policies[rate]), macs(model, policies[1.0])
                row = {"trained": run.name, "split": split, "keep_rate": rate, "clips": len(found), "gmacs": cost / 1e9}
                rows.append(row | {"saving": 1 - cost / whole, **shares("accuracy", found, who)})
                rows[-1] |= shares("difference", found.astype(int) - first, who)
    return rows


def correct(
    dataset: Dataset, split: Split, *, model: Classifier, card: Card, policies: Mapping[float, Policy]
) -> dict[float, Bool[np.ndarray, "clips"]]:
    """The clips of a split that the model labels right, at each keep rate."""
    fixed = {str(rate): functools.partial(_always, policy) for rate, policy in policies.items()}
    with eval_batches(dataset, split, frames=model.config.frames, batch_size=64) as batches:
        found = answer(model, batches, card=card, policies=fixed, single_label=True)
    if found.unusable:
        raise ValueError(f"{len(found.unusable)} clips cannot be used, such as {next(iter(found.unusable))}")
    return {rate: found.ranks[str(rate)] == 0 for rate in policies}


def _always(policy: Policy, indices: object, kept: object) -> Policy:
    return policy


def speakers(dataset: Dataset, split: Split) -> list[str]:
    """The speaker of each clip, by its file's name."""
    return [Path(record.path).name.partition("_")[0] for record in dataset.clips(split)]


def shares(name: str, values: Num[np.ndarray, "clips"], who: Sequence[str]) -> dict[str, object]:
    """The mean of values, with 95 % intervals over clips and over speakers, of whom all clips are drawn together."""
    _, of = np.unique(who, return_inverse=True)
    sums, counts = np.bincount(of, weights=values), np.bincount(of)
    by_clip = mean(values.astype(float), bootstrap=DEFAULT)
    by_speaker = ratio(sums, counts, bootstrap=DEFAULT)
    return {
        name: float(by_clip.value),
        f"{name}_over_clips": [float(by_clip.low), float(by_clip.high)],
        f"{name}_over_speakers": [float(by_speaker.low), float(by_speaker.high)],
    }


def print_rows(rows: Sequence[Mapping[str, object]], *, title: str) -> None:
    """The table of the test clips."""
    columns = ("trained", "keep rate", "saved", "accuracy %", "over clips", "over speakers", "points", "over speakers")
    table = [
        (
            row["trained"],
            f"{row['keep_rate']:g}",
            f"{100 * row['saving']:.1f} %",
            f"{100 * row['accuracy']:.2f}",
            _ends(row["accuracy_over_clips"]),
            _ends(row["accuracy_over_speakers"]),
            f"{100 * row['difference']:+.2f}",
            _ends(row["difference_over_speakers"]),
        )
        for row in rows
        if row["split"] == "test"
    ]
    cli.print_table(f"{title}: test clips", columns, table)


def _ends(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f}"


if __name__ == "__main__":
    cli.run(main)
