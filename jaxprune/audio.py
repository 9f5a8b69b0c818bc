"""Sound files to waveforms: any recording as 16 kHz mono float32, whole or window by window, padded into batches.

The notices of a clip say what was changed on the way. A file that cannot be used raises one sentence that says why.
Files are opened and decoded by `jaxprune.decoding`, and judged by `jaxprune.sound_survey`. Resampling is soxr's, as in
`librosa.resample` with "soxr_vhq", with the same numbers. soxr is called itself because librosa has no stream, which
long files need.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soxr
from jaxtyping import Float, Float32, Int

from jaxprune.decoding import FORMATS, Sound, shown, sounds
from jaxprune.features import SAMPLE_RATE, WINDOW
from jaxprune.sound_survey import SHORTEST, Survey

LONGEST_HOURS = 4  # of a clip that is held in memory as a whole
_HELD_SECONDS = 600  # files that announce at most this are decoded once for their windows, longer ones twice

__all__ = [
    "FORMATS",
    "Clip",
    "SoundHeader",
    "Window",
    "blocks_of",
    "load_audio",
    "pad_batch",
    "sound_header",
    "windows",
    "windows_of",
]


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
    """A sound file's facts by its header. `frames` are samples of one channel, of all sounds in the file."""

    frames: int
    samplerate: int
    channels: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a longer waveform; `start` is in seconds from its beginning. `notices` are those of its file."""

    start: float
    waveform: Float[np.ndarray, "samples"]
    notices: tuple[str, ...] = ()


def load_audio(path: str | os.PathLike[str]) -> Clip:
    """Reads a sound file of any sample rate and channel count, of at most 4 hours.

    Channels are averaged and other rates resampled to 16 kHz (soxr, very high quality), each with a notice. So are a
    missing end, several sounds in one file, channels that cancel (the first with sound is used) and integers written
    as floats (scaled to 1). Raises `ValueError`, one sentence that begins with the path, for what cannot be opened or
    decoded, for no samples, samples that are not finite or all equal (silence), and for less than one 25 ms frame.
    """
    path = Path(path)
    survey = Survey(path)
    blocks = list(_resampled(survey.blocks(), limit=path))
    if survey.cancels():
        blocks = list(_resampled(survey.blocks(), limit=path))
    survey.check()
    waveform = np.concatenate(blocks) * survey.scale if survey.scale != 1 else np.concatenate(blocks)
    if len(waveform) < WINDOW:
        lasts = f"{1000 * len(waveform) / SAMPLE_RATE:.3g} ms"
        raise ValueError(f"{shown(path)}: lasts {lasts}, which is too short; at least {SHORTEST} are needed")
    return Clip(path=path, waveform=waveform, notices=survey.notices())


def windows_of(path: str | os.PathLike[str], *, samples: int, hop: int) -> Iterator[Window]:
    """The windows of a file's sound, as `windows(load_audio(path).waveform)` gives them, in bounded memory.

    Raises `ValueError` as `load_audio` and `windows` do, before the first window.
    """
    _check_cut(samples, hop)
    blocks, notices = blocks_of(path)
    return _cut(blocks, samples=samples, hop=hop, notices=notices)


def blocks_of(path: str | os.PathLike[str]) -> tuple[Iterator[Float[np.ndarray, "_"]], tuple[str, ...]]:
    """A file's waveform in consecutive blocks, which make what `load_audio` gives, and its notices; in bounded memory.

    A long file is decoded twice: first its faults and level are found, on which the first block depends. Raises
    `ValueError` as `load_audio` does, before the first block.
    """
    path = Path(path)
    header = sound_header(path)
    if header is None or header.frames <= _HELD_SECONDS * header.samplerate:
        clip = load_audio(path)
        return iter([clip.waveform]), clip.notices
    survey = Survey(path)
    survey.pass_by()
    if survey.cancels():
        survey.pass_by()
    survey.check()
    blocks = (block * survey.scale if survey.scale != 1 else block for block in _resampled(survey.blocks()))
    return blocks, survey.notices()


def sound_header(path: str | os.PathLike[str]) -> SoundHeader | None:
    """Read without decoding, but for a sound whose header does not know its length. None for what is no sound."""
    frames, first = 0.0, None
    try:
        for sound in sounds(Path(path)):
            first = first or sound
            length = sum(map(len, sound.blocks())) if sound.frames is None else sound.frames
            frames += length * first.rate / sound.rate
    except ValueError:
        return None
    return SoundHeader(frames=round(frames), samplerate=first.rate, channels=first.channels) if first else None


def windows(waveform: Float[np.ndarray, "samples"], *, samples: int, hop: int) -> list[Window]:
    """Cuts a waveform into windows of `samples` every `hop` samples, while at least one 25 ms frame is uncovered.

    The last window may be shorter, and up to 399 samples at the end may be left out. Raises `ValueError` unless
    `samples` and the waveform hold a frame and `hop` is between 1 and `samples`, so that nothing is skipped.
    """
    _check_cut(samples, hop)
    if len(waveform) < WINDOW:
        raise ValueError(f"a waveform of {len(waveform)} samples cannot hold one frame; at least {SHORTEST} are needed")
    return list(_cut(iter([waveform]), samples=samples, hop=hop))


def pad_batch(
    waveforms: Sequence[Float[np.ndarray, "..."]],
) -> tuple[Float[np.ndarray, "b samples"], Int[np.ndarray, "b"]]:
    """One float32 array as long as the longest waveform, zeros after the shorter ones, and each one's length.

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


