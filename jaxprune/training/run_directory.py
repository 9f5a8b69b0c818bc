"""A run's directory: its content, the check that a run may begin or go on there, and the log of its metrics.

    run/recipe.json     everything that decides the run, as it was resolved
    run/checkpoints/    what a killed run goes on from (`jaxprune.training.checkpoints`); gone when the run is finished
    run/metrics.jsonl   a line an update and a line an evaluation
    run/model/          the model that came out (`jaxprune.checkpoint`)
    run/result.json     the outcome; there when the run is finished

Checkpoints are removed only after result.json is there, so a run may be killed at any moment.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from jaxprune.config import Padding
from jaxprune.data.records import Split
from jaxprune.files import write_text
from jaxprune.json_files import fit, read_json
from jaxprune.training import pretraining_settings, settings
from jaxprune.training.events import Evaluation, Metric, Step
from jaxprune.training.pretraining_settings import PretrainingRecipe, recipe_from_json
from jaxprune.training.settings import PRETRAINING, Recipe

RECIPE, CHECKPOINTS, METRICS, MODEL, RESULT = "recipe.json", "checkpoints", "metrics.jsonl", "model", "result.json"
AnyRecipe = Recipe | PretrainingRecipe
# Of a recipe: they decide nothing, and a later version may word them anew.
REMARKS = {"source", "published", "expected"}


class RateScore(TypedDict):
    """A split's scores at one keep rate, as far as they are read again."""

    keep_rate: float
    macs: int
    loss: float | None
    top1: float | None
    top5: float | None
    mean_average_precision: float | None


class Score(TypedDict):
    """A split's scores in result.json, as far as they are read again. Older results have no `rates`."""

    clips: int
    metric: Metric
    score: float | None
    loss: float | None
    top1: float | None
    top5: float | None
    mean_average_precision: float | None
    rates: NotRequired[list[RateScore]]


class Result(TypedDict):
    """The fields of result.json that are read again."""

    recipe: dict[str, Any]
    data_set: str
    steps: int
    saved_step: int
    saved: str
    best_score: float | None
    scores: dict[Split, Score]
    macs: int
    unpruned_macs: int
    compilations: int
    device: str
    model: str


class Line(TypedDict):
    """The fields that every line of a metrics log has."""

    kind: Literal["step", "evaluation"]
    step: int


def finished(directory: str | os.PathLike, recipe: AnyRecipe, *, seed: int) -> dict[str, Any] | None:
    """The result of a finished run, or None if there is none. Raises `ValueError` if it had other settings."""
    directory = Path(directory)
    try:
        result, saved = read_result(directory / RESULT), _saved(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} holds a finished run that cannot be read ({error})") from error
    _check_task(directory, saved, recipe)
    if others := differences(saved, _settings(recipe, seed=seed)):
        raise ValueError(
            f"{directory} holds a finished run with other settings ({'; '.join(others[:3])}); choose another output "
            "directory"
        )
    return result


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result.json. Raises `OSError` and `ValueError`."""
    result = read_json(path)
    try:
        fit(result, Result)
        recipe_from_json(result["recipe"])
        if not result["scores"]:
            raise ValueError("it has no scores")
    except ValueError as error:
        raise ValueError(f"{path} is no result of a run: {error}") from error
    return result


def open_run(directory: str | os.PathLike, recipe: AnyRecipe, *, seed: int) -> bool:
    """Prepares a run's directory. True if it holds an unfinished run of the same recipe and seed, to go on with.

    Raises `ValueError` for a directory with a finished run, with a run of another recipe (it names the difference), or
    with anything else.
    """
    directory = Path(directory)
    wanted = _settings(recipe, seed=seed)
    if (directory / RESULT).exists():
        raise ValueError(f"{directory} holds a finished run; choose another output directory")
    try:
        saved = _saved(directory)
    except (FileNotFoundError, NotADirectoryError):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} exists and is no run; choose another output directory") from None
        write_text(directory / RECIPE, json.dumps(wanted, indent=1) + "\n")
        return False
    except OSError as error:
        raise ValueError(f"{directory / RECIPE} cannot be read ({error})") from error
    _check_task(directory, saved, recipe)
    if others := differences(saved, wanted):
        raise ValueError(
            f"{directory} holds an unfinished run with other settings ({'; '.join(others[:3])}); give the same ones "
            "to go on with it, or choose another output directory"
        )
    return True


def clear(directory: str | os.PathLike) -> None:
    """Removes a finished run's checkpoints, or what is left of them. Its model and result stay.

    Raises `ValueError` for a run that is not finished.
    """
    directory = Path(directory)
    if not (directory / RESULT).exists():
        raise ValueError(f"{directory} holds no finished run, so its checkpoints are still needed")
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


class MetricsLog:
    """The file `metrics.jsonl`: one JSON object a line, `{"kind": "step" | "evaluation", ...}`, written as it happens.

    Opened at a resumed step, it loses the lines of updates from there on, which will come again. It also loses a last
    line that was cut off. Numbers that are not finite are null.
    """

    def __init__(self, path: str | os.PathLike, *, step: int = 0):
        path = Path(path)
        kept = [line for line in read_metrics(path) if line["step"] < step or line["kind"] != "step"]
        kept = [line for line in kept if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Step | Evaluation) -> None:
        """Adds one line, which is on disk at once."""
        values = {"kind": type(event).__name__.lower()} | dataclasses.asdict(event)
        self._file.write(json.dumps(finite(values), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics log, without one that was cut off. Empty if there is no file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
            fit(found[-1], Line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is none of a metrics log ({error})") from error
            del found[number - 1 :]
    return found


def differences(one: Any, other: Any, *, name: str = "") -> list[str]:
    """The places at which two JSON values differ, each in words. Remarks do not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for key in sorted((one.keys() | other.keys()) - REMARKS)
            for found in differences(one.get(key), other.get(key), name=f"{name}.{key}" if name else key)
        ]
    return [] if one == other else [f"{name} is {one!r} there, {other!r} here"]


