"""Sound files to waveforms: any wav, flac, ogg or mp3 as 16 kHz mono float32, cut into windows, padded into batches.

What was changed on the way is said in a clip's notices, and a file that cannot be used raises one sentence that says
why. Everything is NumPy on the host; spectrograms are `jaxprune.features`, data sets are `jaxprune.data.batches`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int

from jaxprune.features import SAMPLE_RATE, WINDOW

FORMATS = "wav, flac, ogg or mp3"
SHORTEST = f"{1000 * WINDOW // SAMPLE_RATE} ms ({WINDOW} samples at {SAMPLE_RATE} Hz)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One file's sound, 16 kHz mono, full scale at 1. `notices` are sentences about what was changed or looked odd."""

    path: Path
    waveform: Float[np.ndarray, "samples"]
    notices: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundHeader:
    """What a sound file says of itself: `frames` are samples of one channel."""

    frames: int
    samplerate: int
    channels: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a longer waveform; `start` is in seconds from its beginning."""

    start: float
    waveform: Float[np.ndarray, "samples"]


def load_audio(path: str | os.PathLike[str]) -> Clip:
    """Reads a sound file of any sample rate, channel count and length.

    Channels are averaged and other rates resampled to 16 kHz (soxr, very high quality), each with a notice. Raises
    `ValueError`, one sentence that begins with the path, for what cannot be opened or decoded, for no samples, samples
    that are not finite or all equal (silence), and for less than one 25 ms frame.
    """
    path = Path(path)
    waveform, rate, notices = _read_mono(path)
    if len(waveform) == 0:
        raise ValueError(f"{path}: holds no samples; a recording of at least {SHORTEST} is needed")
    if not np.isfinite(waveform).all():
        bad = int(np.count_nonzero(~np.isfinite(waveform)))
        raise ValueError(f"{path}: {bad} of {len(waveform)} samples are NaN or infinite; all must be finite numbers")
    if waveform.min() == waveform.max():
        raise ValueError(
            f"{path}: is silent, every sample equals {waveform[0]:g}; a recording with sound in it is needed"
        )
    if rate != SAMPLE_RATE:
        notices.append(f"{path.name}: resampled from {rate} Hz to {SAMPLE_RATE} Hz")
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE, quality="VHQ")
    if len(waveform) < WINDOW:
        lasts = f"{1000 * len(waveform) / SAMPLE_RATE:.3g} ms"
        raise ValueError(f"{path}: lasts {lasts}, which is too short; at least {SHORTEST} are needed")
    return Clip(path=path, waveform=waveform, notices=tuple(notices))


def sound_header(path: str | os.PathLike[str]) -> SoundHeader | None:
    """Read without decoding; None where the file is not recognised as sound."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError):
        return None
    return SoundHeader(frames=info.frames, samplerate=info.samplerate, channels=info.channels)


def windows(waveform: Float[np.ndarray, "samples"], *, samples: int, hop: int) -> list[Window]:
    """Cuts a waveform into windows of `samples` every `hop` samples, while at least one 25 ms frame is uncovered.

    The last window may be shorter, and up to 399 samples at the end may be left out. Raises `ValueError` unless
    `samples` and the waveform hold a frame and `hop` is between 1 and `samples`, so that nothing is skipped.
    """
    if samples < WINDOW or len(waveform) < WINDOW:
        shorter = f"windows of {samples}" if samples < WINDOW else f"a waveform of {len(waveform)}"
        raise ValueError(f"{shorter} samples cannot hold one frame; at least {SHORTEST} are needed")
    if not 1 <= hop <= samples:
        raise ValueError(f"hop is {hop}; it must be from 1 to the window's {samples} samples")
    starts = range(0, max(1, len(waveform) - samples - WINDOW + hop + 1), hop)
    return [Window(start=start / SAMPLE_RATE, waveform=waveform[start : start + samples]) for start in starts]


def pad_batch(
    waveforms: Sequence[Float[np.ndarray, "..."]],
) -> tuple[Float[np.ndarray, "b samples"], Int[np.ndarray, "b"]]:
    """One float32 array as long as the longest waveform, zeros after the shorter ones, and how many samples each had.

    Raises `ValueError` for no waveforms, or one that is not a plain row of samples.
    """
    if not waveforms:
        raise ValueError("there are no waveforms to put in a batch; give at least one")
    for waveform in waveforms:
        if np.ndim(waveform) != 1:
            raise ValueError(f"a waveform has shape {np.shape(waveform)}; each must have one axis, its samples")
    lengths = np.array([len(waveform) for waveform in waveforms], np.int32)
    batch = np.zeros((len(waveforms), lengths.max()), np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return batch, lengths


def _read_mono(path: Path) -> tuple[Float[np.ndarray, "samples"], int, list[str]]:
    """The mean of a file's channels at its own rate, read in blocks to hold one channel of a long file, not all."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror}); give the path of a {FORMATS} file") from error
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is an empty file; expected a {FORMATS} recording")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise ValueError(f"{path}: is not recognised as sound; expected a {FORMATS} file") from error
    blocks = []
    with file:
        try:
            # Not `file.blocks`: on a truncated mp3 it goes on repeating old samples up to the announced length.
            while len(block := file.read(2**20, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1))
        except soundfile.LibsndfileError as error:
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
            raise ValueError(f"{path}: is damaged ({reason}); give a complete {FORMATS} file") from error
        waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        notices = []
        if len(waveform) < file.frames:
            notices.append(f"{path.name}: is truncated, {len(waveform)} of {file.frames} samples could be read")
        if file.channels > 1:
            notices.append(f"{path.name}: averaged {file.channels} channels into one")
        return waveform, file.samplerate, notices
