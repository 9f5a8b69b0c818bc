"""A model and a run of few clips that tests of extraction share."""

import functools

from quick import quick_compiling  # noqa: F401
from training_runs import CLASSES
from training_runs import model as make_model

import jaxprune
from jaxprune.analysis.extract import extract
from jaxprune.analysis.identity import describe
from jaxprune.config import Card
from jaxprune.data.batches import eval_batches

CLIPS, BATCH, SHARD = 13, 4, 2  # the last batch is three rows short, the last shard five clips
RATES = {0: 0.7, 1: 0.5}


@functools.cache
def make(family: str = "audiomae"):
    made = make_model(family)
    return made, Card(model=made.config, mean=-6.0, std=4.0, activation="softmax", labels=CLASSES, source="test")


def run_once(out, dataset, *, model=None, card=None, policy=None, split="test", unusable=0.5, mel=None, **changes):
    made, its_card = make()
    model, card = model or made, card or its_card
    policy = jaxprune.topk(model, RATES) if policy is None else policy
    frames = model.config.frames
    common = {"card": card, "policy": policy, "mel": mel, "shard_batches": SHARD}
    description = describe(model, dataset, split=split, batch=BATCH, **common)
    with eval_batches(dataset, split, frames=frames, batch_size=BATCH, unusable=unusable) as batches:
        return extract(model, batches, out=out, description=description, **common | changes)


def other_weights():
    made = make_model()
    made.head.bias[...] = made.head.bias[...] + 1
    return made
