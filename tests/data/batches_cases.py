"""A made data set that tests of batches and of statistics share."""

from pathlib import Path

import numpy as np
import soundfile

from jaxprune.data.batches import Workers, train_batches
from jaxprune.data.records import Dataset, Record
from jaxprune.features import sample_count

FRAMES = 32  # 5360 samples
SAMPLES = sample_count(FRAMES)
CLASSES = ("a", "b", "c")
THREADS = Workers(threads=3, ahead=2)


def corpus(folder: Path, *, train: int = 11, test: int = 7, silent: tuple[int, ...] = (), long: bool = True) -> Dataset:
    """Noise clips of many lengths, every other one longer than the input if `long`; some have two classes."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(train + test):
        samples = int(rng.integers(400, SAMPLES)) + (SAMPLES if long and i % 2 else 0)
        waveform = rng.uniform(-0.5, 0.5, samples) * (i not in silent)
        soundfile.write(folder / f"{i:02d}.wav", waveform, 16000, "FLOAT")
        labels = (i % 3,) if i % 4 else tuple(sorted({i % 3, 2}))
        path = str(folder / f"{i:02d}.wav")
        records.append(Record(path=path, labels=labels, split="train" if i < train else "test"))
    return Dataset(name="noise", labels=CLASSES, records=tuple(records))


def train(dataset: Dataset, **changes):
    return train_batches(
        dataset, **{"frames": FRAMES, "batch_size": 4, "epochs": 3, "seed": 5, "workers": THREADS} | changes
    )
