"""Fine-tunes AST or AudioMAE by a published recipe, with the keep rate falling on the way.

    python scripts/finetune.py ast-esc50 --data.root data/ESC-50 --start.checkpoint ast --out runs/esc50
    python scripts/finetune.py audiomae-speechcommands --data.root data/speech_commands_v0.02 --prune.keep-rate 0.5

The same command goes on with a run that was cut off. Own sounds: --data.dataset NAME --data.root FOLDER.
"""

import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxprune import cli
from jaxprune.finetune import Beginning, Options, Outcome, Where, finetune
from jaxprune.recipes import RECIPES
from jaxprune.runs import StopOnSignal
from jaxprune.settings import Recipe
from jaxprune.train import Evaluation, Step

NOWHERE_ELSE, DEFAULTS = Where(), Options()
# A recipe a subcommand, every field of it an option with that recipe's default.
Recipes = tyro.extras.subcommand_type_from_defaults(RECIPES, prefix_names=False, sort_subcommands=False)


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs, tyro.conf.AvoidSubcommands)
def main(
    recipe: Annotated[Recipes, tyro.conf.arg(name="")],
    where: Annotated[Where, tyro.conf.arg(name="")] = NOWHERE_ELSE,
    options: Annotated[Options, tyro.conf.arg(name="")] = DEFAULTS,
    out: Path | None = None,
    seed: int | None = None,
) -> int:
    """Fine-tune a model by a recipe; the same command resumes a run that was cut off.

    Args:
        recipe: what to train on what, how.
        where: where the clips are, beside --data.root.
        options: how to carry it out.
        out: the run's directory; by default runs/RECIPE-KEEPRATE-SEED.
        seed: decides weights, order and augmentation; by default the first of the recipe's seeds.
    """
    seed = recipe.loop.seeds[0] if seed is None else seed
    out = out or Path("runs") / f"{recipe.name}-{recipe.prune.keep_rate:g}-{seed}"
    with StopOnSignal() as stop:
        return show(recipe, out, seed=seed, where=where, options=options, stop=stop)


def show(recipe: Recipe, out: Path, **arguments: Any) -> int:
    """Runs and shows it; returns the exit code: 0, or 143 where it was asked to stop."""
    console = cli.console()
    text = "{task.description}", "{task.fields[facts]}"
    columns = (TextColumn(text[0]), BarColumn(), MofNCompleteColumn(), TextColumn(text[1]), TimeRemainingColumn())
    speeds: deque[float] = deque(maxlen=50)
    began = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=None, facts="compiling")
        for event in finetune(recipe, out, **arguments):
            match event:
                case Beginning():
                    print_beginning(event, out)
                    progress.update(bar, total=event.total_steps, completed=event.step)
                case Step():
                    if not event.compiled:
                        speeds.append(event.clips_per_second)
                    progress.update(bar, completed=event.step + 1, facts=in_words(event, speeds))
                case Evaluation():
                    progress.console.print(
                        f"after step {event.step}: {event.metric} {100 * event.score:.2f} %, loss {event.loss:.4f}, "
                        f"{event.clips} clips, keep rate {event.keep_rate:g}",
                        highlight=False,
                    )
                case Outcome(result=None):
                    cli.notice(f"asked to stop: saved after step {event.step}; the same command goes on")
                    return 143
                case Outcome():
                    result = event.result
    print_result(result, out, seconds=time.perf_counter() - began)
    return 0


def in_words(step: Step, speeds: deque[float]) -> str:
    speed = f"{sorted(speeds)[len(speeds) // 2]:.0f} clips/s" if speeds else "compiling"
    waiting = f", {100 * step.waiting:.0f} % waiting for data" if step.waiting > 0.05 else ""
    return f"loss {step.loss:.4f}  lr {step.lr:.2e}  keep {step.keep_rate:.3f}  {speed}{waiting}"


def print_beginning(event: Beginning, out: Path) -> None:
    recipe, sizes = event.recipe, event.dataset.sizes()
    clips = ", ".join(f"{count} {split}" for split, count in sizes.items())
    cli.notice(f"{recipe.name} ({recipe.source}) on {event.dataset.name}: {clips} clips; run in {out}")
    if event.step:
        cli.notice(f"goes on after step {event.step} of {event.total_steps}")
    for note in event.notes:
        cli.notice(note)
    if event.selects_on == "test":
        cli.notice("there are no validation clips: the last model is saved, and test scores choose nothing")


def print_result(result: dict[str, Any], out: Path, *, seconds: float) -> None:
    rate = result["recipe"]["prune"]["keep_rate"]
    rows = [
        (
            split,
            found["clips"],
            f"{100 * found['top1']:.2f} %",
            f"{100 * found['top5']:.2f} %",
            "-" if found["mean_average_precision"] is None else f"{100 * found['mean_average_precision']:.2f} %",
            f"{found['loss']:.4f}",
            f"{rate:g}",
            f"{result['macs'] / 1e9:.2f}",
            f"{100 * (1 - result['macs'] / result['unpruned_macs']):.1f} %",
        )
        for split, found in result["scores"].items()
    ]
    columns = ("split", "clips", "top-1", "top-5", "mAP", "loss", "keep rate", "GMACs", "saved")
    notes = [
        f"model of step {result['saved_step']} ({result['saved']}): {result['model']}",
        f"{result['steps']} steps, {result['compilations']} compiled sizes, {seconds / 60:.1f} minutes here, "
        f"{result['device']}",
    ]
    for score in result["recipe"]["expected"]:
        if score["keep_rate"] == rate:
            notes.append(f"published: {score['metric']} {score['percent']:.2f} % ({score['source']})")
    cli.print_table(f"{result['data_set']}, {result['recipe']['name']}", columns, rows, notes=notes)
    cli.notice(f"wrote {out / 'result.json'} and {out / 'metrics.jsonl'}")


if __name__ == "__main__":
    cli.run(main)
