"""Every way to reduce tokens on one model, at equal cost: untuned, and each tuned at any rate of its own.

    python -m scripts.studies.reductions runs/arabic/ast-words-0/unpruned --out runs/reductions
    python -m scripts.studies.reductions RUN RUN --out runs/reductions --methods topk tome --epochs 10

A RUN is a finished fine-tuning run without pruning. Its model is measured under every method at every saving of
multiply-accumulates. Then each method tunes the model once, with a saving drawn in each step, and what comes out is
measured at the same savings. Learned pruning cannot draw, so it is tuned for one saving. All methods have the same
steps, augmentation and learning rate.

The same command goes on where it was cut off, and one with more methods adds them. `results.json` has a row for each
model, method, saving and split, with intervals over clips and over speakers (`scripts.studies.pieces`). There is a
picture a task: accuracy of the test clips over multiply-accumulates. And there is one a model, untuned and tuned, of
the patches that each method keeps, fuses or merges in one test clip.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Bool

from jaxprune import checkpoint
from jaxprune.amounts import Saving
from jaxprune.audio import Clip
from jaxprune.cli import console as cli
from jaxprune.cli.options import read
from jaxprune.cost import macs
from jaxprune.data.records import Dataset
from jaxprune.files import write_json
from jaxprune.inference import Result, classify_clips
from jaxprune.json_files import read_json
from jaxprune.models import Classifier, topk
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.plots.clips import retained_patches
from jaxprune.plots.comparison import Curve, comparison
from jaxprune.reduction.policy import DEFAULT_BLOCKS, Policy, default_blocks
from jaxprune.registry import LEARNED, MethodName, rates_for, reduced
from jaxprune.training.learning import Distill
from jaxprune.training.run_directory import MODEL, RECIPE, RESULT
from jaxprune.training.settings import Prune, Recipe
from jaxprune.training.start import Sources
from scripts.studies.pieces import (
    STOPPED,
    Run,
    correct,
    done,
    ends,
    learning,
    located,
    of_columns,
    recipe_of,
    second_stage,
    speakers,
)

METHODS = ("topk", "evit", "tome", "tome-plain", "hybrid", "dynamic", "pool", "random", "grid", "loudest", "varied")
SAVINGS = (0.0, 0.15, 0.3, 0.45, 0.6)
SPLITS = ("validation", "test")
UNTUNED = "untuned"
REFERENCE = "topk"
Setting = tuple[MethodName, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One unpruned run, and the directory of all that is made from it."""

    start: Path
    recipe: Recipe
    dataset: Dataset
    place: Path

    @property
    def name(self) -> str:
        """Family, task and seed, such as ast-words-0."""
        return self.place.name


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path,
    root: Path | None = None,
    methods: tuple[MethodName, ...] = METHODS,
    savings: tuple[float, ...] = SAVINGS,
    epochs: int = 20,
    learned_saving: float = 0.45,
    tune: bool = True,
    seed: int = 0,
) -> int:
    """Measure and tune everything, and print the tables.

    Args:
        runs: directories of finished runs of jaxprune finetune without pruning.
        out: directory of all models and results; the same one goes on.
        root: the data set, if it is not where the runs had it.
        methods: the ways to reduce tokens.
        savings: shares of the multiply-accumulates to save; 0 is always measured.
        epochs: of tuning.
        learned_saving: the saving that learned pruning is tuned for, and at which regions are drawn.
        tune: without it the untuned models alone are measured.
        seed: of order, augmentation and what is drawn.
    """
    savings = tuple(sorted({0.0, *savings}))
    rows: list[dict[str, Any]] = []
    with StopOnSignal() as stop:
        for run in runs:
            study = opened(run, out, root=root, settled={"epochs": epochs, "savings": list(savings), "seed": seed})
            started = checkpoint.load(study.start / MODEL)
            untuned = [(REFERENCE, 0.0), *((m, s) for m in methods if m != LEARNED for s in savings if s)]
            measure(study, UNTUNED, study.start / MODEL, untuned)
            tuned = tunings(study, started, methods, savings=savings, epochs=epochs, learned=learned_saving)
            trained = [UNTUNED]
            for method, training in tuned if tune else ():
                if not done(training, study.place, seed=seed, stop=stop):
                    return STOPPED
                measure(study, method, study.place / method / MODEL, [(method, saving) for saving in savings])
                trained.append(method)
            regions(study, trained, methods, saving=learned_saving)
            found = table(study, trained)
            print_rows(found, title=f"{study.name}, test clips")
            rows += found
            write_json(out / "results.json", rows)
            draw(rows, out)
    return 0


