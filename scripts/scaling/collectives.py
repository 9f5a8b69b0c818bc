"""What the devices of a training step tell each other, read from the program that XLA compiled for them.

`compiled_step` compiles a recipe's step for a mesh of devices from shapes alone: nothing is run, so virtual devices of
one CPU stand in for 64 accelerators. `collectives` finds in the compiled HLO every operation in which devices exchange
arrays, and `wire_bytes` says what a ring of links carries for it. XLA plans for the platform it compiles for: on an
accelerator it may choose an equivalent (a reduce-scatter where the CPU all-reduces and slices) or another format.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.config import ModelConfig
from jaxprune.features import sample_count
from jaxprune.models import Classifier, abstract
from jaxprune.parallel.devices import Layout
from jaxprune.training.loop import Training
from jaxprune.training.settings import Recipe
from jaxprune.training.step import Sound

# What makes the CPU's machine code fast takes most of the time, and nobody runs it.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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
        """What each device sends, in one run, when the group is a ring: the least that any algorithm needs."""
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
    """By kind, in the order of `KINDS`, without those that do not occur."""
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
class Program:
    """A compiled step and what it was compiled from: `hlo` is XLA's text, `parameters` counts trained numbers."""

    hlo: str
    parameters: int
    devices: int
    clips: int

    @property
    def collectives(self) -> tuple[Collective, ...]:
        return collectives(self.hlo, devices=self.devices)


def compiled_step(recipe: Recipe, config: ModelConfig, *, layout: Layout, clips: int) -> Program:
    """The last step of a recipe, at its base keep rate, with `clips` on each device.

    The model is of `config`, all its weights zero: only shapes matter. Raises `ValueError` as `Training` does.
    """
    batch = clips * recipe.loop.accumulate * len(layout.devices)
    recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, batch=batch))
    model = blank(config, dtype=recipe.precision.compute)
    alone = Layout(layout.devices[:1], spread=layout.spread)
    training = Training(recipe, model, steps_per_epoch=1, layout=alone)
    parameters = sum(leaf.size for leaf in training.state.params.values())
    # Built on one device, because 64 copies of a state would not fit anywhere; the step is traced for all of them.
    training.layout = layout
    plan = training.plan(training.total_steps - 1)
    rows = {"waveforms": (sample_count(recipe.data.frames), np.float32), "lengths": (None, np.int32)}
    rows |= {"targets": (recipe.data.classes, np.float32), "weights": (None, np.float32)}
    sound = Sound(
        **{
            name: jax.ShapeDtypeStruct((batch, size) if size else (batch,), dtype, sharding=layout.rows)
            for name, (size, dtype) in rows.items()
        }
    )
    hlo = training.lowered(sound, plan).compile(compiler_options=QUICK).as_text()
    return Program(hlo=hlo, parameters=parameters, devices=len(layout.devices), clips=clips)


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
    """How often a loop runs: as XLA tells, or, as JAX writes a scan, while its counter, from 0, is less than the only
    number in its condition."""
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
    """Of an array; a pred takes a byte."""
    return math.prod(int(length) for length in shape.split(",") if length) * int(bits or 8) // 8
