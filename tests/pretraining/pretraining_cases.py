"""A small pretraining model, recipe and data set, shared by the tests."""

import csv
import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from helpers import small
from training_runs import FRAMES, corpus

from jaxprune.config import Card
from jaxprune.pretraining import PlainDecoder, Pretraining, PretrainingConfig, RandomMask, WindowDecoder
from jaxprune.pretraining import checkpoint as pretraining_checkpoint
from jaxprune.training.pretraining_settings import PRETRAINING_RECIPES, PretrainingRecipe

ENCODER = small("audiomae", width=24, depth=2, classes=1, frames=FRAMES)
DECODERS = {
    "plain": PlainDecoder(width=16, depth=1, heads=2),
    "window": WindowDecoder(width=16, depth=2, heads=2),
}


def model(decoder: str = "window", *, seed: int = 0) -> Pretraining:
    """A model whose every number differs from its neighbours', so that no swap goes unseen."""
    made = Pretraining(PretrainingConfig(encoder=ENCODER, decoder=DECODERS[decoder]), rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(1)
    for _, leaf in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        leaf[...] = leaf[...] + rng.normal(0, 0.05, leaf[...].shape).astype(np.float32)
    return made


def saved(folder: Path, *, decoder: str = "window") -> Path:
    """The model's checkpoint."""
    card = Card(model=ENCODER, mean=-6.0, std=4.0, activation="sigmoid")
    return pretraining_checkpoint.save(folder / decoder, model(decoder), card=card)


def manifest(folder: Path, *, clips: int = 16, held_out: int = 6) -> Path:
    """Clips without labels in a table of two columns."""
    dataset = corpus(folder / "sounds", clips=clips, tests=held_out)
    path = folder / "clips.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "split"))
        rows.writerows(
            (record.path, "train" if record.split == "train" else "validation") for record in dataset.records
        )
    return path


def recipe(*, root: Path, start: Path, **changes) -> PretrainingRecipe:
    """Ours for the words, on other data and from a small model."""
    made = PRETRAINING_RECIPES["audiomae-arabic-words-pretrain"]
    parts = {
        "start": dataclasses.replace(made.start, checkpoint=str(start)),
        "data": dataclasses.replace(made.data, dataset="tones", root=str(root), frames=FRAMES, mean=-6.0, std=4.0),
        "mask": RandomMask(ratio=0.5),
        "decoder": dataclasses.replace(made.decoder, width=48),
        "augment": dataclasses.replace(made.augment, speed=(1.0, 1.0)),
        "schedule": dataclasses.replace(made.schedule, warmup_epochs=1.0),
        "loop": dataclasses.replace(made.loop, epochs=3, batch=8),
    }
    return dataclasses.replace(made, **parts | changes)


def options(*, root: Path, start: Path, out: Path) -> list[str]:
    """The same on the command line, with seed 7."""
    return f"""audiomae-arabic-words-pretrain --data.dataset tones --data.root {root} --data.frames {FRAMES}
    --data.mean -6 --data.std 4 --start.checkpoint {start} --mask.ratio 0.5 --decoder.width 48
    --augment.speed 1 1 --schedule.warmup-epochs 1
    --loop.epochs 3 --loop.batch 8 --seed 7 --out {out}""".split()


def keys(count: int, *, seed: int = 3) -> jax.Array:
    """A key a clip."""
    return jax.random.split(jax.random.key(seed), count)
