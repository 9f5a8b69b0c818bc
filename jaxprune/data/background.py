"""Background noise from a folder, put under training clips as they are read.

Noise is drawn on the host, because the files are there; all other variation is the device's
(`jaxprune.training.augment`). A draw depends on a seed alone, which `jaxprune.data.rows` makes for each place in a
run: so it does not depend on threads, processes or interruptions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from jaxprune.audio import load_audio, sound_header
from jaxprune.data.folders import find
from jaxprune.data.records import refuse
from jaxprune.data.shard_files import waveform

LONGEST = 600  # seconds of a file of noise, which is decoded whole
HELD = 16  # decoded files that a process keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Background:
    """Noise of these `files` under a `share` of the clips, at a ratio uniform between two `snr` in dB.

    The ratio is the clip's mean power over that of the noise, which is a random stretch of a random file. A file that
    is shorter than a clip begins again. A silent stretch leaves a clip as it is.
    """

    files: tuple[str, ...]
    snr: tuple[float, float]
    share: float

    def __call__(self, sound: Shaped[np.ndarray, "samples"], seed: Sequence[int]) -> Shaped[np.ndarray, "samples"]:
        """The clip with its noise, float32; the sum may pass full scale. A clip without noise stays as it is held.

        Raises `ValueError` for a damaged file.
        """
        rng = np.random.default_rng(seed)
        chance, ratio = rng.uniform(), rng.uniform(*self.snr)
        noise = _sound(self.files[rng.integers(len(self.files))])
        start = rng.integers(max(1, len(noise) - len(sound) + 1))
        if chance >= self.share:
            return sound
        clip, stretch = waveform(sound), np.take(noise, np.arange(start, start + len(sound)), mode="wrap")
        ours, theirs = (np.mean(np.square(part, dtype=np.float64)) for part in (clip, stretch))
        if theirs == 0:
            return sound
        return clip + stretch * np.float32(np.sqrt(ours / theirs / 10 ** (ratio / 10)))


def background(folder: Path, *, snr: tuple[float, float], share: float) -> Background:
    """The noise below a folder. Raises `ValueError` where there is none, or a file is no sound or over ten minutes."""
    files = tuple(path for _, path in find(folder).files)
    if not files:
        raise ValueError(f"{folder}: holds no sound files to take background noise from")
    headers = {path: sound_header(path) for path in files}
    refuse((path for path, header in headers.items() if header is None), f"{folder}: files cannot be read as sound")
    refuse(
        (path for path, header in headers.items() if header.frames > LONGEST * header.samplerate),
        f"{folder}: files of background noise last more than {LONGEST // 60} minutes; cut them into shorter ones",
    )
    return Background(files=files, snr=snr, share=share)


@functools.lru_cache(maxsize=HELD)
def _sound(path: str) -> Float[np.ndarray, "samples"]:
    return load_audio(path).waveform
