"""Measures weak scaling on this machine: a training step of one process on one core against two, a core each.

    python -m scripts.scaling.weak_scaling --out docs/scaling/weak.json
    python -m scripts.scaling.weak_scaling --quick

Four processes stand ready, each held to one core: two that train alone and two that train together, all with the same
clips a step. They take turns, so that whatever else the machine does meets all of them: each of the two alone, both
alone at the same time, and the pair. Both alone at once tells what sharing a machine's memory costs; what the pair
takes beyond that is their talking to each other. Give it a machine with nothing else to do, two cores and 16 GB of
memory.
"""

import contextlib
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.cli import console as cli
from jaxprune.config import ModelConfig
from jaxprune.data.batches import Batch
from jaxprune.features import sample_count
from jaxprune.files import write_text
from jaxprune.training.recipes import recipe as named
from jaxprune.training.settings import Recipe
from scripts.scaling.projection import steady

ALONE, AT_ONCE, TOGETHER = "alone", "both alone at once", "together"
MARK = "@"  # begins a process's answers; other lines of its output are Gloo's
WARM_UP = 2  # steps
SERVE = "import json, sys; from scripts.scaling.weak_scaling import serve; serve(json.loads(sys.argv[1]))"


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
    show(found, title=f"{settings.name}, {settings.start.size}, keep rate {keep_rate:g}, {clips} clips a process")
    if out is not None:
        content = {
            "recipe": settings.to_json(),
            "clips": clips,
            "cores": cores,
            "load_before": load,
            "efficiency": found.efficiency,
            "sharing": found.sharing,
            "medians": found.medians,
            "seconds": found.seconds,
        }
        write_text(out, json.dumps(content, indent=1) + "\n")
        cli.notice(f"saved {out}")


def show(found: "WeakScaling", *, title: str) -> None:
    """The medians as a table."""
    medians = found.medians
    shared = f"two processes that do not talk reach {found.sharing:.1%}"
    cli.print_table(
        title,
        ("", "ms a step, median", "of alone"),
        [(kind, f"{1e3 * time:.1f}", f"{time / medians[ALONE]:.3f}") for kind, time in medians.items()],
        notes=[f"Weak-scaling efficiency {found.efficiency:.1%}; {shared}."],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeakScaling:
    """Seconds of every step, by kind; together the slower of the two."""

    seconds: dict[str, tuple[float, ...]]

    @property
    def medians(self) -> dict[str, float]:
        return {kind: statistics.median(times) for kind, times in self.seconds.items()}

    @property
    def efficiency(self) -> float:
        """Time alone over time together: 1 where a second process makes nothing slower."""
        return self.medians[ALONE] / self.medians[TOGETHER]

    @property
    def sharing(self) -> float:
        """The same of two processes that do not talk to each other: the loss of the machine itself."""
        return self.medians[ALONE] / self.medians[AT_ONCE]


def measure(
    recipe: Recipe,
    config: ModelConfig,
    *,
    clips: int,
    cores: tuple[int, int] = (0, 1),
    rounds: int = 5,
    steps: int = 3,
    watch: Callable[[int], None] = lambda round: None,
) -> WeakScaling:
    """Times steps of a recipe on a model of `config`, `clips` in each process: `rounds` turns of `steps` of each kind.

    Raises `ValueError` for cores that this process may not use, and where a process fails, with its reason.
    """
    if min(clips, rounds, steps) < 1:
        raise ValueError(f"clips is {clips}, rounds {rounds} and steps {steps}; they must be at least 1")
    usable = os.sched_getaffinity(0)
    if len(set(cores)) != 2 or not usable.issuperset(cores):
        raise ValueError(f"cores are {cores}; they must be two of {sorted(usable)}")
    task = {"recipe": recipe.to_json(), "config": dataclasses.asdict(config), "clips": clips}
    with contextlib.ExitStack() as stack:

        def start(launch: Mapping[str, Any], core: int) -> _Process:
            return stack.enter_context(_running(task | {"launch": launch}, core=core))

        alone = [start({}, core) for core in cores]
        for process in alone:
            process.answer()  # compiled
        coordinator = _free_address()
        pair = [start({"coordinator": coordinator, "count": 2, "index": i}, core) for i, core in enumerate(cores)]
        for process in pair:
            process.answer()
        seconds = _turns(alone, pair, rounds=rounds, steps=steps, watch=watch)
        for process in (*alone, *pair):
            process.end()  # all before one is waited for: the pair leave together
    return WeakScaling(seconds={kind: tuple(times) for kind, times in seconds.items()})


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def _turns(
    alone: list["_Process"], pair: list["_Process"], *, rounds: int, steps: int, watch: Callable[[int], None]
) -> dict[str, list[float]]:
    """Seconds of every step of every kind, the kinds in turn."""
    seconds: dict[str, list[float]] = {ALONE: [], AT_ONCE: [], TOGETHER: []}
    for turn in range(rounds):
        for process in alone:
            seconds[ALONE] += _steps([process], steps)[0]
        for times in _steps(alone, steps):
            seconds[AT_ONCE] += times
        seconds[TOGETHER] += map(max, *_steps(pair, steps))
        watch(turn + 1)
    return seconds


class _Process:
    """One of the four, from outside."""

    def __init__(self, child: subprocess.Popen):
        self._child = child

    def ask(self, steps: int) -> None:
        self._child.stdin.write(f"{steps}\n")
        self._child.stdin.flush()

    def end(self) -> None:
        self._child.stdin.close()

    def answer(self) -> Any:
        for line in self._child.stdout:
            if line.startswith(MARK):
                return json.loads(line[1:])
        said = self._child.stderr.read().strip().splitlines() or ["it said nothing"]
        raise ValueError(f"a process that was to be timed ended with code {self._child.wait()}: {said[-1]}")


def _steps(processes: list[_Process], count: int) -> list[list[float]]:
    for process in processes:
        process.ask(count)
    return [process.answer() for process in processes]


@contextlib.contextmanager
def _running(task: dict[str, Any], *, core: int) -> Iterator[_Process]:
    """A child process held to a core from its start, so that XLA makes one thread; it ends with its input."""
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE, json.dumps(task | {"core": core})],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _Process(child)
        child.stdin.close()
        child.wait(timeout=60)
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


