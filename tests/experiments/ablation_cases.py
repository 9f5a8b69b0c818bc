"""Models and single runs that tests of ablations share."""

import functools

from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES, FRAMES
from training_runs import model as make_model

from jaxprune.analysis.bootstrap import Bootstrap
from jaxprune.config import Card
from jaxprune.data.batches import eval_batches
from jaxprune.experiments.ablation import (
    ablate,
)

CLIPS = 7  # in batches of 4: one row only fills
FEW = Bootstrap(resamples=50)


@functools.cache
def make(family: str = "ast"):
    made = make_model(family)
    return made, Card(model=made.config, mean=-6.0, std=4.0, activation="softmax", labels=CLASSES, source="test")


def run_once(dataset, settings, *, family="ast", batch_size=4, single_label=True):
    model, card = make(family)
    with eval_batches(dataset, "test", frames=FRAMES, batch_size=batch_size) as batches:
        return ablate(model, batches, card=card, settings=settings, single_label=single_label)
