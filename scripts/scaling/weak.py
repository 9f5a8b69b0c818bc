"""How much of a core's speed is left when two processes train together: measured on this machine, a core each.

Four processes stand ready, each held to one core: two that train alone and two that train together, all with the same
clips a step. They take turns, so that whatever else the machine does meets all of them: each of the two alone, both
alone at the same time, and the pair. Both alone at once tells what sharing a machine's memory costs; what the pair
takes beyond that is their talking to each other. `measure` is the whole; this module run as a program is one process.
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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxprune.config import ModelConfig
from jaxprune.data.batches import Batch
from jaxprune.features import sample_count
from jaxprune.training.settings import Recipe

ALONE, AT_ONCE, TOGETHER = "alone", "both alone at once", "together"
MARK = "@"  # begins a process's answers; other lines of its output are Gloo's
WARM_UP = 2  # steps


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
        """The same of two processes that do not talk to each other: what the machine itself loses."""
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
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:

        def start(index: int, launch: dict[str, Any]) -> _Process:
            task = {"recipe": recipe.to_json(), "config": dataclasses.asdict(config), "clips": clips, "launch": launch}
            return stack.enter_context(_running(task, core=cores[index]))

        alone = [start(i, {}) for i in range(2)]
        for process in alone:
            process.answer()  # compiled
        pair = [start(i, {"coordinator": coordinator, "count": 2, "index": i}) for i in range(2)]
        for process in pair:
            process.answer()
        seconds: dict[str, list[float]] = {ALONE: [], AT_ONCE: [], TOGETHER: []}
        for turn in range(rounds):
            for process in alone:
                seconds[ALONE] += _steps([process], steps)[0]
            for times in _steps(alone, steps):
                seconds[AT_ONCE] += times
            seconds[TOGETHER] += map(max, *_steps(pair, steps))
            watch(turn + 1)
        for process in (*alone, *pair):
            process.end()  # all before one is waited for: the pair leave together
    return WeakScaling(seconds={kind: tuple(times) for kind, times in seconds.items()})


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
        [sys.executable, "-m", "scripts.scaling.weak", json.dumps(task | {"core": core})],
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
    """A batch to time a step with: what the clips hold makes no difference."""
    samples = sample_count(recipe.data.frames)
    rng = np.random.default_rng(0)
    return Batch(
        waveforms=rng.normal(0, 0.1, (clips, samples)).astype(np.float32),
        lengths=np.full(clips, samples, np.int32),
        targets=np.eye(recipe.data.classes, dtype=np.float32)[np.arange(clips) % recipe.data.classes],
        weights=np.ones(clips, np.float32),
        indices=np.arange(clips, dtype=np.int32),
    )


def _serve(task: dict[str, Any]) -> None:
    """Times as many steps as each line of the input asks for."""
    from jaxprune.models import build
    from jaxprune.parallel.processes import Launch, joined
    from jaxprune.training.loop import Training

    os.sched_setaffinity(0, {task["core"]})  # before XLA counts the cores to make its threads for
    recipe, launch, clips = Recipe.from_json(task["recipe"]), Launch(**task["launch"]), task["clips"]
    recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, batch=clips * launch.count))
    with joined(launch):
        model = build(ModelConfig(**task["config"]), dtype=recipe.precision.compute)
        training = Training(recipe, model, steps_per_epoch=1_000_000)
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
    _serve(json.loads(sys.argv[1]))
