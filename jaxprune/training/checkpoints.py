"""The checkpoints of a run, from which a killed run goes on. They are written in the background.

A checkpoint is complete under its name or is not one. Orbax writes it. It holds a `State` of `jaxprune.training.step`
and the `Facts` beside it. `jaxprune.training.run_directory` has the rest of a run's directory; `jaxprune.checkpoint`
saves models to use.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.tree_util import keystr

from jaxprune.data.batches import Batches
from jaxprune.files import REFUSED, quiet_orbax, reason
from jaxprune.training.events import Evaluation
from jaxprune.training.pretraining_settings import PretrainingRecipe, recipe_from_json
from jaxprune.training.settings import Recipe
from jaxprune.training.step import State, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The words beside a checkpoint's arrays: `labels` are the class names in the head's order, `place` is the loader's
    (`Batches.get_state`).

    A step's random numbers follow from `seed` and its number, so nothing more is needed to go on.
    """

    recipe: Recipe | PretrainingRecipe
    labels: tuple[str, ...]
    seed: int
    place: dict[str, Any]

    def to_json(self, step: int) -> dict[str, Any]:
        """The facts as plain values, with the step they are of."""
        plain = {"seed": self.seed, "recipe": self.recipe.to_json(), "labels": list(self.labels), "place": self.place}
        return {"step": step} | plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Facts":
        """The inverse of `to_json`, without the step. Raises `ValueError` where a fact is missing."""
        if not isinstance(data, Mapping) or not data.keys() >= {"recipe", "labels", "seed", "place"}:
            raise ValueError("its facts are incomplete")
        return cls(
            recipe=recipe_from_json(data["recipe"]),
            labels=tuple(data["labels"]),
            seed=data["seed"],
            place=data["place"],
        )


class Checkpoints:
    """The checkpoints of one run: the `keep` latest and the best, by the highest score, the earliest of equals.

    Saving returns once the state is copied to the host, and writes while training goes on. An error there is raised as
    `OSError` by the next `save` or `wait`, or at the end of the `with` block. Earlier checkpoints stay whole.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be at least 1 checkpoint")
        quiet_orbax()
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: -math.inf if metrics["score"] is None else metrics["score"],
            best_mode="max",
            preservation_policy=LatestAndBest(keep),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except ValueError as error:
            raise ValueError(
                f"a checkpoint in {self.directory} is damaged ({reason(error)}); move it away to go on from another"
            ) from error

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of updates after which there is a checkpoint, rising."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def latest(self) -> int | None:
        """The last step on disk, or None before the first."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The checkpoint with the highest score, or None where none was evaluated."""
        scores = {step: self.score(step) for step in self.steps}
        known = {step: score for step, score in scores.items() if score is not None}
        return max(sorted(known), key=known.__getitem__, default=None)

    def score(self, step: int) -> float | None:
        """The validation score saved with a step, or None without one."""
        metrics = self._manager.metrics(step)
        return metrics["score"] if metrics else None

    def save(self, state: State, facts: Facts, *, evaluation: Evaluation | None = None) -> None:
        """Saves a state under the number of its updates. A score that is not a number is none."""
        step = int(state.step)
        named = named_arrays(state)
        if jax.default_backend() == "cpu":  # where the host's copy would be the buffer that the next step reuses
            named = {name: jnp.copy(leaf) for name, leaf in named.items()}
        scored = evaluation is not None and math.isfinite(evaluation.score)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(named), meta=ocp.args.JsonSave(facts.to_json(step))
                ),
                metrics={"score": evaluation.score if scored else None},
            )
        except REFUSED as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk. Raises `OSError` where it could not be written."""
        try:
            self._manager.wait_until_finished()
        except REFUSED as error:
            raise self._not_written(error) from error

    def restore(self, step: int, like: State) -> tuple[State, Facts]:
        """The state and facts of a checkpoint, on the devices that `like` (of the same run) is on.

        Raises `ValueError` for a checkpoint that is damaged or of another run.
        """
        names = named_arrays(like)
        shapes = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in names.items()
        }
        try:
            saved = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes), meta=ocp.args.JsonRestore())
            )
            facts = Facts.from_json(saved["meta"])
        except Exception as error:  # of any type: Orbax raises `Exception` itself
            raise ValueError(
                f"the checkpoint {self.directory / str(step)} does not fit this run or is damaged ({reason(error)})"
            ) from error
        return jax.tree.unflatten(jax.tree.structure(like), [saved["state"][name] for name in names]), facts

    def outcome(self, step: int, like: State) -> Weights:
        """The parameters of a checkpoint to evaluate and to save (`State.outcome`)."""
        return self.restore(step, like)[0].outcome

    def close(self) -> None:
        """Waits for what is being written, then lets go of the folder."""
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

    def _not_written(self, error: Exception) -> OSError:
        kept = ", ".join(map(str, self.steps)) or "none"
        return OSError(
            f"{self.directory}: a checkpoint could not be written ({reason(error)}); those of steps {kept} are whole"
        )


@dataclasses.dataclass
class LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """The rule that keeps the `keep` latest and the one of the highest score, the earliest of equals."""

    keep: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        scored = [info for info in checkpoints if info.metrics and info.metrics["score"] is not None]
        best = max(scored, key=lambda info: (info.metrics["score"], -info.step), default=None)
        latest = {info.step for info in sorted(checkpoints, key=lambda info: info.step)[-self.keep :]}
        return [info.step in latest or info is best for info in checkpoints]


def start_or_resume(checkpoints: Checkpoints, state: State, batches: Batches) -> State:
    """The latest checkpoint's state, with the batches moved to its place. Without one, the given state."""
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
