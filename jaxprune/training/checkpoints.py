"""A run's directory: checkpoints that a killed run goes on from, the log of its metrics, and what asks it to stop.

    run/recipe.json     everything that decides the run, as it was resolved
    run/checkpoints/    Orbax, written in the background: the latest ones and the best; removed when the run is finished
    run/metrics.jsonl   a line an update and a line an evaluation
    run/result.json     the outcome; there when the run is finished

A checkpoint is complete under its name or is not one, and checkpoints are removed only after result.json is there, so a
run may be killed at any moment. What a step computes is
`jaxprune.training.loop`'s matter; models to be used are saved by `jaxprune.checkpoint`.
"""

import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.tree_util import keystr

from jaxprune.data.batches import Batches
from jaxprune.files import write_text
from jaxprune.training.events import Evaluation, Step
from jaxprune.training.loop import State, Weights
from jaxprune.training.settings import Recipe

RECIPE, CHECKPOINTS, METRICS, RESULT = "recipe.json", "checkpoints", "metrics.jsonl", "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a checkpoint says beside its arrays: `place` is the loader's (`Batches.get_state`), `labels` the class names
    in the head's order. The random numbers of a step follow from `seed` and its number, so there is no more to them."""

    recipe: Recipe
    labels: tuple[str, ...]
    seed: int
    place: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the `keep` latest and the best, by the highest score, the earliest where equal.

    Saving returns once the state is copied to the host and writes while training goes on; what goes wrong there is
    raised by the next `save`, `wait` or the end of the `with` block, as `OSError`, and leaves earlier checkpoints
    whole.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be at least 1 checkpoint")
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: -math.inf if metrics["score"] is None else metrics["score"],
                best_mode="max",
                preservation_policy=LatestAndBest(keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """The updates after which there is a checkpoint, rising."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The checkpoint with the highest score, or None where none was evaluated."""
        scores = {step: self.score(step) for step in self.steps}
        known = {step: score for step, score in scores.items() if score is not None}
        return max(sorted(known), key=known.__getitem__, default=None)

    def score(self, step: int) -> float | None:
        metrics = self._manager.metrics(step)
        return metrics["score"] if metrics else None

    def save(self, state: State, facts: Facts, *, evaluation: Evaluation | None = None) -> None:
        """Saves a state under the number of its updates. A score that is not a number is none."""
        step = int(state.step)
        named = named_arrays(state)
        if jax.default_backend() == "cpu":  # where the host's copy would be the buffer that the next step reuses
            named = {name: jnp.copy(leaf) for name, leaf in named.items()}
        meta = {
            "step": step,
            "seed": facts.seed,
            "recipe": facts.recipe.to_json(),
            "labels": list(facts.labels),
            "place": facts.place,
        }
        scored = evaluation is not None and math.isfinite(evaluation.score)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(named), meta=ocp.args.JsonSave(meta)),
                metrics={"score": evaluation.score if scored else None},
            )
        except Exception as error:  # Orbax and TensorStore raise many types
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk. Raises `OSError` where it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def restore(self, step: int, like: State) -> tuple[State, Facts]:
        """The state and facts of a checkpoint, on the devices that `like` (of the same run) is on."""
        names = named_arrays(like)
        shapes = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in names.items()
        }
        saved = self._read(step, state=ocp.args.StandardRestore(shapes), meta=ocp.args.JsonRestore())
        meta = saved["meta"]
        facts = Facts(
            recipe=Recipe.from_json(meta["recipe"]),
            labels=tuple(meta["labels"]),
            seed=meta["seed"],
            place=meta["place"],
        )
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [saved["state"][name] for name in names]), facts

    def params(self, step: int, like: State) -> Weights:
        """The trained parameters of a checkpoint alone."""
        return self.restore(step, like)[0].params

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:  # the error on its way out is the one to show
            try:
                self.close()
            except OSError:
                self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            summary = first_line(error)
            raise ValueError(
                f"the checkpoint {self.directory / str(step)} does not fit this run or is damaged ({summary})"
            ) from error

    def _not_written(self, error: Exception) -> OSError:
        kept = ", ".join(map(str, self.steps)) or "none"
        return OSError(
            f"{self.directory}: a checkpoint could not be written ({first_line(error)}); is the disk full? "
            f"Those of steps {kept} are whole"
        )


