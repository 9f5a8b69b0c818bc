"""Measures weak scaling on this machine: a training step of one process on one core against two processes, a core each.

    python -m scripts.scaling.run_weak --out docs/scaling/weak.json
    python -m scripts.scaling.run_weak --quick

Give it a machine with nothing else to do, two cores and 16 GB of memory.
"""

import json
import os
from pathlib import Path

from jaxprune.cli import console as cli
from jaxprune.files import write_text
from jaxprune.training.recipes import recipe as named
from scripts.scaling.projection import steady
from scripts.scaling.weak import measure


def main(
    *,
    recipe: str = "audiomae-as20k",
    size: str | None = None,
    clips: int | None = None,
    keep_rate: float = 0.7,
    rounds: int | None = None,
    steps: int | None = None,
    cores: tuple[int, int] = (0, 1),
    out: Path | None = None,
    quick: bool = False,
) -> None:
    """Time steps of a recipe alone and together, turn by turn, each process held to its core.

    Args:
        recipe: the recipe by name; weights are random, clips are noise, patches are not masked.
        size: size of the model; base unless --quick.
        clips: clips of each process in a step; 4 unless --quick.
        keep_rate: keep rate of the step.
        rounds: turns; 5 unless --quick.
        steps: steps of each kind in a turn; 3 unless --quick.
        cores: the core of each process.
        out: where to save everything as JSON, every step's time included.
        quick: see that it works: a micro model, 2 clips, 2 rounds of 2 steps, each unless given. Its times mean little.
    """
    settings = steady(named(recipe), size=size or ("micro" if quick else "base"), keep_rate=keep_rate)
    clips, rounds, steps = clips or (2 if quick else 4), rounds or (2 if quick else 5), steps or (2 if quick else 3)
    load = os.getloadavg()[0]
    if load > 0.5:
        cli.notice(f"the machine is not quiet (load {load:.1f}): the figures mean little")
    with cli.progress("timing") as progress:
        bar = progress.add_task("", total=rounds)
        found = measure(
            settings,
            settings.model(),
            clips=clips,
            cores=cores,
            rounds=rounds,
            steps=steps,
            watch=lambda done: progress.update(bar, completed=done),
        )
    medians = found.medians
    cli.print_table(
        f"{settings.name}, {settings.start.size}, keep rate {keep_rate:g}, {clips} clips a process",
        ("", "ms a step, median", "of alone"),
        [(kind, f"{1e3 * time:.1f}", f"{time / medians['alone']:.3f}") for kind, time in medians.items()],
        notes=[
            f"Weak-scaling efficiency {found.efficiency:.1%}; two processes that do not talk reach {found.sharing:.1%}."
        ],
    )
    if out is not None:
        content = {
            "recipe": settings.to_json(),
            "clips": clips,
            "cores": cores,
            "load_before": load,
            "efficiency": found.efficiency,
            "sharing": found.sharing,
            "medians": medians,
            "seconds": found.seconds,
        }
        write_text(out, json.dumps(content, indent=1) + "\n")
        cli.notice(f"saved {out}")


if __name__ == "__main__":
    cli.run(main)
