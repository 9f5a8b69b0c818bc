"""Small models, recordings and bad files that tests of classification share."""

import functools
from pathlib import Path

import numpy as np
import soundfile
from helpers import TESTS, small
from jaxprune.convert.mapping import to_flax
from jaxprune.convert.random_checkpoint import random_state
from quick import quick_compiling  # noqa: F401

from jaxprune.config import Card

FOLDER = TESTS / "recordings"
LABELS = tuple(f"sound {y}" for y in range(10))


@functools.cache
def make(family: str, **changes):
    """A model of spread-out random weights, pruned well before its end, and its card."""
    config = small(family, **{"depth": 2} | changes)
    activation = {"ast": "sigmoid", "audiomae": "softmax"}[family]
    card = Card(
        model=config,
        mean=-4.3,
        std=4.6,
        activation=activation,
        labels=LABELS,
        source="random weights, seed 0",
        trained=False,
    )
    return to_flax(random_state(config, seed=0), config), card


def bad_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.wav" for name in ("text", "empty", "short", "missing")}
    files["text"].write_text("these are words, not sound\n")
    files["empty"].write_bytes(b"")
    soundfile.write(files["short"], 0.1 * np.sin(np.arange(160)), 16000)
    return files
