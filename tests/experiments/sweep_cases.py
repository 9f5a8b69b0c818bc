"""A small model that tests of sweeps share."""

import functools

from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES
from training_runs import model as make_model

from jaxprune.config import Card
from jaxprune.experiments.sweep import Candidate

CLIPS, DEVICE = 13, "a device"


@functools.cache
def make(seed: int = 0) -> Candidate:
    model = make_model("ast")
    if seed:
        model.head.kernel[...] = -model.head.kernel[...]
    card = Card(model=model.config, mean=-6.0, std=4.0, activation="softmax", labels=CLASSES, source="test")
    return Candidate(name=f"model {seed}", weights=f"weights {seed}", model=model, card=card)
