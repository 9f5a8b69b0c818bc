"""Carries out a recipe's whole protocol: every fold and seed, each a run of `jaxprune finetune`, then mean and spread.

    jaxprune protocol ast-esc50 --data.root data/ESC-50 --start.checkpoint ast --out runs/esc50
    jaxprune protocol ast-speechcommands --data.root data/speech_commands_v0.02 --loop.seeds 0 1 2

Finished runs are skipped and a run that was cut off goes on, so the same command again does what is left, and more
--loop.seeds or --data.folds add theirs. Several processes train together as with `jaxprune finetune`: --launch.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.cli import console as cli
from jaxprune.cli.finetune import Recipes
from jaxprune.cli.progress import show
from jaxprune.parallel.processes import Launch, StopOnSignal, is_first, joined
from jaxprune.training.protocol import SUMMARY, Next, Spread, Summary, carry_out
from jaxprune.training.run import Event, Options
from jaxprune.training.settings import Recipe
from jaxprune.training.start import Sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere(Sources):
    """Places of the clips that `data.root` does not name. The fold is set run by run."""

    fold: tyro.conf.Suppress[int] = 1


NOWHERE_ELSE, DEFAULTS, ALONE = Elsewhere(), Options(), Launch()


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs, tyro.conf.AvoidSubcommands)
def main(
    recipe: Annotated[Recipes, tyro.conf.arg(name="")],
    sources: Annotated[Elsewhere, tyro.conf.arg(name="")] = NOWHERE_ELSE,
    options: Annotated[Options, tyro.conf.arg(name="")] = DEFAULTS,
    launch: Launch = ALONE,
    out: Path | None = None,
) -> int:
    """Fine-tune by a recipe once for each of its folds and seeds; the same command goes on (exit code 143 on SIGTERM).

    Args:
        recipe: what to train on what, how, and with which folds and seeds.
        sources: where the clips are, beside --data.root.
        options: how to carry it out.
        launch: several processes that train together, each started with the same command but for its index.
        out: the directory, with one for each run in it; by default runs/RECIPE-KEEPRATE-protocol.
    """
    out = out or Path("runs") / f"{recipe.name}-{recipe.prune.in_names}-protocol"
    with StopOnSignal() as stop, joined(launch):
        events = carry_out(recipe, out, sources=sources, options=options, stop=stop)
        if is_first():
            summary = show_runs(events, out)
            if summary is not None:
                print_summary(summary, recipe, out=out)
        else:
            summary = next((event for event in events if isinstance(event, Summary)), None)
    return 143 if summary is None else 0


def show_runs(events: Iterator[Next | Event | Summary], out: Path) -> Summary | None:
    """Shows each run as `jaxprune finetune` does. Returns the summary, or None where it was asked to stop before."""
    total = finished = 0
    for event in events:
        match event:
            case Next():
                total, finished = event.total, event.finished
                left = "" if event.seconds_left is None else f", about {in_words(event.seconds_left)} left"
                cli.notice(f"run {event.number} of {total}: {event.run}; {finished} finished{left}")
                title = f"{event.run} ({event.number} of {total})"
                outcome = show(events, out / event.run.directory, title=title)
                finished += outcome.result is not None
            case Summary():
                return event
    cli.notice(f"asked to stop: {finished} of {total} runs are finished; the same command goes on")
    return None


def print_summary(summary: Summary, recipe: Recipe, *, out: Path) -> None:
    """A row for each run, then what the numbers are and what they come to."""
    chosen = summary.evaluated == "validation"
    columns = ("fold", "seed", "clips", f"{summary.metric} %", "validation %" if chosen else "best epoch %", "loss")
    rows = [
        (
            "-" if row.fold is None else row.fold,
            row.seed,
            row.clips,
            f"{100 * row.score:.2f}",
            f"{100 * row.best_score:.2f}",
            f"{row.loss:.4f}",
            row.saved_step,
        )
        for row in summary.rows
    ]
    folded = summary.rows[0].fold is not None
    saving = 1 - summary.macs / summary.unpruned_macs
    if summary.keep_rate is None:
        rates = f"mean over the keep rates {' '.join(f'{rate:g}' for rate in recipe.prune.rates)}; at the lowest"
    else:
        rates = f"keep rate {summary.keep_rate:g}"
    notes = [
        f"{summary.metric} on {summary.split} clips{', each seed its mean over the folds' if folded else ''}: "
        f"{spread_in_words(summary.final)}",
        f"model of the {'epoch that was best on validation' if chosen else 'last epoch; no test clip chose anything'}; "
        f"{rates}, {summary.macs / 1e9:.2f} GMACs, {100 * saving:.1f} % saved",
    ]
    if summary.split == "validation":
        notes.append("there are no test clips: the validation clips chose the epoch, which flatters the score")
    if not chosen:
        notes.append(
            f"best epoch on the same test clips, flattered by choosing on them: {spread_in_words(summary.best)}"
        )
    if summary.pooled is not None:
        notes.append(f"pooled over all {summary.clips} held-out clips of folds and seeds: {100 * summary.pooled:.2f} %")
    notes += [
        f"published: {score.metric} {score.percent:.2f} % ({score.source})"
        for score in recipe.expected
        if score.keep_rate == summary.keep_rate
    ]
    cli.print_table(f"{recipe.name}, protocol", (*columns, "saved step"), rows, notes=notes)
    cli.notice(f"wrote {out / SUMMARY}")


def spread_in_words(spread: Spread) -> str:
    mean, seeds = f"{100 * spread.mean:.2f} %", len(spread.by_seed)
    if spread.std is None:
        return f"{mean} with one seed"
    return f"mean {mean}, standard deviation {100 * spread.std:.2f} over {seeds} seeds (n - 1 in the denominator)"


def in_words(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{seconds / 3600:.1f} hours" if minutes >= 90 else f"{minutes} minute{'s' if minutes > 1 else ''}"
