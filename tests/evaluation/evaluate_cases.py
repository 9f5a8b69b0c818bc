"""Small models, a made data set and single evaluations that tests of evaluation share."""

import functools
from pathlib import Path

import jax
import numpy as np
import soundfile
from helpers import small
from quick import quick_compiling  # noqa: F401

import jaxprune
from jaxprune.config import Card
from jaxprune.data.batches import eval_batches
from jaxprune.data.records import Dataset, Record
from jaxprune.evaluation.evaluate import evaluate, keep_policies
from jaxprune.features import sample_count

FRAMES, CLASSES = 64, 7
LABELS = tuple(f"sound {y}" for y in range(CLASSES))
RATES, BLOCKS = (1.0, 0.7), (0, 1)


@functools.cache
def make(family: str, *, seed: int = 0):
    """A small model whose head is loud enough that clips differ, and its card."""
    config = small(family, depth=2, frames=FRAMES, classes=CLASSES)
    model = jaxprune.build(config, seed=seed)
    kernel = model.head.kernel
    kernel[...] = jax.random.normal(jax.random.key(seed), kernel.shape)
    card = Card(model=config, mean=-6.0, std=5.0, activation="softmax", labels=LABELS, source="test")
    return model, card


@functools.cache
def corpus(folder: Path, *, several: bool = False, silent: tuple[int, ...] = ()) -> Dataset:
    """13 chirps in noise, of three lengths about the model's, with one class each or `several`."""
    rng, records = np.random.default_rng(3), []
    (folder / f"{silent}").mkdir(exist_ok=True)
    for i in range(13):
        t = np.arange(sample_count((FRAMES // 2, FRAMES, 2 * FRAMES)[i % 3])) / 16000
        noise = rng.normal(0, 10 ** -rng.uniform(0, 3), len(t))
        sound = np.sin(2 * np.pi * (200 + 300 * i + 900 * (i % 4) * t) * t) + noise
        path = folder / f"{silent}" / f"{i:02d}.wav"
        soundfile.write(path, 0.1 * sound * (i not in silent), 16000, "FLOAT")
        found = {i % (CLASSES - 1), 5 * i % CLASSES} if several else {i % (CLASSES - 1)}
        records.append(Record(path=str(path), labels=tuple(sorted(found)), split="test"))
    return Dataset(name="chirps", labels=LABELS, records=tuple(records))


def run_once(model, card, dataset, *, rates=RATES, batch_size=4, policies=None, unusable=0.5, **changes):
    policies = keep_policies(model, rates, blocks=BLOCKS) if policies is None else policies
    with eval_batches(dataset, frames=FRAMES, batch_size=batch_size, unusable=unusable) as batches:
        single = {"single_label": dataset.single_label} | changes
        return evaluate(model, batches, card=card, policies=policies, **single)
