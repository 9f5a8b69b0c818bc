"""Lists what the devices of a training step tell each other, read from the program that XLA compiled for them.

    python -m scripts.scaling.collectives --out docs/scaling/collectives.json
    python -m scripts.scaling.collectives --recipe ast-as20k --devices 8 --weights divided --clips 1 2

A recipe's step is compiled for a mesh of devices from shapes alone. Nothing is run, so virtual devices of this
machine's CPU stand in for 64 accelerators; the step of ViT-base takes some ten seconds of CPU time for each line of the
table. `collectives` finds every operation in which devices exchange arrays, and `wire_bytes` says what a ring of links
carries for it. XLA plans for the platform it compiles for: on an accelerator it may choose an equivalent (a
reduce-scatter where the CPU all-reduces and slices) or another format. Patches are not masked, as from shrink start on.
"""

import dataclasses
import itertools
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.cli import console as cli
from jaxprune.config import ModelConfig
from jaxprune.features import sample_count
from jaxprune.files import write_text
from jaxprune.models import Classifier, abstract
from jaxprune.parallel.devices import Layout
from jaxprune.training.classification import Classification
from jaxprune.training.loop import Training
from jaxprune.training.recipes import recipe as named
from jaxprune.training.run import SPREADS
from jaxprune.training.settings import Recipe
from jaxprune.training.step import Program
from jaxprune.training.task import Sound
from scripts.scaling.projection import steady

COLUMNS = ("recipe", "size", "keep", "weights", "devices", "clips each", "collective", "count", "MB", "MB on the wire")
# Making the machine code fast takes most of the time, and nobody runs it.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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
    """A step's collectives, and its facts."""
    began = time.perf_counter()
    layout = Layout(jax.devices()[:devices], spread=SPREADS[weights])
    step = compiled_step(recipe, recipe.model(), layout=layout, clips=clips)
    return {
        "recipe": recipe.name,
        "size": recipe.start.size,
        "keep_rate": recipe.prune.keep_rate,
        "accumulate": recipe.loop.accumulate,
        "weights": weights,
        "devices": devices,
        "clips": clips,
        "parameters": step.parameters,
        "seconds": round(time.perf_counter() - began, 1),
        "collectives": {kind: dataclasses.asdict(total) for kind, total in totals(step.collectives).items()},
    }


def rows(one: dict[str, Any]) -> list[tuple[object, ...]]:
    facts = [one[key] for key in ("recipe", "size", "keep_rate", "weights", "devices", "clips")]
    found = one["collectives"] or {"none": {"count": 0, "bytes": 0, "wire_bytes": 0.0}}
    return [
        (*facts, kind, total["count"], f"{total['bytes'] / 1e6:.3f}", f"{total['wire_bytes'] / 1e6:.3f}")
        for kind, total in found.items()
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One operation of a program, `times` a run. `bytes` is the whole array that `devices` of a group exchange: what is
    reduced, the result of a gather, all of what is scattered; each device holds all or its part of it."""

    kind: str
    bytes: int
    dtypes: tuple[str, ...]
    devices: int
    times: int = 1

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends in one run when the group is a ring: the least that any algorithm needs."""
        share = {"all-reduce": 2 * (self.devices - 1) / self.devices, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (self.devices - 1) / self.devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Total:
    """All collectives of a kind, of one device and step."""

    count: int
    bytes: int
    wire_bytes: float
    dtypes: tuple[str, ...]


def totals(found: Iterable[Collective]) -> dict[str, Total]:
    """The totals by kind, in the order of `KINDS`, without those that do not occur."""
    by_kind = defaultdict(list)
    for one in found:
        by_kind[one.kind].append(one)
    return {
        kind: Total(
            count=sum(one.times for one in by_kind[kind]),
            bytes=sum(one.times * one.bytes for one in by_kind[kind]),
            wire_bytes=sum(one.wire_bytes for one in by_kind[kind]),
            dtypes=tuple(sorted({dtype for one in by_kind[kind] for dtype in one.dtypes})),
        )
        for kind in KINDS
        if kind in by_kind
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled step and what it was compiled from: `hlo` is XLA's text, `parameters` counts trained numbers."""

    hlo: str
    parameters: int
    devices: int
    clips: int

    @property
    def collectives(self) -> tuple[Collective, ...]:
        return collectives(self.hlo, devices=self.devices)


def compiled_step(recipe: Recipe, config: ModelConfig, *, layout: Layout, clips: int) -> Compiled:
    """The last step of a recipe, at its target keep rate, with `clips` on each device.

    The model is of `config`, all its weights zero: only shapes matter. Raises `ValueError` as `Training` does.
    """
    batch = clips * recipe.loop.accumulate * len(layout.devices)
    recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, batch=batch))
    model = blank(config, dtype=recipe.precision.compute)
    # The state lies on one device, because 64 copies would not fit anywhere; the step is traced for all of them.
    task = Classification(recipe, model, steps_per_epoch=1)
    training = Training(task, model, layout=Layout(layout.devices[:1], spread=layout.spread))
    parameters = sum(leaf.size for leaf in training.state.params.values())
    plan = training.plan(training.total_steps - 1)
    rows = {"waveforms": (sample_count(recipe.data.frames), np.float32), "lengths": (None, np.int32)}
    rows |= {"targets": (recipe.data.classes, np.float32), "weights": (None, np.float32)}
    sound = Sound(
        **{
            name: jax.ShapeDtypeStruct((batch, size) if size else (batch,), dtype, sharding=layout.rows)
            for name, (size, dtype) in rows.items()
        }
    )
    program = Program(task, model, layout=layout)
    lowered = program.lowered(training.state, jax.random.key(0), sound, plan)
    hlo = lowered.compile(compiler_options=QUICK).as_text()
    return Compiled(hlo=hlo, parameters=parameters, devices=len(layout.devices), clips=clips)


def blank(config: ModelConfig, *, dtype: Any) -> Classifier:
    """A model of zeros, which is there at once."""
    graph, shapes = nnx.split(abstract(config, dtype=dtype))
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))


