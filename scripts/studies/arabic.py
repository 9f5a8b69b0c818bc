"""The cost of pruning on real recordings: every number of the results page from the raw data set.

    python -m scripts.studies.arabic data/arabic-speech-commands --out runs/arabic
    python -m scripts.studies.arabic data/arabic-speech-commands --out runs/arabic --families ast --tasks words
    python -m scripts.studies.arabic data/arabic-speech-commands --out runs/shipped --families audiomae --tasks words \
        --start audiomae-arabic-words --epochs 10 --tuning-epochs 10 --tuned 1 --seeds 0

For each family, task and seed a model is trained without pruning. From it others are tuned, all for as many steps: at
one keep rate each, at any keep rate, and at any keep rate with the unpruned pass as teacher. The one tuned at 1 never
prunes. The others are compared with it, because more steps alone give accuracy, too.

AST starts from the shipped `ast-words`, AudioMAE from an encoder that is pretrained here, once a task; on words it is
trained from random weights, too, to tell what the pretraining gives. `--start` names another checkpoint in place of
these: after a trained one few epochs are enough. Each model is then measured at every keep rate, on the validation
clips, by which everything was chosen, and on the test clips. The same command goes on where it was cut off. Intervals
are over clips, and over speakers (`scripts.studies.pieces`).
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxprune import checkpoint
from jaxprune.cli import console as cli
from jaxprune.cli.pretrain import PRETRAINING as WORDING
from jaxprune.cli.progress import show
from jaxprune.config import Family
from jaxprune.cost import macs
from jaxprune.data.published import ArabicSpeechCommands
from jaxprune.files import write_json
from jaxprune.models import topk
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.learning import ITSELF, Distill
from jaxprune.training.pretrain import pretrain
from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES
from jaxprune.training.recipes import recipe
from jaxprune.training.settings import Recipe
from scripts.studies.pieces import STOPPED, Run, correct, done, ends, located, second_stage, shares, speakers

RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
DRAWN = ("1", "0.9", "0.8", "0.7", "0.6", "0.5")
UNPRUNED, CONTROL, PRETRAINED = "unpruned", "tuned-1", "pretrained"
PRETRAINING = "audiomae-arabic-words-pretrain"
# The unpruned runs of a family and task, each with the checkpoint it starts from: `PRETRAINED` is the one pretrained
# here, none is random weights. The first run is the one that others are tuned from.
STARTS = {
    ("ast", "words"): {UNPRUNED: "ast-words"},
    ("ast", "speakers"): {UNPRUNED: "ast-words"},
    ("audiomae", "words"): {UNPRUNED: PRETRAINED, "random-start": ""},
    ("audiomae", "speakers"): {UNPRUNED: PRETRAINED},
}


def main(
    root: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    families: tuple[Family, ...] = ("ast", "audiomae"),
    tasks: tuple[Literal["words", "speakers"], ...] = ("words", "speakers"),
    start: str = "",
    epochs: int = 0,
    tuned: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5),
    tuning_epochs: int = 0,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> int:
    """Train and measure everything, and print the tables.

    Args:
        root: the data set, in its published layout or with clips.csv.
        out: directory of all runs, models and results; the same one goes on.
        families: ast and audiomae.
        tasks: words, or the speakers who say them.
        start: the checkpoint that models without pruning start from, of the only family trained; left out, ast-words
            and the encoder that is pretrained here.
        epochs: of each training without pruning; 0 is the recipe's.
        tuned: keep rates that a model each is tuned for; must hold 1, the model that the others are compared with.
        tuning_epochs: of each tuning; 0 is a third of those without pruning.
        seeds: of weights, order and augmentation; a run each.
    """
    if 1.0 not in tuned:
        raise ValueError(f"--tuned is {list(tuned)}; it must hold 1, the model that the others are compared with")
    if start and set(families) != {known := checkpoint.load_card(start).model.family}:
        raise ValueError(f"--start {start} holds an {known}; train that family alone: --families {known}")
    with StopOnSignal() as stop:
        for seed, family, task in itertools.product(seeds, families, tasks):
            base = located(recipe(f"{family}-arabic-{task}"), root)
            base = dataclasses.replace(base, loop=dataclasses.replace(base.loop, epochs=epochs or base.loop.epochs))
            starts, encoder = STARTS[family, task], out / f"{PRETRAINED}-{task}"
            if start:
                starts = {UNPRUNED: start}
            if PRETRAINED in starts.values() and not pretrained(base, encoder, stop=stop):
                return STOPPED
            starts = {name: str(encoder) if path == PRETRAINED else path for name, path in starts.items()}
            planned = list(runs(base, starts=starts, tuned=tuned, epochs=tuning_epochs or base.loop.epochs // 3))
            place = out / f"{family}-{task}-{seed}"
            for run in planned:
                if not done(run, place, seed=seed, stop=stop):
                    return STOPPED
            measured = measure(root, task, place, planned)
            write_json(place / "rates.json", measured)
            print_rows(measured, title=f"{family}, {task}, seed {seed}")
    return 0


def pretrained(base: Recipe, place: Path, *, stop: StopOnSignal) -> bool:
    """Pretrains an encoder on the recipe's own training clips, unless it is done: it hears no clip of the other splits.

    False where it was asked to stop before the end.
    """
    made = dataclasses.replace(PRETRAINING_RECIPES[PRETRAINING], name=f"{base.name}-pretrain", data=base.data)
    return show(pretrain(made, place, seed=0, stop=stop), place, title=PRETRAINED, wording=WORDING).result is not None


def runs(base: Recipe, *, starts: Mapping[str, str], tuned: Sequence[float], epochs: int) -> Iterator[Run]:
    """The trainings of one family, task and seed, each after the one that it starts from.

    The unpruned ones come first: their names with the checkpoints that they start from. `epochs` are of each tuning.
    """
    for name, start in starts.items():
        yield Run(name=name, recipe=dataclasses.replace(base, start=dataclasses.replace(base.start, checkpoint=start)))
    short = second_stage(base, epochs=epochs)
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


def measure(root: Path, task: str, place: Path, planned: Sequence[Run]) -> list[dict[str, object]]:
    """A row for each run, split and keep rate. Differences are from `CONTROL` at rate 1, clip by clip."""
    dataset = ArabicSpeechCommands(root=root, task=task).read()
    right, costs = {}, {}
    for run in planned:
        model, card = checkpoint.load(place / run.name), checkpoint.load_card(place / run.name)
        policies = {rate: topk(model, dict.fromkeys(run.recipe.prune.blocks, rate)) for rate in RATES}
        costs[run.name] = {rate: macs(model, policy) for rate, policy in policies.items()}
        for split in ("validation", "test"):
            right[run.name, split] = correct(dataset, split, model=model, card=card, policies=policies)
    rows = []
    for (name, split), of_rates in right.items():
        whole, who, first = costs[name][1.0], speakers(dataset, split), right[CONTROL, split][1.0]
        for rate, found in of_rates.items():
            cost = costs[name][rate]
            row = {"trained": name, "split": split, "keep_rate": rate, "clips": len(found), "gmacs": cost / 1e9}
            rows.append(row | {"saving": 1 - cost / whole, **shares("accuracy", found, who)})
            rows[-1] |= shares("difference", found.astype(int) - first, who)
    return rows


def print_rows(rows: Sequence[Mapping[str, object]], *, title: str) -> None:
    """The table of the test clips."""
    columns = ("trained", "keep rate", "saved", "accuracy %", "over clips", "over speakers", "points", "over speakers")
    table = [
        (
            row["trained"],
            f"{row['keep_rate']:g}",
            f"{100 * row['saving']:.1f} %",
            f"{100 * row['accuracy']:.2f}",
            ends(row["accuracy_over_clips"]),
            ends(row["accuracy_over_speakers"]),
            f"{100 * row['difference']:+.2f}",
            ends(row["difference_over_speakers"]),
        )
        for row in rows
        if row["split"] == "test"
    ]
    cli.print_table(f"{title}: test clips", columns, table)


if __name__ == "__main__":
    cli.run(main)