@dataclasses.dataclass
class LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay: the `keep` latest, and the one of the highest score, the earliest where equal."""

    keep: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        scored = [info for info in checkpoints if info.metrics and info.metrics["score"] is not None]
        best = max(scored, key=lambda info: (info.metrics["score"], -info.step), default=None)
        latest = {info.step for info in sorted(checkpoints, key=lambda info: info.step)[-self.keep :]}
        return [info.step in latest or info is best for info in checkpoints]


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, `{"kind": "step" | "evaluation", ...}`, written as it happens.

    Opened at a resumed step, it loses the lines of updates from there on, which will come again, and a last line that
    was cut off. What is not a finite number is null.
    """

    def __init__(self, path: str | os.PathLike, *, step: int = 0):
        path = Path(path)
        kept = [line for line in read_metrics(path) if line["step"] < step or line["kind"] != "step"]
        kept = [line for line in kept if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Step | Evaluation) -> None:
        values = {"kind": type(event).__name__.lower()} | dataclasses.asdict(event)
        self._file.write(json.dumps(finite(values), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class StopOnSignal:
    """A context in which SIGTERM only raises a flag: call it to ask whether the run should save and leave."""

    def __init__(self, *signals: signal.Signals):
        self._signals = signals or (signal.SIGTERM,)
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopOnSignal":
        self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def finished(directory: str | os.PathLike, recipe: Recipe, *, seed: int) -> dict[str, Any] | None:
    """The result of a finished run, or None where there is none. Raises `ValueError` where it had other settings."""
    directory = Path(directory)
    try:
        result = json.loads((directory / RESULT).read_text(encoding="utf-8"))
        saved = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{directory} holds a finished run that cannot be read ({error})") from error
    if others := differences(saved, json.loads(json.dumps({"seed": seed} | recipe.to_json()))):
        raise ValueError(
            f"{directory} holds a finished run with other settings ({'; '.join(others[:3])}); choose another output "
            "directory"
        )
    return result


def clear(directory: str | os.PathLike) -> None:
    """Removes a finished run's checkpoints, or what is left of them; its model and result stay.

    Raises `ValueError` for a run that is not finished.
    """
    directory = Path(directory)
    if not (directory / RESULT).exists():
        raise ValueError(f"{directory} holds no finished run, so its checkpoints are still needed")
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def open_run(directory: str | os.PathLike, recipe: Recipe, *, seed: int) -> bool:
    """Prepares a run's directory; whether it holds an unfinished run of the same recipe and seed, to be resumed.

    Raises `ValueError` for a directory that holds a finished run, one of another recipe (naming what differs), or
    something else.
    """
    directory = Path(directory)
    settings = {"seed": seed} | recipe.to_json()
    if (directory / RESULT).exists():
        raise ValueError(f"{directory} holds a finished run; choose another output directory")
    try:
        saved = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} exists and is no run; choose another output directory") from None
        write_text(directory / RECIPE, json.dumps(settings, indent=1) + "\n")
        return False
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{directory / RECIPE} cannot be read ({error})") from error
    if others := differences(saved, json.loads(json.dumps(settings))):
        raise ValueError(
            f"{directory} holds an unfinished run with other settings ({'; '.join(others[:3])}); give the same ones "
            "to go on with it, or choose another output directory"
        )
    return True


def start_or_resume(checkpoints: Checkpoints, state: State, batches: Batches) -> State:
    """The latest checkpoint's state, with the batches moved to its place, or the given one where there is none."""
    if checkpoints.latest is None:
        return state
    restored, facts = checkpoints.restore(checkpoints.latest, state)
    batches.set_state(facts.place)
    return restored


def named_arrays(state: State) -> dict[str, jax.Array]:
    """Every array of a state by a name of its own, in the tree's order."""
    return {
        keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics log, without one that was cut off; none where there is no file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
    return found


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for numbers that JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def differences(one: Any, other: Any, *, name: str = "") -> list[str]:
    """Where two JSON values differ, `name: one, not other`."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in sorted(one.keys() | other.keys())
            for found in differences(one.get(key), other.get(key), name=f"{name}.{key}" if name else key)
        ]
    return [] if one == other else [f"{name} is {one!r} there, {other!r} here"]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
