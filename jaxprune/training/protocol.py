"""A recipe's whole protocol in one directory: a run for every fold and seed it names, then their mean and spread.

    protocol/shared.json        what decides all runs: the recipe without folds and seeds, and where the clips are
    protocol/fold-1-seed-12/    a run, as `jaxprune.training.finetune` leaves it; seed-12 where the split is fixed
    protocol/protocol.json      the outcome; there when every run is finished

A run's recipe names its own fold and seed alone, so folds and seeds can be done
in parts, added later, and in any order.
"""

import dataclasses
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxprune.data.published import ESC50, Shards
from jaxprune.data.records import Split
from jaxprune.files import locked, write_text
from jaxprune.json_files import fit, read_json
from jaxprune.parallel.processes import by_first
from jaxprune.training.events import Metric
from jaxprune.training.finetune import finetune
from jaxprune.training.run import Beginning, Event, Options, Outcome, tidy
from jaxprune.training.run_directory import RESULT, differences, read_result, with_defaults
from jaxprune.training.settings import Recipe
from jaxprune.training.start import Sources

SHARED, SUMMARY = "shared.json", "protocol.json"
DDOF = 1  # of the standard deviation over seeds: n - 1 in the denominator


class Shared(TypedDict):
    """The content of shared.json."""

    recipe: dict[str, Any]
    where: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One fine-tuning run. `fold` is held out, or None where the data set's split is fixed."""

    fold: int | None
    seed: int

    def __str__(self) -> str:
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold}, seed {self.seed}"

    @property
    def directory(self) -> str:
        """Name of the run's folder."""
        return str(self).replace(", ", "-").replace(" ", "-")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Next:
    """The run that begins or goes on next: the `number`-th, from 1, of `total`, of which `finished` are done.

    `seconds_left` is the time that it and all unfinished runs after it take, at the pace since the start. It is None
    before there is a pace.
    """

    run: Run
    number: int
    total: int
    finished: int
    seconds_left: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run's outcome on `clips` clips.

    `score` and `loss` are the saved model's, of step `saved_step`. `best_score` is the best epoch's, on the clips that
    were evaluated after each epoch.
    """

    fold: int | None
    seed: int
    clips: int
    score: float
    loss: float
    saved_step: int
    best_score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Each seed's mean over its folds, and over seeds the mean and the deviation (ddof 1, or None for one seed)."""

    by_seed: Mapping[int, float]
    mean: float
    std: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a protocol: shares from 0 to 1 of `metric` on `split`, fold by fold and seed by seed.

    `evaluated` names the clips that were evaluated after each epoch. If it is validation, the best epoch's model was
    `saved`. If it is test, the last epoch's was, and `best` is what choosing on the test clips would have claimed.
    `pooled` is the accuracy over the `clips` held-out clips of all folds and seeds; None for mAP, which has none, and
    without folds, where it is the mean. `keep_rate` is None where the runs drew theirs: scores are then means over the
    rates that the model is for, and `macs` are those of the lowest.
    """

    rows: tuple[RunResult, ...]
    split: Split
    metric: Metric
    keep_rate: float | None
    saved: str
    evaluated: Split
    final: Spread
    best: Spread
    clips: int
    pooled: float | None
    macs: int
    unpruned_macs: int

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values, with the degrees of freedom of its deviations."""
        return dataclasses.asdict(self) | {"ddof": DDOF}