def opened(run: Path, out: Path, *, root: Path | None, settled: dict[str, Any]) -> Study:
    """The study of a run. Raises `ValueError` for what is no finished unpruned run, and for other settings than before.

    `settled` is what one directory must have in common.
    """
    if not (run / RESULT).is_file():
        raise ValueError(f"{run} holds no finished run; train one with jaxprune finetune and --prune.keep-rate 1")
    recipe = recipe_of(run)
    if recipe.prune.draws or recipe.prune.keep_rate < 1:
        raise ValueError(f"{run} was trained with pruning ({recipe.prune.in_words}); name a run without")
    recipe = recipe if root is None else located(recipe, root)
    task = recipe.data.dataset.removeprefix("arabic")
    place = out / f"{recipe.start.family}-{task}-{read_json(run / RECIPE)['seed']}"
    place.mkdir(parents=True, exist_ok=True)
    settled = settled | {"start": str(run.resolve())}
    known = read_json(place / "settings.json") if (place / "settings.json").exists() else settled
    if others := [name for name, value in settled.items() if known.get(name) != value]:
        raise ValueError(f"{place} holds a study with other {' and '.join(others)}; choose another --out")
    write_json(place / "settings.json", settled)
    return Study(start=run, recipe=recipe, dataset=read(Sources().of(recipe)), place=place)


def tunings(
    study: Study,
    model: Classifier,
    methods: Sequence[MethodName],
    *,
    savings: Sequence[float],
    epochs: int,
    learned: float,
) -> Iterator[tuple[MethodName, Run]]:
    """The training of each method: any rate that has one of the savings, or for learned pruning one rate."""
    base, config = study.recipe, model.config
    blocks = default_blocks(config.depth)
    start = dataclasses.replace(base.start, checkpoint=str(study.start / MODEL))
    short = dataclasses.replace(second_stage(base, epochs=epochs), start=start, distill=Distill())
    rates = [next(iter(rates_for(config, Saving(saving)).values())) for saving in savings if saving]
    drawn = ("1", *(f"{rate:.3g}" for rate in rates))
    for method in methods:
        if method == LEARNED:
            recipe = learning(short, config, blocks=blocks, saving=learned)
        else:
            prune = Prune(method=method, keep_rate=1.0, sample=drawn, blocks=blocks)
            recipe = dataclasses.replace(short, prune=prune)
        recipe = dataclasses.replace(recipe, name=f"{base.name}-{method}")
        yield method, Run(name=method, recipe=recipe)


def measure(study: Study, trained: str, directory: Path, settings: Sequence[Setting]) -> None:
    """Adds to the file of a model's answers what it lacks: for each setting the cost, and the clips labelled right."""
    file = study.place / f"answers-{trained}.json"
    known = read_json(file) if file.exists() else {}
    missing = [setting for setting in settings if key(*setting) not in known]
    if not missing:
        return
    model, card = checkpoint.load(directory), checkpoint.load_card(directory)
    policies = {key(*setting): policy_of(model, *setting) for setting in missing}
    whole = macs(model, topk(model, {}))
    right = {
        split: correct(study.dataset, split, model=model, card=card, policies=policies)
        for split in SPLITS
        if split in study.dataset.sizes()
    }
    for (method, saving), (name, policy) in zip(missing, policies.items(), strict=True):
        cost = macs(model, policy)
        known[name] = {"method": method, "asked": saving, "gmacs": cost / 1e9, "saving": 1 - cost / whole}
        known[name]["right"] = {split: _to_hex(found[name]) for split, found in right.items()}
    write_json(file, known)


def key(method: MethodName, saving: float) -> str:
    """The name of a setting."""
    return f"{method} {saving:g}"


def policy_of(model: Classifier, method: MethodName, saving: float) -> Policy:
    """The policy of a setting; at 0 nothing is reduced."""
    return reduced(model, method, saving=saving) if saving else topk(model, {})


