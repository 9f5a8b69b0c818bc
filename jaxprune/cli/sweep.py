"""Accuracy, multiply-accumulates and measured time over keep rates, block sets, scores and batch sizes.

jaxprune sweep CHECKPOINT esc50 --root data/ESC-50 --blocks 3,6,9 0,4,8 --batch 1 32 --out sweep/esc50
jaxprune sweep CHECKPOINT esc50 --root data/ESC-50 --keep-rates 0.7 0.83,0.61,0.47 --max-drop 1 --out sweep/s
jaxprune sweep CHECKPOINT esc50 --root data/ESC-50 --methods evit tome grid pool --savings 0.15 0.3 0.45 --out sweep/m
jaxprune sweep CHECKPOINT esc50 --root data/ESC-50 --also TUNED-0.7 TUNED-0.5 --out sweep/tuned

The same command goes on with a sweep that was cut off, and one with more settings measures only those. Prints a table,
marks what does not pay in time, names the fastest setting within --max-drop, and writes sweep.json (everything),
sweep.csv and the pictures sweep.png and sweep.svg. To choose a setting, --split validation; to report it, test. Times
are of the forward pass alone: give it a machine with nothing else to do.
"""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxprune import files
from jaxprune.analysis.identity import describe, model_digest
from jaxprune.analysis.tables import Table
from jaxprune.cli import console as cli
from jaxprune.cli.options import OnDataset, Subject, check_folder, rates_to_measure, trained_for, with_data
from jaxprune.cli.sweep_grid import SCORES, UNTOLD, Grid
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.data.records import Dataset
from jaxprune.experiments.ablation import (
    UNPRUNED,
    Setting,
)
from jaxprune.experiments.ablation_tables import METRICS
from jaxprune.experiments.sweep import Candidate, Store, measure_quality, measure_time
from jaxprune.experiments.sweep_points import Point, fastest, points
from jaxprune.models import Classifier, topk
from jaxprune.plots.pareto import pareto_front
from jaxprune.training.recipes import recipe
from jaxprune.training.settings import Published

UNSTEADY = 0.1  # how much calls may vary before it is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Batch sizes to time, and how carefully."""

    batch: tuple[int, ...] = (1, 32)
    """batch sizes to time."""
    rounds: int = 15
    """calls timed of each setting, in turn."""

    def check(self, *, evaluation_batch: int) -> None:
        """Raises `ValueError` for sizes that are not positive, or not different."""
        sizes, rounds = self.batch, self.rounds
        if not sizes or min(*sizes, rounds, evaluation_batch, 1) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(
                f"batch is {list(sizes)}, rounds {rounds} and evaluation batch {evaluation_batch}; they must be at "
                "least 1, each batch size once"
            )


@with_data
def main(
    on: Subject,
    *,
    out: Path,
    also: tuple[Path, ...] = (),
    grid: Annotated[Grid, tyro.conf.arg(name="")] = UNTOLD,
    timing: Annotated[Timing, tyro.conf.arg(name="")] = Timing(),
    max_drop: float = 1.0,
    share: float = 0.75,
    published: str | None = None,
    evaluation_batch: int = 32,
) -> None:
    """Sweep pruning settings of a checkpoint, and pick the fastest within an accuracy loss.

    Args:
        on: the checkpoint and the clips.
        out: the folder to write to, or to go on with.
        also: more checkpoints of the same geometry and classes, such as fine-tuned ones, under the same settings.
        grid: the settings.
        timing: the batch sizes, and how often each is timed.
        max_drop: points of percent that the fastest setting may lose.
        share: the part of the ratio of multiply-accumulates that a speed-up must reach to pay; at least 1 in any case.
        published: the recipe whose published scores to draw, such as audiomae-esc50.
        evaluation_batch: clips computed together where accuracy is measured, which does not depend on it.
    """
    check_folder(out)
    timing.check(evaluation_batch=evaluation_batch)
    if max_drop < 0 or not 0 <= share <= 1:
        raise ValueError(f"max drop is {max_drop} and share {share}; they must be at least 0, and from 0 to 1")
    dataset = on.read()
    candidates = candidates_at((on.checkpoint, *also), on=on, dataset=dataset)
    first = candidates[0].model
    scored = () if published is None else scores_of(published, first)
    rates = rates_to_measure(one.card for one in candidates)
    asked = {"rates": rates, "trained": [one.card.method for one in candidates]}
    settings = {one.name: grid.settings(one.model, **asked) for one in candidates}
    with files.locked(out):
        store = Store(out / "sweep.json", about=about(candidates[0], on=on, dataset=dataset, batch=evaluation_batch))
        device = f"{jax.devices()[0].device_kind} ({platform.machine()}), {on.dtype}"
        answered = measure_answers(store, candidates, settings=settings, on=on, dataset=dataset, batch=evaluation_batch)
        timed = measure_times(store, candidates[0], settings=settings[candidates[0].name], timing=timing, device=device)
        found = points(store, candidates, settings=settings, batches=timing.batch, device=device, share=share)
        chosen = fastest(found, max_drop=max_drop / 100)
        name = f"{dataset.name}, {on.split}, {found[0].clips} clips"
        cards = {one.name: one.card for one in candidates}
        print_points(found, chosen, title=f"{name}: {on.checkpoint}", max_drop=max_drop, share=share, cards=cards)
        files.write_text(out / "sweep.csv", to_csv(found))
        drawn = f"{name}, {jax.devices()[0].device_kind}"
        pictures = pareto_front(
            found, title=drawn, path=out / "sweep.png", published=scored, chosen=list(chosen.values())
        )
        for one in candidates:
            if one.card.keep_rates:
                cli.notice(f"{one.name} was trained for {trained_for(one.card)}")
        cli.notice(f"measured now: {answered} accuracies, {timed} times; the rest was there. {device}")
        cli.notice(f"saved sweep.json, sweep.csv and {', '.join(path.name for path in pictures)} in {out}")


