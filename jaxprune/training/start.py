"""The beginning of a run: where its clips are, the recipe fitted to them, and the model that it starts from.

A recipe is made for a data set of its own. Here it meets the data at hand: other classes, own sounds, one fold.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxprune import checkpoint
from jaxprune.config import PADDING_IN_WORDS, Card, Padding
from jaxprune.data.published import (
    ESC50,
    ArabicSpeechCommands,
    AudioSet,
    Folder,
    Manifest,
    Shards,
    Source,
    SpeechCommands,
    UnlabelledFolder,
    UnlabelledManifest,
    VoxCeleb1,
)
from jaxprune.data.records import Dataset, Missing
from jaxprune.data.shard_files import is_shards
from jaxprune.models import Classifier, build
from jaxprune.pretraining import checkpoint as pretraining_checkpoint
from jaxprune.training.pretraining_settings import PretrainingRecipe
from jaxprune.training.settings import Recipe

AnyRecipe = TypeVar("AnyRecipe", Recipe, PretrainingRecipe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """The places of the clips, as far as `data.root` does not tell them."""

    # ESC-50: the fold to test on.
    fold: int = 1
    # Label file, where classes are not in alphabetical order; AudioSet: by default class_labels_indices.csv in root.
    labels: Path | None = None
    # AudioSet: the JSON file of the training clips.
    train_json: Path | None = None
    # AudioSet: the JSON file of the evaluation clips.
    test_json: Path | None = None
    # VoxCeleb-1: other folders that hold speakers.
    also: tuple[Path, ...] = ()
    # Listed files that do not exist: refuse them, or skip up to a fifth of them.
    missing: Missing = "refuse"

    def of(self, recipe: Recipe | PretrainingRecipe, *, labelled: bool = True) -> Source:
        """The recipe's data set at its root: shards if they are there, a published one by name, else own data.

        A manifest or folder that need not be `labelled` may lack labels: they are left out. Raises `ValueError` where
        no root is given.
        """
        root = Path(recipe.data.root)
        if not recipe.data.root:
            raise ValueError(f"where {recipe.data.dataset} lies was not said; give --data.root")
        if is_shards(root):
            return Shards(root=root, fold=self.fold, labels=self.labels)
        match recipe.data.dataset:
            case "esc50":
                return ESC50(root=root, fold=self.fold, missing=self.missing)
            case "speechcommands":
                return SpeechCommands(root=root, labels=self.labels, missing=self.missing)
            case "voxceleb1":
                return VoxCeleb1(root=root, also=self.also, labels=self.labels, missing=self.missing)
            case "arabicwords" | "arabicspeakers" as name:
                task = name.removeprefix("arabic")
                return ArabicSpeechCommands(root=root, task=task, labels=self.labels, missing=self.missing)
            case "audioset":
                labels = self.labels or root / "class_labels_indices.csv"
                return AudioSet(
                    labels=labels, train=self.train_json, test=self.test_json, root=root, missing=self.missing
                )
        if root.is_file():
            if not labelled:
                return UnlabelledManifest(path=root, missing=self.missing)
            return Manifest(path=root, labels=self.labels, missing=self.missing)
        return Folder(root=root, labels=self.labels) if labelled else UnlabelledFolder(root=root)


def fitted(recipe: Recipe, dataset: Dataset) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the data set's number of classes and the fold it tests on, and notes on data and changes.

    The fold is in the recipe so that a run is not resumed on another one, whose test clips it has trained on. Raises
    `ValueError` for a loss that the labels do not allow.
    """
    notes = dataset.notices
    recipe = folds_named(recipe, dataset)
    if recipe.data.classes != len(dataset.labels):
        notes += (f"{dataset.name} has {len(dataset.labels)} classes, not {recipe.data.classes}: the head has as many",)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, classes=len(dataset.labels)))
    if recipe.loop.loss == "ce" and not dataset.single_label:
        raise ValueError(f"{dataset.name} has clips of several classes; the loss must be bce (--loop.loss bce)")
    if recipe.loop.loss == "ce" and len(dataset.labels) == 1:
        only = f"{dataset.name} has one class, {dataset.labels[0]!r:.80}, whose softmax is always 1: nothing to learn"
        raise ValueError(
            f"{only}; add clips of another class, or train with --loop.loss bce where labels may be absent"
        )
    return recipe, notes


def folds_named(recipe: AnyRecipe, dataset: Dataset) -> AnyRecipe:
    """The recipe with the folds that it tests on."""
    tested = {record.fold for record in dataset.records if record.split == "test" and record.fold is not None}
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folds=tuple(sorted(tested))))


