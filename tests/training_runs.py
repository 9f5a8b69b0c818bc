"""A data set of noise on disk and a short recipe with everything on, shared by the training tests."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from helpers import small
from quick import QUICK

import jaxprune
from jaxprune.data.batches import Batch, Batches, Workers, train_batches
from jaxprune.data.records import Dataset, Record
from jaxprune.features import sample_count
from jaxprune.training.classification import Classification
from jaxprune.training.loop import Training
from jaxprune.training.settings import AdamW, Augment, Cosine, Data, Loop, Precision, Prune, Recipe, Start

CLASSES = ("low", "middle", "high")
FRAMES = 64
EPOCHS, BATCH, CLIPS, STEPS = 6, 8, 16, 2  # STEPS an epoch
SHRINK = 2  # epoch
WORKERS = Workers(threads=1, ahead=1)


def child_environment(**changes: str) -> dict[str, str]:
    """The same for a child process, on the CPU."""
    tests = str(Path(__file__).parent)
    quick = {name.upper(): str(value) for name, value in QUICK.items()}
    return os.environ | quick | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": tests} | changes


def corpus(folder: Path, *, clips: int = CLIPS, tests: int = 5) -> Dataset:
    """Noise around a tone whose pitch is the class, of many lengths."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(clips + tests):
        samples = int(rng.integers(4000, 14000))
        tone = np.sin(2 * np.pi * (300, 1200, 4000)[i % 3] / 16000 * np.arange(samples))
        soundfile.write(folder / f"{i:02d}.wav", 0.2 * tone + rng.normal(0, 0.1, samples), 16000)
        split = "train" if i < clips else "test"
        records.append(Record(path=str(folder / f"{i:02d}.wav"), labels=(i % 3,), split=split))
    return Dataset(name="tones", labels=CLASSES, records=tuple(records))


def recipe(**changes) -> Recipe:
    """AudioMAE with what is switched off while shrinking and drop-path; from keep rate 1 through a cosine of 2 epochs
    to 0.5 at two blocks."""
    made = Recipe(
        name="test",
        source="the tests",
        start=Start(family="audiomae"),
        data=Data(dataset="tones", frames=FRAMES, mean=-6.0, std=4.0, classes=len(CLASSES)),
        augment=Augment(time_mask=24, freq_mask=24, patch_mask=0.3, drop_path=0.1),
        optimizer=AdamW(base_lr=3e-2),
        schedule=Cosine(warmup_epochs=1),
        prune=Prune(keep_rate=0.5, blocks=(0, 1), shrink_start=SHRINK, shrink_epochs=2, update="step", buckets=2),
        loop=Loop(epochs=EPOCHS, batch=BATCH),
        precision=Precision(compute="float32"),
    )
    return dataclasses.replace(made, **changes)


def model(family: str = "audiomae", **changes):
    """Two blocks, with a head that speaks from the start: AudioMAE's own would hide every difference at first."""
    made = jaxprune.build(small(family, **{"depth": 2, "frames": FRAMES, "classes": len(CLASSES)} | changes), seed=1)
    made.head.kernel[...] = 0.1 * jax.random.normal(jax.random.key(2), made.head.kernel.shape)
    return made


def training(made: Recipe, **changes) -> Training:
    """A training of a recipe; `model` and `steps_per_epoch` may be others."""
    settings = {"model": model(made.start.family), "steps_per_epoch": STEPS, "seed": 7} | changes
    given = settings.pop("model")
    task = Classification(made, given, steps_per_epoch=settings.pop("steps_per_epoch"), seed=settings["seed"])
    return Training(task, given, **settings)


class Rewound:
    """A training that tests share, so that its programs are traced and compiled once."""

    def __init__(self, shared: Training):
        # Copies, because the step reuses its buffers.
        self._shared, self._beginning = shared, jax.tree.map(jnp.copy, shared.state)

    def training(self) -> Training:
        """The training back at its beginning, with the weights it was made of."""
        self._shared.put(jax.tree.map(jnp.copy, self._beginning))
        return self._shared


def batches(dataset: Dataset, made: Recipe) -> Batches:
    return train_batches(
        dataset, frames=FRAMES, batch_size=made.loop.batch, epochs=made.loop.epochs, seed=7, workers=WORKERS
    )


def random_batch(*, seed: int = 0, clips: int = BATCH) -> Batch:
    """Noise of many lengths, with labels."""
    rng = np.random.default_rng(seed)
    return Batch(
        rng.normal(0, 0.1, (clips, sample_count(FRAMES))).astype(np.float32),
        rng.integers(4000, 10000, clips).astype(np.int32),
        np.eye(len(CLASSES), dtype=np.float32)[rng.integers(0, len(CLASSES), clips)],
        np.ones(clips, np.float32),
        np.arange(clips, dtype=np.int32),
    )


class Poisoned(Batches):
    """A loader whose batch of that number (from 1) has a clip, `bad`, with a sample that is not a number."""

    def __init__(self, loader: Batches, *, number: int):
        self.names, self.get_state = loader.names, loader.get_state
        self.waited, self._loader, self._left = 0.0, loader, number

    def __next__(self):
        batch = next(self._loader)
        self._left -= 1
        if self._left == 0:
            batch.waveforms[5, 2000] = np.nan  # too far inside for a shift to lose it
            self.bad = self.names(batch.indices[5:6])
        return batch
