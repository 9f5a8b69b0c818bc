"""Sound that is still going on, in blocks of 16 kHz mono float32: a microphone, or raw samples from a pipe.

Each source is an iterator that ends where the sound does. `jaxprune.streaming` listens to the blocks. Files are
`jaxprune.audio`'s.
"""

import importlib
import io
import queue
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import numpy as np
import soxr
from jaxtyping import Float32

from jaxprune.features import SAMPLE_RATE

BLOCK_SECONDS = 0.1
SILENT_SECONDS = 5.0  # without a block a microphone is taken for gone

SampleFormat = Literal["s16le", "f32le"]
_FORMATS = {"s16le": (np.dtype("<i2"), 2.0**-15), "f32le": (np.dtype("<f4"), 1.0)}


def microphone(device: str = "") -> Iterator[Float32[np.ndarray, "_"]]:
    """Blocks of 0.1 s from a microphone, by the name or number that `sounddevice` has for it (default: the system's).

    Needs the package sounddevice (extra "listen"). Raises `ValueError` where there is no such device, and where it goes
    away while it is listened to.
    """
    sounddevice = _sounddevice()
    arrived: queue.Queue[Any] = queue.Queue()
    settings = {
        "device": (int(device) if device.isdigit() else device) or None,
        "samplerate": SAMPLE_RATE,
        "channels": 1,
        "dtype": "float32",
        "blocksize": round(BLOCK_SECONDS * SAMPLE_RATE),
        "callback": lambda block, frames, time, status: arrived.put(block[:, 0].copy()),
    }
    which = f"the microphone {device!r}" if device else "the system's microphone"
    try:
        stream = sounddevice.InputStream(**settings)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise ValueError(
            f"{which} cannot be listened to ({error}); `python -m sounddevice` lists those there are"
        ) from error
    with stream:
        while True:
            yield _next(arrived, stream, which)


def _sounddevice() -> ModuleType:
    """Imports the package. Where its library is missing, raises a sentence that says how it comes."""
    try:
        return importlib.import_module("sounddevice")
    except OSError as error:
        raise ValueError(
            "sounddevice finds no PortAudio, which it needs; install it (Debian: apt-get install libportaudio2)"
        ) from error


def _next(arrived: "queue.Queue[Any]", stream: Any, which: str) -> Float32[np.ndarray, "_"]:
    try:
        return arrived.get(timeout=SILENT_SECONDS)
    except queue.Empty:
        state = "is gone" if not stream.active else f"has given nothing for {SILENT_SECONDS:g} s"
        raise ValueError(f"{which} {state}; check that it is plugged in, and start again") from None


def raw(
    stream: io.BufferedIOBase, *, rate: int = SAMPLE_RATE, samples: SampleFormat = "s16le"
) -> Iterator[Float32[np.ndarray, "_"]]:
    """Blocks of raw mono samples from a pipe, such as `ffmpeg -i INPUT -f s16le -ac 1 -ar 16000 -` writes.

    Another `rate` (in Hz) is resampled to 16 kHz. Raises `ValueError` for a rate outside 1,000 to 1,000,000 and for
    bytes left over at the end that make no sample.
    """
    if not 1000 <= rate <= 1_000_000:
        raise ValueError(f"rate is {rate} Hz; it must be from 1000 to 1000000")
    kind, scale = _FORMATS[samples]
    size = kind.itemsize * max(1, round(BLOCK_SECONDS * rate))
    resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="VHQ")
    while content := stream.read(size):
        if len(content) % kind.itemsize:
            raise ValueError(
                f"the pipe ended inside a sample; raw {samples} was expected, {kind.itemsize} bytes a sample"
            )
        block = np.frombuffer(content, kind).astype(np.float32) * np.float32(scale)
        yield resampler.resample_chunk(block) if resampler else block
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
