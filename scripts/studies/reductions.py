"""Every way to reduce tokens on one model, at equal cost: untuned, and each tuned at any rate of its own.

    python -m scripts.studies.reductions runs/arabic/ast-words-0/unpruned --out runs/reductions
    python -m scripts.studies.reductions RUN RUN --out runs/reductions --methods topk tome --epochs 10

A RUN is a finished fine-tuning run without pruning. Its model is measured under every method at every saving of
multiply-accumulates. Then each method tunes the model once, with a saving drawn in each step, and what comes out is
measured at the same savings. Learned pruning cannot draw, so it is tuned for one saving. All methods have the same
steps, augmentation and learning rate. The tuning's seed is the run's own; of runs that differ in the seed alone, there
is a table of their mean, too.

The same command goes on where it was cut off, and one with more methods adds them. `results.json` has a row for each
model, method, saving and split, with intervals over clips and over speakers (`scripts.studies.pieces`). There is a
picture a task: accuracy of the test clips over multiply-accumulates. And there is one a model, untuned and tuned, of
the patches that each method keeps, fuses or merges in one test clip.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxprune import checkpoint
from jaxprune.amounts import Saving
from jaxprune.audio import Clip
from jaxprune.cli import console as cli
from jaxprune.files import write_json
from jaxprune.inference import Result, classify_clips
from jaxprune.models import Classifier
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.plots.clips import retained_patches
from jaxprune.plots.comparison import Curve, comparison
from jaxprune.reduction.policy import DEFAULT_BLOCKS, default_blocks
from jaxprune.registry import LEARNED, MethodName, rates_for
from jaxprune.training.learning import Distill
from jaxprune.training.run_directory import MODEL
from jaxprune.training.settings import Prune
from jaxprune.training.start import AnyRecipe
from scripts.studies.pieces import STOPPED, Run, done, ends, learning, lineage, second_stage
from scripts.studies.reduction_answers import REFERENCE, UNTUNED, Study, measure, named, opened, table

METHODS = ("topk", "evit", "tome", "tome-plain", "hybrid", "dynamic", "pool", "random", "grid", "loudest", "varied")
SAVINGS = (0.0, 0.15, 0.3, 0.45, 0.6)


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path,
    root: Path | None = None,
    methods: tuple[MethodName, ...] = METHODS,
    savings: tuple[float, ...] = SAVINGS,
    epochs: int = 20,
    learned_saving: float = 0.45,
    tune: bool = True,
) -> int:
    """Measure and tune everything, and print the tables.

    Args:
        runs: directories of finished runs of jaxprune finetune without pruning.
        out: directory of all models and results; the same one goes on.
        root: the data set, if it is not where the runs had it.
        methods: the ways to reduce tokens.
        savings: shares of the multiply-accumulates to save; 0 is always measured.
        epochs: of tuning.
        learned_saving: the saving that learned pruning is tuned for, and at which regions are drawn.
        tune: without it the untuned models alone are measured.
    """
    savings = tuple(sorted({0.0, *savings}))
    trained = (UNTUNED, *(methods if tune else ()))
    studies = [opened(run, out, root=root, settled={"epochs": epochs, "savings": list(savings)}) for run in runs]
    untuned = [(REFERENCE, 0.0), *((m, s) for m in methods if m != LEARNED for s in savings if s)]
    tables: dict[str, list[dict[str, Any]]] = {}
    with StopOnSignal() as stop:
        for study in studies:
            started = checkpoint.load(study.start / MODEL)
            measure(study, UNTUNED, study.start / MODEL, untuned)
            tuned = tunings(study, started, methods, savings=savings, epochs=epochs, learned=learned_saving)
            for method, training in tuned if tune else ():
                if not done(training, study.place, seed=study.seed, stop=stop):
                    return STOPPED
                measure(study, method, study.place / method / MODEL, [(method, saving) for saving in savings])
            regions(study, trained, methods, saving=learned_saving)
            add(tables, [study], trained, out=out)
    for group in alike(studies):
        if len(group) > 1:
            add(tables, group, trained, out=out)
    return 0


def alike(studies: Sequence[Study]) -> list[list[Study]]:
    """The studies in groups of equal training, whatever it is called and wherever clips and runs are: in a group they
    differ in their seeds alone."""
    found: dict[tuple[AnyRecipe, ...], list[Study]] = {}
    for study in studies:
        found.setdefault(lineage(study.recipe), []).append(study)
    return list(found.values())


def add(
    tables: dict[str, list[dict[str, Any]]], studies: Sequence[Study], trained: Sequence[str], *, out: Path
) -> None:
    """Adds one table to those that there are by name, prints it, and writes all."""
    name = named(studies)
    tables[name] = table(studies, trained)
    print_rows(tables[name], title=f"{name}, test clips")
    rows = [row for found in tables.values() for row in found]
    write_json(out / "results.json", rows)
    draw(rows, out)


def tunings(
    study: Study,
    model: Classifier,
    methods: Sequence[MethodName],
    *,
    savings: Sequence[float],
    epochs: int,
    learned: float,
) -> Iterator[tuple[MethodName, Run]]:
    """The training of each method: any rate that has one of the savings, or for learned pruning one rate."""
    base, config = study.recipe, model.config
    blocks = default_blocks(config.depth)
    start = dataclasses.replace(base.start, checkpoint=str(study.start / MODEL))
    short = dataclasses.replace(second_stage(base, epochs=epochs), start=start, distill=Distill())
    rates = [next(iter(rates_for(config, Saving(saving)).values())) for saving in savings if saving]
    drawn = ("1", *(f"{rate:.3g}" for rate in rates))
    for method in methods:
        if method == LEARNED:
            recipe = learning(short, config, blocks=blocks, saving=learned)
        else:
            prune = Prune(method=method, keep_rate=1.0, sample=drawn, blocks=blocks)
            recipe = dataclasses.replace(short, prune=prune)
        recipe = dataclasses.replace(recipe, name=f"{base.name}-{method}")
        yield method, Run(name=method, recipe=recipe)


def print_rows(rows: Sequence[dict[str, Any]], *, title: str) -> None:
    """The table of the test clips, by saving."""
    columns = (
        "tuned",
        "asked",
        "method",
        "saved",
        "accuracy %",
        "over speakers",
        "points",
        "by seed",
        "against topk",
        "over speakers",
    )
    chosen = sorted(
        (row for row in rows if row["split"] == "test"), key=lambda row: (row["tuned"], row["asked"], -row["accuracy"])
    )
    lines = [
        (
            "yes" if row["tuned"] else "no",
            f"{100 * row['asked']:g} %",
            row["method"],
            f"{100 * row['saving']:.1f} %",
            f"{100 * row['accuracy']:.2f}",
            ends(row["accuracy_over_speakers"]),
            f"{100 * row['difference']:+.2f}",
            ", ".join(f"{100 * points:+.2f}" for points in row["difference_by_seed"]),
            f"{100 * row['against_topk']:+.2f}" if "against_topk" in row else "",
            ends(row["against_topk_over_speakers"]) if "against_topk" in row else "",
        )
        for row in chosen
    ]
    notes = ["95 % intervals. Points of percent are against the model without tuning and pruning."]
    cli.print_table(title, columns, lines, notes=notes)


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """A picture a task, with a panel for each model, or the mean of its seeds, untuned and tuned."""
    averaged = {(row["kind"], seed) for row in rows if len(row["seeds"]) > 1 for seed in row["seeds"]}
    rows = [row for row in rows if len(row["seeds"]) > 1 or (row["kind"], row["seeds"][0]) not in averaged]
    for task in dict.fromkeys(row["task"] for row in rows):
        curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if row["task"] == task and row["split"] == "test":
                panel = f"{row['model']}, {'tuned' if row['tuned'] else UNTUNED}"
                curves.setdefault((panel, row["method"]), []).append(row)
        for found in curves.values():
            if not any(row["asked"] == 0 for row in found):  # of the untuned model, measured once for all methods
                found += [row for row in curves[f"{found[0]['model']}, {UNTUNED}", REFERENCE] if row["asked"] == 0]
            found.sort(key=lambda row: row["gmacs"])
        drawn = [
            Curve(
                panel=panel,
                name=method,
                gmacs=tuple(row["gmacs"] for row in found),
                quality=tuple(row["accuracy"] for row in found),
                intervals=tuple(tuple(row["accuracy_over_speakers"]) for row in found),
            )
            for (panel, method), found in curves.items()
        ]
        title = f"{next(row['data'] for row in rows if row['task'] == task)}: test clips"
        paths = comparison(drawn, title=title, path=out / f"{task}.png", order=METHODS)
        cli.notice(f"wrote {', '.join(map(str, paths))}")


def regions(study: Study, trained: Sequence[str], methods: Sequence[MethodName], *, saving: float) -> None:
    """Draws the patches of the first test clip that each method leaves at a saving: in the untuned model, and in each
    method's own."""
    start = study.start / MODEL
    untuned = {method: start for method in methods if method != LEARNED}
    tuned = {method: study.place / method / MODEL for method in methods if method in trained}
    for name, models in ((UNTUNED, untuned), ("tuned", tuned)):
        results = [left_in_a_clip(study, method, saving, directory=place) for method, place in models.items()]
        if results:
            path = study.place.parent / f"regions-{study.name}-{name}.png"
            paths = retained_patches(results, checkpoint.load_card(start).model, path=path)
            cli.notice(f"wrote {', '.join(map(str, paths))}")


def left_in_a_clip(study: Study, method: MethodName, saving: float, *, directory: Path) -> Result:
    """The model's result on the first test clip, named after the method."""
    record = study.dataset.clips("test")[0]
    model, card = checkpoint.load(directory), checkpoint.load_card(directory)
    clip = Clip(path=Path(record.path), waveform=record.load())
    found = classify_clips([clip], model, card=card, keep_rate=Saving(saving), method=method, top=1, batch=1, mels=1)
    result = found.results[0]
    truth = tuple(study.dataset.labels[label] for label in record.labels)
    return dataclasses.replace(result, path=Path(method), truth=truth, **_at_few_blocks(result))


def _at_few_blocks(result: Result) -> dict[str, Any]:
    """The patches and groups after blocks 3, 6 and 9 of a method that acts in more blocks than it has room for."""
    blocks = set(result.kept) if len(result.kept) <= len(DEFAULT_BLOCKS) else set(DEFAULT_BLOCKS)
    every = {"kept": result.kept, "groups": result.groups}
    return {name: {block: of[block] for block in of if block in blocks} for name, of in every.items()}


if __name__ == "__main__":
    cli.run(main)
