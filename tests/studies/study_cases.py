"""A small data set of noise for the studies of Arabic words: three speakers, two words, one louder than the other."""

from pathlib import Path

import numpy as np
import soundfile

SPEAKERS = {"00000001": "test", "00000002": "validation", "00000003": "train"}


def write_clips(root: Path) -> Path:
    """The data set with one manifest, ten clips a speaker and word."""
    rng, rows = np.random.default_rng(0), ["path,labels,split"]
    for word, level in {"yes": 0.3, "no": 0.01}.items():
        (root / word).mkdir()
        for speaker, split in SPEAKERS.items():
            for nth in range(1, 11):
                name = f"{word}/{speaker}_NO_{nth:02d}.wav"
                soundfile.write(root / name, level * rng.uniform(-1, 1, 16_000), 16_000)
                rows.append(f"{name},{word},{split}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    return root
