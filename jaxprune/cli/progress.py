"""A training run on the terminal while it happens: notes, a bar, each evaluation and a table at the end."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import TextColumn

from jaxprune.cli import console as cli
from jaxprune.parallel.processes import is_first
from jaxprune.training.events import Evaluation, Step
from jaxprune.training.run import Beginning, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """The parts of a run's report that its task decides: an evaluation in words, the table at the end, and what is
    done with further events."""

    evaluation: Callable[[Evaluation], str]
    table: Callable[..., None]
    further: Callable[[Any, Path], str]


def follow(events: Iterator[Any], out: Path, *, title: str = "training", wording: Wording | None = None) -> Outcome:
    """Goes through a run to its outcome. The first of several processes shows it as `show` does, the others nothing."""
    return show(events, out, title=title, wording=wording) if is_first() else deque(events, maxlen=1).pop()


def show(events: Iterator[Any], out: Path, *, title: str = "training", wording: Wording | None = None) -> Outcome:
    """Shows what `finetune` or `pretrain` yields in the directory `out` up to and with the run's outcome, which it
    returns.

    `wording` is fine-tuning's unless another is given. The bar, with the time that is left, is there on a terminal
    only.
    """
    wording = wording or FINETUNING
    speeds: deque[float] = deque(maxlen=50)
    began = time.perf_counter()
    with cli.progress("{task.description}", TextColumn("{task.fields[facts]}")) as progress:
        bar = progress.add_task(title, total=None, facts="compiling")
        for event in events:
            match event:
                case Beginning():
                    print_beginning(event, out)
                    progress.update(bar, total=event.total_steps, completed=event.step)
                case Step():
                    if not event.compiled:
                        speeds.append(event.clips_per_second)
                    progress.update(bar, completed=event.step + 1, facts=in_words(event, speeds))
                case Evaluation():
                    progress.console.print(wording.evaluation(event), highlight=False)
                case Outcome():
                    outcome = event
                    break
                case _:
                    progress.console.print(wording.further(event, out), highlight=False)
    if outcome.result is None:
        cli.notice(f"asked to stop: saved after step {outcome.step}; the same command goes on")
    else:
        wording.table(outcome.result, out, seconds=time.perf_counter() - began, speed=median(speeds))
    return outcome


def median(speeds: deque[float]) -> float | None:
    """The middle one of the latest speeds, or None before there is one."""
    return sorted(speeds)[len(speeds) // 2] if speeds else None


def in_words(step: Step, speeds: deque[float]) -> str:
    """A training step as one line of progress."""
    speed = f"{median(speeds):.0f} clips/s" if speeds else "compiling"
    waiting = f", {100 * step.waiting:.0f} % waiting for data" if step.waiting > 0.05 else ""
    return f"loss {step.loss:.4f}  lr {step.lr:.2e}  keep {step.keep_rate:.3f}  {speed}{waiting}"


def print_beginning(event: Beginning, out: Path) -> None:
    """Says what is trained on what, where, and what was assumed."""
    recipe, sizes = event.recipe, event.dataset.sizes()
    clips = ", ".join(f"{count} {split}" for split, count in sizes.items())
    cli.notice(f"{recipe.name} ({recipe.source}) on {event.dataset.name}: {clips} clips; run in {out}")
    if 0 < event.step < event.total_steps:
        cli.notice(f"goes on after step {event.step} of {event.total_steps}")
    for note in event.notes:
        cli.notice(note)
    if event.selects_on == "test":
        cli.notice("there are no validation clips: the last model is saved, and test scores choose nothing")


def evaluation_in_words(event: Evaluation) -> str:
    """An evaluation of fine-tuning as one line."""
    return (
        f"after step {event.step}: {event.metric} {100 * event.score:.2f} %, loss {event.loss:.4f}, "
        f"{event.clips} clips, {at_rates(event)}"
    )


def at_rates(event: Evaluation) -> str:
    """The keep rate, or the mean's rates with the score at each."""
    if event.keep_rate is not None:
        return f"keep rate {event.keep_rate:g}"
    scores = ", ".join(f"{100 * one.score:.2f} % at {one.keep_rate:g}" for one in event.rates)
    return f"mean over keep rates ({scores})"


def print_result(result: dict[str, Any], out: Path, *, seconds: float, speed: float | None) -> None:
    """Prints the table of a finished run: a row for each split and keep rate."""
    measured = [
        (split, found["clips"], one) for split, found in result["scores"].items() for one in rows_of(found, result)
    ]
    rows = [
        (
            split,
            clips,
            *(percent(one[name]) for name in ("top1", "top5", "mean_average_precision")),
            f"{one['loss']:.4f}",
            f"{one['keep_rate']:g}",
            f"{one['macs'] / 1e9:.2f}",
            f"{100 * (1 - one['macs'] / result['unpruned_macs']):.1f} %",
        )
        for split, clips, one in measured
    ]
    columns = ("split", "clips", "top-1", "top-5", "mAP", "loss", "keep rate", "GMACs", "saved")
    notes = [
        f"model of step {result['saved_step']} ({result['saved']}): {result['model']}",
        f"{result['steps']} steps, {result['compilations']} compiled sizes, {seconds / 60:.1f} minutes here, "
        f"{result['device']}",
    ]
    rates = {one["keep_rate"] for _, _, one in measured}
    for score in result["recipe"]["expected"]:
        if score["keep_rate"] in rates:
            at = f" at {score['keep_rate']:g}" if len(rates) > 1 else ""
            notes.append(f"published: {score['metric']} {score['percent']:.2f} %{at} ({score['source']})")
    cli.print_table(f"{result['data_set']}, {result['recipe']['name']}", columns, rows, notes=notes)
    cli.notice(f"see {out / 'result.json'} and {out / 'metrics.jsonl'}")


def rows_of(found: dict[str, Any], result: dict[str, Any]) -> list[dict[str, Any]]:
    """A split's scores at each keep rate. Results of earlier versions have one rate, and its cost beside it."""
    target = {"keep_rate": result["recipe"]["prune"]["keep_rate"], "macs": result["macs"]}
    return found.get("rates") or [found | target]


def percent(share: float | None) -> str:
    """A share as text, or a dash for none."""
    return "-" if share is None else f"{100 * share:.2f} %"


FINETUNING = Wording(evaluation=evaluation_in_words, table=print_result, further=lambda event, out: str(event))
