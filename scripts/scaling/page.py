"""Works out step time, efficiency and input bandwidth on 8, 64 and 512 accelerators: the tables of docs/scaling.md.

    python -m scripts.scaling.page
    python -m scripts.scaling.page --page docs/scaling.md

Reads the measurements of collectives.py, loading.py and weak_scaling.py beside it. The rest is public specifications
and stated assumptions (projection.py). Prints Markdown.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxprune.cli import console as cli
from jaxprune.data.tables import read_text
from jaxprune.files import write_text
from jaxprune.training.recipes import recipe as named
from scripts.scaling.projection import (
    ACCELERATORS,
    AUDIOSET_CLIPS,
    CLIP_BYTES,
    Assumptions,
    StepTime,
    cores,
    reduced_bytes,
    step_time,
)

RESULTS = Path(__file__).parents[2] / "docs" / "scaling"
RECIPES = {"AudioMAE": "audiomae-as20k", "AST": "ast-as20k"}
KEEP_RATES = (1.0, 0.7)
ASSUMED = Assumptions()
WEAK_COMMAND = "python -m scripts.scaling.weak_scaling --clips 2 --rounds 2 --steps 2 --out docs/scaling/weak.json"
PAGE_COMMAND = "python -m scripts.scaling.page --page docs/scaling.md"
BEGIN, END = "<!-- tables: python -m scripts.scaling.page -->", "<!-- end of tables -->"


def main(
    *,
    collectives: Path = RESULTS / "collectives.json",
    loading: Path = RESULTS / "loading.json",
    weak: Path = RESULTS / "weak.json",
    accelerators: tuple[str, ...] = tuple(ACCELERATORS),
    devices: tuple[int, ...] = (8, 64, 512),
    clips: int = 16,
    batch: int = 512,
    assumptions: Assumptions = ASSUMED,
    page: Path | None = None,
) -> None:
    """Print the tables as Markdown.

    Args:
        collectives: what scripts.scaling.collectives has saved.
        loading: what scripts.scaling.loading has saved.
        weak: what scripts.scaling.weak_scaling has saved, if it was run.
        accelerators: which, by name.
        devices: how many.
        clips: clips of each device, where the batch grows with the devices.
        batch: clips of all devices, where it does not.
        assumptions: what is assumed.
        page: a page to fill the tables in, between its marks.
    """
    if unknown := set(accelerators) - set(ACCELERATORS):
        raise ValueError(f"there is no accelerator {sorted(unknown)[0]}; choose among {', '.join(ACCELERATORS)}")
    if not devices or min(*devices, clips, batch) < 1:
        raise ValueError(f"devices {devices}, clips {clips} and batch {batch} must be at least 1")
    steps = read(collectives)["steps"]
    costs = {(one["kind"], one["seconds"]): one["cpu_ms"] for one in read(loading)["loading"]}
    parts = ["### Collectives of a step, compiled", markdown(*collective_table(steps))]
    for name in accelerators:
        accelerator, rows = ACCELERATORS[name], []
        for family, recipe in RECIPES.items():
            work = partial(
                step_time,
                named(recipe).model(),
                reduced_bytes=reduced_bytes(steps, recipe),
                accelerator=accelerator,
                assumptions=assumptions,
            )
            sizes = [(count, each) for count in devices for each in dict.fromkeys((clips, batch // count)) if each]
            rows += worked_out(family, work, sizes=sizes, costs=costs)
        assumed = (
            f"Assumed, not measured: the arithmetic reaches {assumptions.utilisation:.0%} of the peak, the links "
            f"{assumptions.link:.0%} of theirs."
        )
        parts += [f"### {accelerator.name}, worked out", f"{accelerator.source}. {assumed}", markdown(COLUMNS, rows)]
    parts += ["### Reading clips, measured", markdown(*loading_table(costs))]
    parts += ["### Two processes on this machine", weak_scaling(weak)]
    text = "\n\n".join(parts)
    print(text)
    if page is not None:
        fill(page, text)
        cli.notice(f"filled in {page}")


def weak_scaling(path: Path) -> str:
    if not path.exists():
        return f"**Not measured yet.** On a quiet machine: `{WEAK_COMMAND}`, then `{PAGE_COMMAND}`."
    found = read(path)
    times = markdown(("", "ms a step, median"), [(k, f"{1e3 * time:.0f}") for k, time in found["medians"].items()])
    recipe = found["recipe"]
    return (
        f"{recipe['name']}, {recipe['start']['size']}, keep rate {recipe['prune']['keep_rate']:g}, {found['clips']} "
        f"clips a process, a core each (`{WEAK_COMMAND}`):\n\n{times}\n\n"
        f"Weak-scaling efficiency {found['efficiency']:.1%}; two processes that do not talk to each other reach "
        f"{found['sharing']:.1%}."
    )


def fill(page: Path, text: str) -> None:
    """Puts the tables between the page's two marks."""
    before, begin, rest = read_text(page).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: does not hold {BEGIN} and {END}, between which the tables belong")
    write_text(page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


COLUMNS = (
    "model",
    "keep rate",
    "devices",
    "clips each",
    "compute, ms",
    "communication, ms",
    "step, ms: overlapped, not",
    "efficiency: overlapped, not",
    "clips/s",
    "GB/s",
    "epoch of AS-2M, s",
    "cores: wav, shards",
)


def worked_out(
    family: str,
    work: Callable[..., StepTime],
    *,
    sizes: Sequence[tuple[int, int]],
    costs: Mapping[tuple[str, int], float],
) -> list[tuple[str, ...]]:
    """A row for every keep rate and every (devices, clips each)."""
    return [
        (family, f"{rate:g}", *row(work(rate, devices=count, clips=each), costs))
        for rate in KEEP_RATES
        for count, each in sizes
    ]


def row(time: StepTime, costs: Mapping[tuple[str, int], float]) -> tuple[str, ...]:
    wanted = time.clips_per_second
    return (
        str(time.devices),
        str(time.clips),
        f"{1e3 * time.compute:.2f}",
        f"{1e3 * time.communication:.2f}",
        f"{1e3 * time.overlapped:.2f}, {1e3 * time.sequential:.2f}",
        ", ".join(f"{share:.0%}" for share in time.efficiency),
        f"{wanted:,.0f}",
        f"{wanted * CLIP_BYTES / 1e9:.2f}",
        f"{AUDIOSET_CLIPS / wanted:.0f}",
        f"{cores(wanted, costs['wav, 16 kHz', 10])}, {cores(wanted, costs['shards, int16', 10])}",
    )


def collective_table(steps: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = ("recipe", "keep rate", "weights", "devices", "clips each", "parameters", "collective", "count", "MB")
    rows = [
        (
            one["recipe"],
            f"{one['keep_rate']:g}",
            one["weights"],
            str(one["devices"]),
            str(one["clips"]),
            f"{one['parameters']:,}",
            f"{kind}, {', '.join(total['dtypes'])}",
            str(total["count"]),
            f"{total['bytes'] / 1e6:.3f}",
            f"{total['wire_bytes'] / 1e6:.3f}",
        )
        for one in steps
        for kind, total in one["collectives"].items()
    ]
    return (*columns, "MB on the wire"), rows


def loading_table(costs: Mapping[tuple[str, int], float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [(kind, str(length), f"{cost:.3f}", f"{1e3 / cost:,.0f}") for (kind, length), cost in costs.items()]
    return ("clips", "seconds", "CPU ms each", "a CPU second"), rows


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error


if __name__ == "__main__":
    cli.run(main)