def about(first: Candidate, *, on: OnDataset, dataset: Dataset, batch: int) -> dict[str, str]:
    """The facts that must be the same for numbers of two runs to be compared."""
    policy = topk(first.model, {})
    told = describe(first.model, dataset, split=on.split, card=first.card, policy=policy, batch=batch)
    clips = len(dataset.clips(on.split))
    return {
        "data set": f"{dataset.name}, {on.split}, {clips} clips, {told['data']['sha256'][:16]}",
        "geometry": str(first.model.config),
        "compute type": on.dtype,
    }


def measure_answers(
    store: Store,
    candidates: Sequence[Candidate],
    *,
    settings: Mapping[str, list[Setting]],
    on: OnDataset,
    dataset: Dataset,
    batch: int,
) -> int:
    """Fills the store with what every candidate answers under its settings, with a bar. The number measured now."""
    answered = 0
    with cli.progress("{task.description}") as progress:
        bar = progress.add_task("answers", total=len(dataset.clips(on.split)))
        for one in candidates:

            def watch(count: int, done: int, name: str = one.name) -> None:
                progress.update(bar, completed=done, description=f"{name}: {count} settings together")

            answered += measure_quality(
                store,
                one,
                settings=settings[one.name],
                batches=lambda: on.batches(dataset, candidates[0].model, batch=batch),
                single_label=dataset.single_label,
                watch=watch,
            )
    return answered


def measure_times(
    store: Store, candidate: Candidate, *, settings: Sequence[Setting], timing: Timing, device: str
) -> int:
    """Fills the store with times at every batch size, with a bar. The number of settings timed now."""
    timed = 0
    with cli.progress("{task.description}") as progress:
        bar = progress.add_task("timing")
        for size in timing.batch:
            progress.update(bar, description=f"timing, batch {size}", total=len(settings) + 1, completed=0)
            timed += measure_time(
                store,
                candidate,
                settings=settings,
                batch=size,
                rounds=timing.rounds,
                device=device,
                watch=lambda done: progress.update(bar, completed=done),
            )
    return timed


def to_csv(found: Sequence[Point]) -> str:
    """Every field of every point."""
    rows = tuple(tuple(dataclasses.asdict(point).values()) for point in found)
    return Table(columns=tuple(field.name for field in dataclasses.fields(Point)), rows=rows).to_csv()


def scores_of(published: str, model: Classifier) -> tuple[Published, ...]:
    """A recipe's published scores. Raises `ValueError` where there are none, or they are of another kind of model."""
    found = recipe(published)
    if not found.expected:
        raise ValueError(f"the recipe {published} has no published scores to draw")
    here, there = macs(model, topk(model, {})) / 1e9, max(score.gmacs for score in found.expected)
    if found.start.family != model.config.family or not 0.9 < here / there < 1.1:
        raise ValueError(
            f"the published scores of {published} are of {found.start.family} with {there:g} GMACs, this is "
            f"{model.config.family} with {here:.3g}; leave out --published"
        )
    return found.expected


