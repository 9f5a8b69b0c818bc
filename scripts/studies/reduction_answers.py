"""The answers of models in the study of ways to reduce tokens: which clips each labels right under each setting.

They are kept in a file for each model, and turned into rows with intervals.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxprune import checkpoint
from jaxprune.cli.options import read
from jaxprune.cost import macs
from jaxprune.data.records import Dataset
from jaxprune.files import write_json
from jaxprune.json_files import read_json
from jaxprune.models import Classifier, topk
from jaxprune.reduction.policy import Policy
from jaxprune.registry import MethodName, reduced
from jaxprune.training.run_directory import RECIPE, RESULT
from jaxprune.training.settings import Recipe
from jaxprune.training.start import Sources
from scripts.studies.pieces import correct, located, of_columns, recipe_of, speakers

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
    # Family and task, such as ast-words.
    kind: str
    seed: int

    @property
    def name(self) -> str:
        """Family, task and seed, such as ast-words-0."""
        return self.place.name


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
    seed = read_json(run / RECIPE)["seed"]
    kind = f"{recipe.start.family}-{recipe.data.dataset.removeprefix('arabic')}"
    place = out / f"{kind}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    settled = settled | {"start": str(run.resolve())}
    known = read_json(place / "settings.json") if (place / "settings.json").exists() else settled
    if others := [name for name, value in settled.items() if known.get(name) != value]:
        raise ValueError(f"{place} holds a study with other {' and '.join(others)}; choose another --out")
    write_json(place / "settings.json", settled)
    return Study(start=run, recipe=recipe, dataset=read(Sources().of(recipe)), place=place, kind=kind, seed=seed)


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


def table(studies: Sequence[Study], trained: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each model, setting and split: of one study, or the mean of studies that differ in the seed alone.

    Differences are clip by clip: from the unpruned model without tuning, and from top-k at the same saving, tuned
    alike. Intervals of a mean draw clips and speakers, not seeds; `difference_by_seed` has each seed's.
    """
    first = studies[0]
    facts = {"model": named(studies), "kind": first.kind, "seeds": [study.seed for study in studies]}
    facts |= {"task": first.recipe.data.dataset, "data": first.dataset.name}
    answers = [_settled(study, trained) for study in studies]
    common = [setting for setting in answers[0] if all(setting in others for others in answers)]
    settings = [(name != UNTUNED, answers[0][name, asked]) for name, asked in common]
    column = {(tuned, one["method"], one["asked"]): i for i, (tuned, one) in enumerate(settings)}
    whole = column[False, REFERENCE, 0.0]
    rivals = [column.get((tuned, REFERENCE, one["asked"])) for tuned, one in settings]
    rows = []
    for split in SPLITS:
        if split not in first.dataset.sizes():
            continue
        who = speakers(first.dataset, split)
        by_seed = np.array(  # seeds settings clips
            [[_from_hex(of_one[setting]["right"][split], clips=len(who)) for setting in common] for of_one in answers]
        )
        right = by_seed.mean(axis=0).T
        rival = right[:, [whole if i is None else i for i in rivals]]
        parts = {"accuracy": right, "difference": right - right[:, [whole]], "against_topk": right - rival}
        columns = zip(*(of_columns(name, values, who) for name, values in parts.items()), strict=True)
        shares = by_seed.mean(axis=2)
        each = (shares - shares[:, [whole]]).T.tolist()
        for (tuned, one), place, found, seeds in zip(settings, rivals, columns, each, strict=True):
            row = facts | {"tuned": tuned, "split": split}
            row |= {name: one[name] for name in ("method", "asked", "saving", "gmacs")} | {"clips": len(who)}
            accuracy, difference, against = found
            row |= accuracy | difference | {"difference_by_seed": seeds}
            rows.append(row | ({} if place is None else against))
    return rows


def named(studies: Sequence[Study]) -> str:
    """The name of a study, or of the mean of several: `ast-words, seeds 0, 1 and 2`."""
    if len(studies) == 1:
        return studies[0].name
    *others, last = (str(study.seed) for study in studies)
    return f"{studies[0].kind}, seeds {', '.join(others)} and {last}"


def _settled(study: Study, trained: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The answers of a study by trained model and setting."""
    files = {name: read_json(study.place / f"answers-{name}.json") for name in trained}
    return {(name, setting): found for name, file in files.items() for setting, found in file.items()}


def _to_hex(right: Bool[np.ndarray, "clips"]) -> str:
    return np.packbits(right).tobytes().hex()


def _from_hex(text: str, *, clips: int) -> Bool[np.ndarray, "clips"]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=clips).astype(bool)