def _check_cut(samples: int, hop: int) -> None:
    if samples < WINDOW:
        raise ValueError(f"windows of {samples} samples cannot hold one frame; at least {SHORTEST} are needed")
    if not 1 <= hop <= samples:
        raise ValueError(f"hop is {hop}; it must be from 1 to the window's {samples} samples")


def _cut(
    blocks: Iterator[Float[np.ndarray, "_"]], *, samples: int, hop: int, notices: tuple[str, ...] = ()
) -> Iterator[Window]:
    """Windows of a waveform that comes in blocks. Holds a window and a block."""
    need = max(samples, samples - hop + WINDOW)  # a window after the first must show a frame that the last one does not
    held, begin = np.zeros(0, np.float32), 0
    more = True
    while True:
        parts, length = [held], len(held)
        while length < need and (block := next(blocks, None)) is not None:
            parts.append(block)
            length += len(block)
        held = np.concatenate(parts) if len(parts) > 2 or len(held) else parts[-1]
        more = length >= need
        at = 0
        while len(held) - at >= need or (not more and (begin + at == 0 or len(held) - at >= samples - hop + WINDOW)):
            yield Window(start=(begin + at) / SAMPLE_RATE, waveform=held[at : at + samples], notices=notices)
            at += hop
        if not more:
            return
        held, begin = held[at:], begin + at


def _resampled(
    blocks: Iterable[tuple[Sound, Float[np.ndarray, "_"]]], *, limit: Path | None = None
) -> Iterator[Float32[np.ndarray, "_"]]:
    """Mono blocks at 16 kHz, each sound resampled by itself. `limit` is the path to refuse if its sound is too long."""
    sound = stream = None
    total = 0
    for of, block in blocks:
        if of is not sound:
            if stream:
                yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
            stream = None if of.rate == SAMPLE_RATE else soxr.ResampleStream(of.rate, SAMPLE_RATE, 1, quality="VHQ")
            sound = of
        block = stream.resample_chunk(block) if stream else block
        total += len(block)
        if limit and total > LONGEST_HOURS * 3600 * SAMPLE_RATE:
            raise ValueError(f"{shown(limit)}: lasts more than {LONGEST_HOURS} hours; cut it into shorter files")
        yield block
    if stream:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
