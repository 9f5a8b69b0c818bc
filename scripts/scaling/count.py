"""Reads from the compiled training step what the devices of a mesh tell each other, without running it.

    python -m scripts.scaling.count --out docs/scaling/collectives.json
    python -m scripts.scaling.count --recipe ast-as20k --devices 8 --weights divided --clips 1 2

Virtual devices of this machine's CPU stand in for accelerators. Patches are not masked, as from shrink start on. The
step of ViT-base takes some ten seconds of CPU time to compile for each line of the table.
"""

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any, Literal

import jax

from jaxprune.cli import console as cli
from jaxprune.files import write_text
from jaxprune.parallel.devices import Layout
from jaxprune.training.finetune import SPREADS
from jaxprune.training.recipes import recipe as named
from jaxprune.training.settings import Recipe
from scripts.scaling.collectives import compiled_step, totals
from scripts.scaling.projection import steady

COLUMNS = ("recipe", "size", "keep", "weights", "devices", "clips each", "collective", "count", "MB", "MB on the wire")


def main(
    *,
    recipe: tuple[str, ...] = ("audiomae-as20k", "ast-as20k"),
    size: str | None = None,
    devices: tuple[int, ...] = (8, 64),
    weights: tuple[Literal["whole", "divided"], ...] = ("whole", "divided"),
    clips: tuple[int, ...] = (1,),
    keep_rates: tuple[float, ...] = (0.7,),
    accumulate: int = 1,
    out: Path | None = None,
) -> None:
    """Compile a training step for every combination of the options and list its collectives.

    Args:
        recipe: recipes by name.
        size: size of the model; by default the recipe's.
        devices: sizes of the mesh.
        weights: whole on every device, or divided among them.
        clips: clips a device computes at a time.
        keep_rates: keep rates of the step.
        accumulate: parts a batch is computed in.
        out: where to save everything as JSON.
    """
    if not devices or min(devices) < 1 or min(clips) < 1:
        raise ValueError(f"devices {devices} and clips {clips} must be at least 1")
    recipes = [
        steady(named(name), size=size, keep_rate=rate, accumulate=accumulate) for name in recipe for rate in keep_rates
    ]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(devices))
    found = []
    for settings, spread, count, each in itertools.product(recipes, weights, devices, clips):
        found.append(measured(settings, devices=count, weights=spread, clips=each))
        if out is not None:  # after each, so that what was compiled survives an interruption
            write_text(out, json.dumps({"jax": jax.__version__, "steps": found}, indent=1) + "\n")
    cli.print_table(
        f"Per device and step, compiled for the CPU by jax {jax.__version__}",
        COLUMNS,
        [row for one in found for row in rows(one)],
        notes=["On the wire: what each device sends when they are a ring."],
    )
    if out is not None:
        cli.notice(f"saved {out}")


def measured(recipe: Recipe, *, devices: int, weights: str, clips: int) -> dict[str, Any]:
    began = time.perf_counter()
    layout = Layout(jax.devices()[:devices], spread=SPREADS[weights])
    program = compiled_step(recipe, recipe.model(), layout=layout, clips=clips)
    return {
        "recipe": recipe.name,
        "size": recipe.start.size,
        "keep_rate": recipe.prune.keep_rate,
        "accumulate": recipe.loop.accumulate,
        "weights": weights,
        "devices": devices,
        "clips": clips,
        "parameters": program.parameters,
        "seconds": round(time.perf_counter() - began, 1),
        "collectives": {kind: dataclasses.asdict(total) for kind, total in totals(program.collectives).items()},
    }


def rows(one: dict[str, Any]) -> list[tuple[object, ...]]:
    facts = [one[key] for key in ("recipe", "size", "keep_rate", "weights", "devices", "clips")]
    found = one["collectives"] or {"none": {"count": 0, "bytes": 0, "wire_bytes": 0.0}}
    return [
        (*facts, kind, total["count"], f"{total['bytes'] / 1e6:.3f}", f"{total['wire_bytes'] / 1e6:.3f}")
        for kind, total in found.items()
    ]


if __name__ == "__main__":
    cli.run(main)