def finite(values: Any) -> Any:
    """The values, nested or not, with None for numbers that JSON cannot hold."""
    match values:
        case Mapping():
            return {name: finite(value) for name, value in values.items()}
        case list() | tuple():
            return [finite(value) for value in values]
        case float() if not math.isfinite(values):
            return None
    return values


def padding_of(directory: str | os.PathLike) -> Padding | None:
    """The padding of the run in a directory, or None where there is none that can be read."""
    try:
        return _saved(Path(directory))["data"]["padding"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # a damaged one is refused, in words, by `finished` and `open_run`


def with_defaults(saved: Any) -> Any:
    """A recipe's saved JSON, with today's defaults for the settings that are younger than it. Nothing else changes."""
    if not isinstance(saved, dict):
        return saved
    kind = pretraining_settings if saved.get("task") == PRETRAINING else settings
    saved = kind.YOUNGER | saved
    makes = dict(kind.PARTS)
    for part, kinds in kind.UNIONS.items():
        if isinstance(values := saved.get(part), dict) and values.get("kind") in kinds:
            makes[part] = kinds[values["kind"]]
    return saved | {
        part: _defaults(make) | saved[part] for part, make in makes.items() if isinstance(saved.get(part), dict)
    }


def _defaults(make: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields, as JSON reads them."""
    fields = dataclasses.fields(make)
    plain = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return json.loads(json.dumps(plain))


def _check_task(directory: Path, saved: Any, recipe: AnyRecipe) -> None:
    """Raises `ValueError` where the run in a directory is of pretraining and the recipe of fine-tuning, or reversed."""
    kinds = {True: "pretraining", False: "fine-tuning"}
    there, here = (
        isinstance(values, dict) and values.get("task") == PRETRAINING for values in (saved, recipe.to_json())
    )
    if there != here:
        raise ValueError(
            f"{directory} holds a run of {kinds[there]}, but {recipe.name} is a recipe of {kinds[here]}; choose "
            "another output directory"
        )


def _saved(directory: Path) -> Any:
    """The content of recipe.json. Runs older than the choice of padding padded with the minimum."""
    saved = read_json(directory / RECIPE)
    if isinstance(saved, dict) and isinstance(saved.get("data"), dict):
        saved["data"].setdefault("padding", "minimum")
    return with_defaults(saved)


def _settings(recipe: AnyRecipe, *, seed: int) -> dict[str, Any]:
    """The content of recipe.json, as it is read back."""
    return json.loads(json.dumps({"seed": seed} | recipe.to_json()))