def padded(recipe: AnyRecipe, *, begun: Padding | None = None) -> tuple[AnyRecipe, tuple[str, ...]]:
    """The recipe with its padding chosen, and a note where the checkpoint or the published recipe has another.

    The recipe's wish comes first, then the run that was `begun`, then the card of the checkpoint, then the minimum.
    """
    asked, start = recipe.data.padding or begun, recipe.start.checkpoint
    card = checkpoint.load_card(start) if start and (asked is None or begun is None) else None
    chosen = asked or (card.padding if card else "minimum")
    notes = ()
    if card and card.padding != chosen:
        here, there = PADDING_IN_WORDS[chosen], PADDING_IN_WORDS[card.padding]
        notes = (f"short clips are padded with {here}, though those of {start} were with {there}",)
    elif chosen != "minimum" and asked is None:
        notes = (
            f"short clips are padded with {PADDING_IN_WORDS[chosen]}, as {start} says; the published pruning recipes "
            "pad with the minimum (--data.padding minimum)",
        )
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, padding=chosen)), notes


def starting_model(recipe: Recipe, labels: tuple[str, ...], *, seed: int) -> tuple[Classifier, tuple[str, ...]]:
    """The recipe's model for these classes, and the changes to the checkpoint, in words.

    It comes from `start.checkpoint`, with the position table fitted to the recipe's frames. The head, norm included, is
    new where the checkpoint's classes are not these in this order, and where it is a pretraining model. Without a
    checkpoint the model is of `start.size` with random weights. Its predictors are the recipe's: the checkpoint's if
    they are of the same blocks, else new ones. Raises `ValueError` for a checkpoint of another family.
    """
    start, facts, dtype = recipe.start, recipe.data, recipe.precision.compute
    if not start.checkpoint:
        return build(recipe.model(), dtype=dtype, seed=seed), ("the model starts from random weights",)
    card = checkpoint.load_card(start.checkpoint)
    if card.model.family != start.family:
        raise ValueError(f"{start.checkpoint} holds an {card.model.family}; the recipe trains an {start.family}")
    if start.stride and (start.stride, start.stride) != (card.model.time_stride, card.model.freq_stride):
        raise ValueError(
            f"{start.checkpoint} has patches every {card.model.time_stride} frames and {card.model.freq_stride} mel "
            f"bins, the recipe every {start.stride}; leave out --start.stride, or start from random weights"
        )
    weights = _weights(start.checkpoint, card, frames=facts.frames)
    config = dataclasses.replace(
        card.model, frames=facts.frames, classes=facts.classes, predictors=recipe.prune.predictors
    )
    fresh, notes = build(config, dtype=dtype, seed=seed), []
    if card.model.predictors != config.predictors:
        weights = _with_part_of(fresh, weights, _in_predictors)
        there, here = card.model.predictors, config.predictors
        notes += [f"the checkpoint's predictors, of blocks {list(there)}, are left out"] if there else []
        notes += [f"predictors of blocks {list(here)} are new"] if here else []
    if card.model.frames != facts.frames:
        notes.append(f"the position table was fitted from {card.model.frames} frames to {facts.frames}")
    if not same_classes(recipe, labels):
        weights = _with_part_of(fresh, weights, _in_head)
        if card.decoder is None:
            told = f"the head is new: the checkpoint's {card.model.classes} classes are not these {facts.classes}"
        else:
            told = f"{start.checkpoint} is a pretraining model: its decoder is left out, and the head is new"
        notes.append(told)
    return checkpoint.fill(fresh, weights, source=start.checkpoint), tuple(notes)


def same_classes(recipe: Recipe, labels: tuple[str, ...]) -> bool:
    """True if the recipe starts from a checkpoint whose head knows these classes in this order, as far as it says."""
    if not recipe.start.checkpoint:
        return False
    card = checkpoint.load_card(recipe.start.checkpoint)
    return card.decoder is None and card.model.classes == recipe.data.classes and card.labels in ((), labels)


def _with_part_of(
    fresh: Classifier, weights: dict[str, np.ndarray], part: Callable[[str], bool]
) -> dict[str, np.ndarray]:
    """The weights with those of a part, by name, from a fresh model."""
    new = {name: np.asarray(leaf[...]) for name, leaf in checkpoint.leaves(fresh).items() if part(name)}
    return {name: leaf for name, leaf in weights.items() if not part(name)} | new


def _in_predictors(name: str) -> bool:
    return name.startswith("predictors.")


def _weights(directory: str, card: Card, *, frames: int) -> dict[str, np.ndarray]:
    """A checkpoint's weights as the classifier names them, for spectrograms of so many frames."""
    if card.decoder is not None:
        return pretraining_checkpoint.encoder_weights(directory, frames=frames)[1]
    loaded = checkpoint.load(directory, frames=frames)
    return {name: np.asarray(leaf[...]) for name, leaf in checkpoint.leaves(loaded).items()}


def _in_head(name: str) -> bool:
    """True for weights of the classifier, its LayerNorm included: AST's `mlp_head`, AudioMAE's `fc_norm` and `head`."""
    return name.startswith(("head.", "head_norm."))
