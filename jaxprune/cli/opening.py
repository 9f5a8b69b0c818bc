"""What every command that runs a checkpoint on a data set begins with: the card, and whether they belong together."""

import os

from jaxprune.checkpoint import load_card
from jaxprune.cli import console as cli
from jaxprune.config import Card
from jaxprune.data.records import Dataset, first_few
from jaxprune.inference import has_random_weights


def card_for(checkpoint: str | os.PathLike, dataset: Dataset) -> Card:
    """A checkpoint's card, once its classes are the data set's; what to be wary of is said on stderr.

    Raises `ValueError` as `load_card` and `check_labels` do.
    """
    card = load_card(checkpoint)
    check_labels(card, dataset)
    if not card.labels:
        cli.notice(f"{checkpoint} names no classes: its {card.model.classes} are taken to be in the data set's order")
    if has_random_weights(card):
        cli.notice(f"{checkpoint} has random weights, so what is measured means nothing")
    return card


def check_labels(card: Card, dataset: Dataset) -> None:
    """Raises `ValueError` unless a model's outputs mean the data set's classes: the same names in the same order.

    A card without names passes on the number of classes alone.
    """
    if card.model.classes != len(dataset.labels):
        raise ValueError(f"the checkpoint has {card.model.classes} classes, but {dataset.name} {len(dataset.labels)}")
    if not card.labels or card.labels == dataset.labels:
        return
    pairs = zip(card.labels, dataset.labels, strict=True)
    different = [f"{y} is {mine!r}, not {theirs!r}" for y, (mine, theirs) in enumerate(pairs) if mine != theirs]
    if sorted(card.labels) == sorted(dataset.labels):
        why = "has the same classes in another order (a label file in the checkpoint's order mends that)"
    else:
        why = "has other classes"
    raise ValueError(f"{dataset.name} {why}; in the checkpoint class {first_few(different)}")