def candidates_at(paths: Sequence[Path], *, on: OnDataset, dataset: Dataset) -> list[Candidate]:
    """The models of checkpoints, all of one geometry.

    Each is named by its folder, or by the one above where that is just "model", as in a run. Where two would be called
    the same, the whole path is the name. Raises `ValueError` for another geometry, and for the same weights twice.
    """
    names = [path.resolve().parent.name if path.name == "model" else path.name for path in paths]
    found = []
    for path, name in zip(paths, names, strict=True):
        card, model = on.card(dataset, checkpoint=path), on.model(path)
        name = name if names.count(name) == 1 else str(path)
        found.append(Candidate(name=name, weights=model_digest(model), model=model, card=card))
        if model.config != found[0].model.config:
            raise ValueError(f"{path} is not of the geometry of {paths[0]}; sweep it to a folder of its own")
    if len({one.weights for one in found}) < len(found):
        raise ValueError("two of the checkpoints hold the same weights; name each once")
    return found


def print_points(
    found: list[Point],
    chosen: dict[int, Point],
    *,
    title: str,
    max_drop: float,
    share: float,
    cards: Mapping[str, Card],
) -> None:
    """A row for each point, and the choice. `cards` are the models', by candidate."""
    heading, factor = METRICS[found[0].metric]
    several = len({point.candidate for point in found}) > 1
    rows = [
        (
            point.batch,
            *([point.candidate] if several else []),
            point.score,
            point.blocks or "-",
            "-" if point.score == UNPRUNED else point.keep,
            f"{factor * point.quality:.2f}",
            f"{factor * point.drop:.2f}" + interval(point, factor),
            f"{point.gmacs:.4f}",
            f"{point.milliseconds:.3f}",
            f"{point.clips_per_second:.1f}",
            f"{point.speed_up:.2f}",
            f"{point.gain:.2f}",
            "; ".join(remarks(point, chosen, card=cards[point.candidate])),
        )
        for point in found
    ]
    headings = ["batch", *(["model"] if several else []), "score", "blocks", "keep", heading, "lost", "GMACs"]
    headings += ["ms per clip", "clips/s", "speed-up", "gain", ""]
    bad = sum(not point.pays for point in found)
    notes = [
        "Lost: points of percent against the first model without pruning, 95 % intervals over clips. Gain: speed-up "
        "as a share of the ratio of GMACs.",
        f"{bad} of {len(found)} settings do not pay in time: slower than without pruning, or gain under {share:g}.",
    ]
    for size, point in chosen.items():
        if point.unsteady > UNSTEADY:
            notes.append(
                f"Batch {size}: calls of the unpruned model varied by {100 * point.unsteady:.0f} % (between "
                "quartiles): the machine was busy, so these times say little."
            )
        where = f" at {point.blocks}" if point.blocks else ""
        what = "no pruning" if point.score == UNPRUNED else f"{point.score} {point.keep}{where}"
        what = f"{point.candidate}, {what}" if several else what
        notes.append(
            f"Batch {size}: fastest within {max_drop:g} points is {what}: {point.clips_per_second:.1f} clips/s, "
            f"{point.speed_up:.2f} times the speed, {factor * point.drop:.2f} lost."
        )
    cli.print_table(title, headings, rows, notes=notes)


def interval(point: Point, factor: float) -> str:
    """The interval in brackets, or nothing where there is none."""
    if point.drop_low != point.drop_low:
        return ""
    return f" [{factor * point.drop_low:.2f}, {factor * point.drop_high:.2f}]"


def remarks(point: Point, chosen: dict[int, Point], *, card: Card) -> list[str]:
    """A point's marks in the table."""
    rates = point.keep.split("/") if point.blocks else ["1"]
    known = [float(rate) for rate in rates if cli.is_number(rate)]  # savings are no keep rates
    other = card.method != "topk" and point.score not in (UNPRUNED, SCORES.get(card.method, card.method))
    said = [] if all(map(card.covers, known)) and not other else ["not trained for"]
    said += [] if point.pays else ["does not pay"]
    said += ["not beaten"] if point.best_by_time else []
    return said + (["fastest within"] if chosen.get(point.batch) == point else [])