def carry_out(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    sources: Sources = Sources(),  # noqa: B008, both are frozen
    options: Options = Options(),  # noqa: B008
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Next | Event | Summary]:
    """Does every unfinished run of a recipe's protocol in `out`, fold by fold, and yields what happens.

    It yields a `Next` before each run, then what `finetune` yields of it. At the end comes the `Summary`, which is also
    saved. If `stop()` asked for it, it ends without one; called again with the same arguments, it goes on.
    `sources.fold` is set run by run. All processes of a run call this alike, as `finetune`. Raises `ValueError` for a
    directory of another protocol or in which another process is at work, folds that the data set does not have, and
    whatever `finetune` raises.
    """
    out, planned = Path(out), runs(recipe)
    check_folds(recipe, sources)
    with ExitStack() as held:
        by_first(lambda: held.enter_context(locked(out)))
        by_first(lambda: open_protocol(out, recipe, sources))
        results = _finished(out, planned)
        for run in results:
            tidy(out / run.directory, options)
        pace = _Pace()
        for number, run in enumerate(planned, start=1):
            if run in results:
                continue
            if by_first(stop):
                return
            left = pace.left(runs=len(planned) - len(results))
            yield Next(run=run, number=number, total=len(planned), finished=len(results), seconds_left=left)
            place = out / run.directory
            events = finetune(
                alone(recipe, run),
                place,
                seed=run.seed,
                sources=at_fold(sources, run.fold),
                options=options,
                stop=stop,
            )
            for event in pace.measured(events):
                if isinstance(event, Beginning) and event.selects_on is None:
                    raise ValueError(f"{event.dataset.name} has no validation or test clips to report on")
                yield event
            if event.result is None:
                return
            results[run] = read_result(place / RESULT)
            gc.collect()  # weights and moments hang in reference cycles, and the next run needs the device's memory
        summary = summarize({run: results[run] for run in planned})
        content = {"recipe": recipe.to_json(), "where": _place(sources)} | summary.to_json()
        by_first(lambda: write_text(out / SUMMARY, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"))
        yield summary


@dataclasses.dataclass
class _Pace:
    """The pace of the runs so far: `steps` done in `seconds`, and the steps of a `whole` run."""

    seconds: float = 0.0
    steps: int = 0
    whole: int = 0

    def left(self, *, runs: int) -> float | None:
        """Seconds that so many whole runs take. None before there is a pace."""
        return runs * self.whole * self.seconds / self.steps if self.steps else None

    def measured(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events of a run as they are, and their pace."""
        began = time.perf_counter()
        for event in events:
            match event:
                case Beginning():
                    self.whole, self.steps = event.total_steps, self.steps - event.step
                case Outcome():
                    self.steps += event.step
            yield event
        self.seconds += time.perf_counter() - began


def runs(recipe: Recipe) -> tuple[Run, ...]:
    """Every fold with every seed, all seeds of a fold together."""
    return tuple(Run(fold=fold, seed=seed) for fold in recipe.data.folds or (None,) for seed in recipe.loop.seeds)


def alone(recipe: Recipe, run: Run) -> Recipe:
    """The recipe of one run, with no fold and seed but its own."""
    folds = () if run.fold is None else (run.fold,)
    data, loop = dataclasses.replace(recipe.data, folds=folds), dataclasses.replace(recipe.loop, seeds=(run.seed,))
    return dataclasses.replace(recipe, data=data, loop=loop)


def at_fold(sources: Sources, fold: int | None) -> Sources:
    """The sources with another test fold. Data without folds leave them unchanged."""
    return sources if fold is None else dataclasses.replace(sources, fold=fold)


def check_folds(recipe: Recipe, sources: Sources) -> None:
    """Raises `ValueError` unless the data set has exactly the kind of split, and all the folds, that the recipe has.

    Otherwise own data would be trained on once per fold of a recipe for ESC-50, each time the same.
    """
    folds, name = recipe.data.folds, recipe.data.dataset
    source = sources.of(recipe)
    if not (isinstance(source, ESC50) or (isinstance(source, Shards) and source.has_folds)):
        if folds:
            raise ValueError(f"{name} has no folds, but data.folds is {list(folds)}; give --data.folds and no number")
    elif not folds:
        raise ValueError(f"{name} has folds, but the recipe names none; say which to hold out, one after the other")
    for fold in folds:
        at_fold(sources, fold).of(recipe).read()


def open_protocol(directory: Path, recipe: Recipe, sources: Sources) -> None:
    """Prepares a protocol's directory. Raises `ValueError` for one of other settings and for anything else."""
    shared = json.loads(json.dumps({"recipe": recipe.to_json(), "where": _place(sources)}, default=str))
    shared = _of_all_runs(shared)
    if not (directory / SHARED).exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} exists and holds no protocol; choose another output directory")
        write_text(directory / SHARED, json.dumps(shared, indent=1) + "\n")
    elif others := differences(_of_all_runs(_read_shared(directory / SHARED)), shared):
        raise ValueError(
            f"{directory} holds a protocol with other settings ({'; '.join(others[:3])}); give the same ones to go on "
            "with it, or choose another output directory"
        )


def _read_shared(path: Path) -> Any:
    """The content of shared.json. Raises `ValueError` for any other file."""
    shared = read_json(path)
    try:
        fit(shared, Shared)
    except ValueError as error:
        raise ValueError(f"{path} is none of a protocol ({error}); choose another output directory") from error
    return shared


def summarize(results: Mapping[Run, Mapping[str, Any]]) -> Summary:
    """The summary of all runs' result.json. They are of one recipe, and each fold has the same seeds."""
    first = next(iter(results.values()))
    prune = Recipe.from_json(first["recipe"]).prune
    split: Split = "test" if "test" in first["scores"] else "validation"
    evaluated: Split = "validation" if "validation" in first["scores"] else "test"
    metric: Metric = first["scores"][split]["metric"]
    rows = []
    for run, result in results.items():
        found = result["scores"][split]
        if found["score"] is None or result["best_score"] is None:
            raise ValueError(f"the run of {run} has a score that is not a number, so there is no mean")
        rows.append(
            RunResult(
                fold=run.fold,
                seed=run.seed,
                clips=found["clips"],
                score=found["score"],
                loss=found["loss"],
                saved_step=result["saved_step"],
                best_score=result["best_score"],
            )
        )
    clips = sum(row.clips for row in rows)
    folded = metric == "accuracy" and rows[0].fold is not None
    return Summary(
        rows=tuple(rows),
        split=split,
        metric=metric,
        keep_rate=None if prune.draws else prune.keep_rate,
        saved=first["saved"],
        evaluated=evaluated,
        final=_spread([(row.seed, row.score) for row in rows]),
        best=_spread([(row.seed, row.best_score) for row in rows]),
        clips=clips,
        pooled=sum(row.score * row.clips for row in rows) / clips if folded else None,
        macs=first["macs"],
        unpruned_macs=first["unpruned_macs"],
    )


def _spread(scores: list[tuple[int, float]]) -> Spread:
    seeds = dict.fromkeys(seed for seed, _ in scores)
    by_seed = {seed: float(np.mean([score for other, score in scores if other == seed])) for seed in seeds}
    means = list(by_seed.values())
    return Spread(
        by_seed=by_seed,
        mean=float(np.mean(means)),
        std=float(np.std(means, ddof=DDOF)) if len(means) > DDOF else None,
    )


def _place(sources: Sources) -> dict[str, Any]:
    """The place of the clips. The default of `missing` is left out: protocols that are older do not have it."""
    place = dataclasses.asdict(sources)
    return {name: value for name, value in place.items() if name != "fold" and (name, value) != ("missing", "refuse")}


def _of_all_runs(saved: Any) -> Any:
    """The settings of a protocol, as JSON, without folds and seeds: there may be more of them each time."""
    if not isinstance(saved, dict) or not isinstance(saved.get("recipe"), dict):
        return saved
    recipe = with_defaults(saved["recipe"])
    for part, name in (("data", "folds"), ("loop", "seeds")):
        if isinstance(recipe.get(part), dict):
            recipe[part].pop(name, None)
    return saved | {"recipe": recipe}


def _finished(out: Path, planned: Sequence[Run]) -> dict[Run, dict[str, Any]]:
    """The results of the runs that are finished, as the first process sees them."""
    found = by_first(lambda: [run.directory for run in planned if (out / run.directory / RESULT).exists()])
    return {run: read_result(out / run.directory / RESULT) for run in planned if run.directory in found}