def noise(recipe: Recipe, *, clips: int) -> Batch:
    """A batch to time a step with. The sound in it makes no difference."""
    samples = sample_count(recipe.data.frames)
    rng = np.random.default_rng(0)
    return Batch(
        waveforms=rng.normal(0, 0.1, (clips, samples)).astype(np.float32),
        lengths=np.full(clips, samples, np.int32),
        targets=np.eye(recipe.data.classes, dtype=np.float32)[np.arange(clips) % recipe.data.classes],
        weights=np.ones(clips, np.float32),
        indices=np.arange(clips, dtype=np.int32),
    )


def serve(task: dict[str, Any]) -> None:
    """Times as many steps as each line of the input asks for."""
    from jaxprune.models import build
    from jaxprune.parallel.processes import Launch, joined
    from jaxprune.training.classification import Classification
    from jaxprune.training.loop import Training

    os.sched_setaffinity(0, {task["core"]})  # before XLA counts the cores to make its threads for
    recipe, launch, clips = Recipe.from_json(task["recipe"]), Launch(**task["launch"]), task["clips"]
    recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, batch=clips * launch.count))
    with joined(launch):
        model = build(ModelConfig(**task["config"]), dtype=recipe.precision.compute)
        training = Training(Classification(recipe, model, steps_per_epoch=1_000_000), model)
        batch = noise(recipe, clips=clips)

        def timed(count: int) -> list[float]:
            seconds = []
            for _ in range(count):
                began = time.perf_counter()
                training.step(batch).loss.block_until_ready()
                training.state.step.block_until_ready()
                seconds.append(time.perf_counter() - began)
            return seconds

        timed(WARM_UP)
        print(f"\n{MARK}0", flush=True)
        for line in sys.stdin:
            print(f"\n{MARK}{json.dumps(timed(int(line)))}", flush=True)


if __name__ == "__main__":
    cli.run(main)