def collectives(hlo: str, *, devices: int) -> tuple[Collective, ...]:
    """Every collective of a compiled module for so many devices, those in loops as often as the loop runs.

    Both branches of a condition count. Raises `ValueError` for a collective in a loop whose length XLA does not tell.
    """
    entry, bodies = _computations(hlo)
    return tuple(_walk(entry, bodies, devices=devices, times=1))


# An instruction: its name, type, operation, and the rest. Types of tuples hold spaces, but no word before a bracket.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]<=|\{\{([\d,]+)\})")


def _computations(hlo: str) -> tuple[str, dict[str, list[tuple[str, str, str]]]]:
    """The entry's name, and the (type, operation, rest) of each instruction of each computation."""
    entry, name = None, ""
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    for line in hlo.splitlines():
        if header := HEADER.match(line):
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name and (instruction := INSTRUCTION.match(line)):
            bodies[name].append(instruction.groups())
    if entry is None:
        raise ValueError("not the text of a compiled HLO module: it has no ENTRY")
    return entry, bodies


def _walk(
    name: str, bodies: dict[str, list[tuple[str, str, str]]], *, devices: int, times: int | None
) -> Iterator[Collective]:
    """The collectives of a computation and of those it calls. `times` is None in a loop of unknown length."""
    for type_, operation, rest in bodies.get(name, ()):
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            if times is None:
                raise ValueError(f"a {kind} is in a loop whose length XLA does not tell, so its bytes are unknown")
            yield _collective(kind, type_, rest, devices=devices, times=times, started=operation != kind)
        if operation.endswith(("-done", "-update")):  # names the computation that its start has called
            continue
        inside = times
        if operation == "while":
            trips = _trips(rest, bodies)
            inside = None if trips is None or times is None else times * trips
        called = CALLED.findall(rest)
        for branches in BRANCHES.findall(rest):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for other in called:
            yield from _walk(other, bodies, devices=devices, times=inside)


def _trips(rest: str, bodies: dict[str, list[tuple[str, str, str]]]) -> int | None:
    """The times that a loop runs: as XLA tells, or as JAX writes a scan, while its counter, from 0, is less than the
    only number in its condition."""
    if told := TRIPS.search(rest):
        return int(told[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    names = [condition[1]] if condition else []
    lines = [line for name in names for line in bodies.get(name, ())]
    lines += [line for _, _, more in lines for name in CALLED.findall(more) for line in bodies.get(name, ())]
    limits = [more for type_, operation, more in lines if operation == "constant" and type_.startswith(("s32", "s64"))]
    counts_up = any("direction=LT" in more for _, _, more in lines)
    return int(limits[0].split(")")[0]) if len(limits) == 1 and counts_up else None


def _collective(kind: str, type_: str, rest: str, *, devices: int, times: int, started: bool) -> Collective:
    arrays = [(dtype, _bytes(bits, shape)) for dtype, bits, shape in ARRAY.findall(type_)]
    if started and kind == "all-gather":  # (operands, results)
        arrays = arrays[len(arrays) // 2 :]
    if started and kind == "collective-permute":  # (operand, result, context ...)
        arrays = arrays[1:2]
    groups = GROUPS.search(rest)
    size = devices
    if groups:
        size = int(groups[1]) if groups[1] else groups[2].count(",") + 1
    total = sum(count for _, count in arrays) * (size if kind == "reduce-scatter" else 1)
    dtypes = tuple(sorted({dtype for dtype, _ in arrays}))
    return Collective(kind=kind, bytes=total, dtypes=dtypes, devices=size, times=times)


def _bytes(bits: str, shape: str) -> int:
    """Bytes of an array; a pred takes one."""
    return math.prod(int(length) for length in shape.split(",") if length) * int(bits or 8) // 8


if __name__ == "__main__":
    cli.run(main)