def table(study: Study, trained: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each model, setting and split. Differences are clip by clip: from the unpruned model without tuning,
    and from top-k at the same saving, tuned alike."""
    settings = [
        (name != UNTUNED, of_one)
        for name in trained
        for of_one in read_json(study.place / f"answers-{name}.json").values()
    ]
    rows = []
    for split in SPLITS:
        if split not in study.dataset.sizes():
            continue
        who = speakers(study.dataset, split)
        right = np.stack([_from_hex(one["right"][split], clips=len(who)) for _, one in settings], axis=1).astype(int)
        column = {(tuned, one["method"], one["asked"]): i for i, (tuned, one) in enumerate(settings)}
        whole = column[False, REFERENCE, 0.0]
        rivals = [column.get((tuned, REFERENCE, one["asked"])) for tuned, one in settings]
        rival = right[:, [whole if i is None else i for i in rivals]]
        parts = {"accuracy": right, "difference": right - right[:, [whole]], "against_topk": right - rival}
        columns = zip(*(of_columns(name, values, who) for name, values in parts.items()), strict=True)
        for (tuned, one), place, found in zip(settings, rivals, columns, strict=True):
            facts = {"model": study.name, "task": study.recipe.data.dataset, "data": study.dataset.name}
            facts |= {"tuned": tuned, "split": split}
            facts |= {name: one[name] for name in ("method", "asked", "saving", "gmacs")} | {"clips": len(who)}
            accuracy, difference, against = found
            rows.append(facts | accuracy | difference | ({} if place is None else against))
    return rows


def _to_hex(right: Bool[np.ndarray, "clips"]) -> str:
    return np.packbits(right).tobytes().hex()


def _from_hex(text: str, *, clips: int) -> Bool[np.ndarray, "clips"]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=clips).astype(bool)


def print_rows(rows: Sequence[dict[str, Any]], *, title: str) -> None:
    """The table of the test clips, by saving."""
    columns = (
        "tuned",
        "asked",
        "method",
        "saved",
        "accuracy %",
        "over speakers",
        "lost",
        "against topk",
        "over speakers",
    )
    chosen = sorted(
        (row for row in rows if row["split"] == "test"), key=lambda row: (row["tuned"], row["asked"], -row["accuracy"])
    )
    lines = [
        (
            "yes" if row["tuned"] else "no",
            f"{100 * row['asked']:g} %",
            row["method"],
            f"{100 * row['saving']:.1f} %",
            f"{100 * row['accuracy']:.2f}",
            ends(row["accuracy_over_speakers"]),
            f"{-100 * row['difference']:.2f}",
            f"{100 * row['against_topk']:+.2f}" if "against_topk" in row else "",
            ends(row["against_topk_over_speakers"]) if "against_topk" in row else "",
        )
        for row in chosen
    ]
    notes = ["95 % intervals. Lost: points of percent against the model without tuning and pruning."]
    cli.print_table(title, columns, lines, notes=notes)


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """A picture a task, with a panel for each model, untuned and tuned."""
    for task in dict.fromkeys(row["task"] for row in rows):
        curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if row["task"] == task and row["split"] == "test":
                panel = f"{row['model']}, {'tuned' if row['tuned'] else UNTUNED}"
                curves.setdefault((panel, row["method"]), []).append(row)
        for found in curves.values():
            if not any(row["asked"] == 0 for row in found):  # of the untuned model, measured once for all methods
                found += [row for row in curves[f"{found[0]['model']}, {UNTUNED}", REFERENCE] if row["asked"] == 0]
            found.sort(key=lambda row: row["gmacs"])
        drawn = [
            Curve(
                panel=panel,
                name=method,
                gmacs=tuple(row["gmacs"] for row in found),
                quality=tuple(row["accuracy"] for row in found),
                intervals=tuple(tuple(row["accuracy_over_speakers"]) for row in found),
            )
            for (panel, method), found in curves.items()
        ]
        title = f"{next(row['data'] for row in rows if row['task'] == task)}: test clips"
        paths = comparison(drawn, title=title, path=out / f"{task}.png", order=METHODS)
        cli.notice(f"wrote {', '.join(map(str, paths))}")


def regions(study: Study, trained: Sequence[str], methods: Sequence[MethodName], *, saving: float) -> None:
    """Draws the patches of the first test clip that each method leaves at a saving: in the untuned model, and in each
    method's own."""
    start = study.start / MODEL
    untuned = {method: start for method in methods if method != LEARNED}
    tuned = {method: study.place / method / MODEL for method in methods if method in trained}
    for name, models in ((UNTUNED, untuned), ("tuned", tuned)):
        results = [left_in_a_clip(study, method, saving, directory=place) for method, place in models.items()]
        if results:
            path = study.place.parent / f"regions-{study.name}-{name}.png"
            paths = retained_patches(results, checkpoint.load_card(start).model, path=path)
            cli.notice(f"wrote {', '.join(map(str, paths))}")


def left_in_a_clip(study: Study, method: MethodName, saving: float, *, directory: Path) -> Result:
    """The model's result on the first test clip, named after the method."""
    record = study.dataset.clips("test")[0]
    model, card = checkpoint.load(directory), checkpoint.load_card(directory)
    clip = Clip(path=Path(record.path), waveform=record.load())
    found = classify_clips([clip], model, card=card, keep_rate=Saving(saving), method=method, top=1, batch=1, mels=1)
    result = found.results[0]
    truth = tuple(study.dataset.labels[label] for label in record.labels)
    return dataclasses.replace(result, path=Path(method), truth=truth, **_at_few_blocks(result))


def _at_few_blocks(result: Result) -> dict[str, Any]:
    """The patches and groups after blocks 3, 6 and 9 of a method that acts in more blocks than it has room for."""
    blocks = set(result.kept) if len(result.kept) <= len(DEFAULT_BLOCKS) else set(DEFAULT_BLOCKS)
    every = {"kept": result.kept, "groups": result.groups}
    return {name: {block: of[block] for block in of if block in blocks} for name, of in every.items()}


if __name__ == "__main__":
    cli.run(main)
