"""A pretrained AudioMAE in `jaxprune convert`: with its decoder to a checkpoint of ours, and back."""

from pathlib import Path

import numpy as np

from jaxprune.checkpoint import leaves
from jaxprune.cli.console import notice, print_table
from jaxprune.config import Card
from jaxprune.features import STATISTICS
from jaxprune.pretraining import Pretraining
from jaxprune.pretraining import checkpoint as pretraining_checkpoint

from .about import About, Facts
from .pretraining import from_pretraining


def save_pretraining(
    model: Pretraining, out: Path, *, about: About, source: str, frames: int | None, overwrite: bool
) -> None:
    """Writes the model as a checkpoint of ours, loads it again, and says what was written and assumed.

    `pretraining_card` has its facts. `frames` fits both position tables to another length. Raises `ValueError` where
    what was written is not what was converted.
    """
    if frames is not None:
        model = pretraining_checkpoint.of_length(model, frames=frames)
    card = pretraining_card(model, about=about, source=source)
    pretraining_checkpoint.save(out, model, card=card, overwrite=overwrite)
    saved, expected = leaves(pretraining_checkpoint.load(out)), leaves(model)
    if wrong := [name for name, leaf in expected.items() if not np.array_equal(saved[name][...], leaf[...])]:
        raise ValueError(f"{out} does not hold what was converted ({', '.join(wrong)}); is the disk sound?")
    _report(model, card=card, out=out)
    if about.dataset is None and about.mean is None:
        notice(f"the feature statistics are AudioSet's, mean {card.mean:g} and std {card.std:g}; --dataset or --mean")
    notice("the decoder is kept, for pretraining to go on; --classes N makes a classifier with a new head instead")


def pretraining_card(model: Pretraining, *, about: Facts, source: str) -> Card:
    """The card of a pretrained AudioMAE: AudioSet's statistics and padding with 0, unless `about` says otherwise.

    Raises `ValueError` where one of mean and std is given without the other, and for an unknown data set.
    """
    if (about.mean is None) != (about.std is None):
        raise ValueError("a mean and a std of the features go together; give both (--mean, --std) or neither")
    name = about.dataset or "audioset"
    if name not in STATISTICS:
        raise ValueError(f"no statistics are known for {name!r}; known data sets are {', '.join(STATISTICS)}")
    stats = STATISTICS[name]
    return Card(
        model=model.config,
        mean=stats.mean if about.mean is None else about.mean,
        std=stats.std if about.std is None else about.std,
        activation="sigmoid",
        source=f"{source} (AudioMAE, pretrained, with its decoder)",
        padding=about.padding or "zero",
    )


def pretraining_tensors(source: Path) -> dict[str, np.ndarray]:
    """A pretraining checkpoint of ours as official tensors."""
    return from_pretraining(pretraining_checkpoint.load(source))


def _report(model: Pretraining, *, card: Card, out: Path) -> None:
    """Prints the parts of the model and their sizes."""
    parts: dict[str, list[int]] = {}
    for name, leaf in leaves(model).items():
        parts.setdefault(name.split(".")[0], []).append(leaf.size)
    rows = [(part, len(sizes), f"{sum(sizes):,}") for part, sizes in parts.items()]
    print_table("Kept from AudioMAE, pretrained", ("part", "tensors", "numbers"), rows)
    encoder, decoder = card.model, pretraining_checkpoint.described(model.settings.decoder)
    numbers = sum(sum(sizes) for sizes in parts.values())
    print(
        f"wrote {out}: audiomae, width {encoder.width}, depth {encoder.depth}, {encoder.heads} heads, "
        f"{encoder.frames} frames x {encoder.mels} mel bins; {decoder['kind']} decoder, width {decoder['width']}, "
        f"depth {decoder['depth']}, {decoder['heads']} heads; {numbers:,} numbers; reloaded and compared, all equal"
    )
