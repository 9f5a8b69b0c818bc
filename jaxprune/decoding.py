"""Decodes sound files block by block, to their real end: libsndfile first, PyAV for what libsndfile cannot read.

A file may hold several sounds, one after the other, each of its own rate (`jaxprune.sound_containers`). Headers are not
trusted: only regular files are opened, and rates and channels that no recording has are refused before memory is asked
for. Mixing, resampling and all judgement of the sound are `jaxprune.audio`'s.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32

from jaxprune import flac
from jaxprune.files import shown
from jaxprune.sound_containers import Content, Piece, after_id3, pieces

Blocks = Iterator[Float32[np.ndarray, "samples channels"]]
FORMATS = "wav, flac, ogg or mp3"
RATES = (1000, 1_000_000)  # Hz; ultrasound recorders reach 768 kHz
CHANNELS = 256
EXTRA = 'pip install "jaxprune[audio]"'
_BLOCK = 2**17  # samples of all channels in a block; larger ones leave holes in the heap between XLA's buffers
_SMALL = 2**20  # bytes that are read sooner than mapped
_KEPT = 2**24  # bytes of a mapped file that may stay in memory
_AROUND = 2**14  # that come in with those that are asked for
_MANY = 2**40  # frames that mean: unknown
_EXACT = ("PCM", "FLOAT", "DOUBLE", "ALAC")  # libsndfile's names of codings without noise, of FLAC as well


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """One sound of a file, not yet decoded: `blocks()` decodes it once.

    `frames` is the number of samples of one channel that the header announces, None where it announces none.
    `short` is true where bytes are missing at its end. `skipped` are bytes within it that are no sound. `slack` is the
    number of frames by which `frames` may be wrong. `lossy` tells that its coding adds noise.
    """

    rate: int
    channels: int
    frames: int | None
    short: bool
    slack: int
    skipped: int = 0
    lossy: bool
    blocks: Callable[[], Blocks]


def sounds(path: Path) -> Iterator[Sound]:
    """The sounds of a file in order; each must be decoded before the next is asked for.

    Raises `ValueError`, one sentence that begins with the path, for what is no regular file, no sound, damaged, or
    has an implausible header.
    """
    check_regular(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unopened(path, error.strerror) from error
    with file:
        small = os.fstat(file.fileno()).st_size <= _SMALL
        content = file.read() if small else _Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = pieces(content)
        begin = after_id3(content, 0)
        for piece in found or (Piece(start=0, end=len(content)),):
            if piece.damage:  # what lies behind it would come at the wrong time
                raise ValueError(f"{shown(path)}: is damaged ({piece.damage}); give a complete {FORMATS} file")
            with contextlib.ExitStack() as stack:
                alone = (piece.start, piece.end, piece.prefix) == (0, len(content), b"")
                at = _native(path) if alone else stack.enter_context(_Range(content, piece))
                yield _checked(path, _opened(path, at, piece, stack=stack, head=content[begin : begin + 16]))


def check_regular(path: Path) -> None:
    """Raises `ValueError` unless there is a file with something in it: a pipe or device might never end."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unopened(path, error.strerror) from error
    if stat.S_ISDIR(status.st_mode):
        raise _unopened(path, "Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise _unopened(path, "Is a pipe or device")
    if status.st_size == 0:
        raise ValueError(f"{shown(path)}: is an empty file; expected a {FORMATS} recording")


def _unopened(path: Path, reason: str | None) -> ValueError:
    return ValueError(f"{shown(path)}: cannot be opened ({reason}); give the path of a {FORMATS} file")


def _checked(path: Path, sound: Sound) -> Sound:
    if not RATES[0] <= sound.rate <= RATES[1]:
        told = f"its header says {sound.rate} Hz; rates from {RATES[0]} to {RATES[1]} Hz are read"
        raise ValueError(f"{shown(path)}: {told}")
    if not 1 <= sound.channels <= CHANNELS:
        raise ValueError(f"{shown(path)}: its header says {sound.channels} channels; at most {CHANNELS} are read")
    return sound


def _opened(path: Path, at: Any, piece: Piece, *, stack: contextlib.ExitStack, head: bytes) -> Sound:
    try:
        file = stack.enter_context(_Sequential(at))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        if name := _other_format(head):
            return _opened_by_av(path, piece, name, stack=stack)
        if piece.short:
            raise _cut_short(path) from error
        raise ValueError(f"{shown(path)}: is not recognised as sound; expected a {FORMATS} file") from error
    frames = None if file.frames >= _MANY else max(file.frames, piece.frames or 0)
    size = max(1, min(_BLOCK // max(1, file.channels), file.frames))
    blocks = functools.partial(_blocks, path, file, size)
    return Sound(
        rate=file.samplerate,
        channels=file.channels,
        frames=frames,
        short=piece.short,
        skipped=piece.skipped,
        slack=_MANY if piece.lossy else 0,  # the frames of mp3 were counted, and a header's number is a guess
        lossy=not file.subtype.startswith(_EXACT),
        blocks=functools.partial(_intact, path, blocks, piece.stream) if piece.stream else blocks,
    )


def _cut_short(path: Path) -> ValueError:
    return ValueError(f"{shown(path)}: is cut short, and nothing of it can be decoded")


def _blocks(path: Path, file: soundfile.SoundFile, size: int) -> Blocks:
    try:
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise ValueError(f"{shown(path)}: is damaged ({reason}); give a complete {FORMATS} file") from error


def _intact(path: Path, blocks: Callable[[], Blocks], stream: flac.Stream) -> Blocks:
    """The blocks of a FLAC stream. Raises `ValueError` behind the last where they are not those that it promises."""
    check = flac.Check(stream)
    for block in blocks():
        check.add(block)
        yield block
    if damage := check.damage():
        raise ValueError(f"{shown(path)}: is damaged ({damage}); give a complete {FORMATS} file")


class _Sequential(soundfile.SoundFile):
    """A sound file read from front to end without a seek between blocks.

    Seeking fails in a FLAC file without a length and is not exact in mp3.
    """

    def seekable(self) -> bool:
        return False


def _native(path: Path) -> bytes | str:
    """A name in the system's own bytes, which need not be UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


class _Mapped(mmap.mmap):
    """A file's bytes, mapped. The memory of those that were read is given back now and then: files may be large."""

    _read = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self._read += _AROUND + (len(found) if isinstance(found, bytes) else 1)
        if self._read > _KEPT and hasattr(mmap, "MADV_DONTNEED"):
            self.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return found


class _Range(io.RawIOBase):
    """The bytes of one piece as a file of its own."""

    def __init__(self, content: Content, piece: Piece):
        self._content, self._piece, self._at = content, piece, 0
        self._size = len(piece.prefix) + piece.end - piece.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        prefix, begin = self._piece.prefix, self._piece.start + self._at - len(self._piece.prefix)
        count = max(0, min(len(buffer), self._size - self._at))
        if self._at < len(prefix):
            count = min(count, len(prefix) - self._at)
            buffer[:count] = prefix[self._at : self._at + count]
        else:
            buffer[:count] = self._content[begin : begin + count]
        self._at += count
        return count


# Other formats

# Of FFmpeg's readers only these, chosen by the first bytes: some others would open further files or addresses.
_OTHER = {
    (4, b"ftyp"): "mov",
    (0, b"\x1a\x45\xdf\xa3"): "matroska",
    (0, b"\x30\x26\xb2\x75"): "asf",
    (0, b"#!AMR"): "amr",
    (0, b"\xff\xf1"): "aac",
    (0, b"\xff\xf9"): "aac",
    (8, b"WAVE"): "wav",
    (0, b"OggS"): "ogg",
    (8, b"AIFC"): "aiff",
    (0, b"caff"): "caf",
}
_CALLED = {"mov": "MPEG-4 (m4a)", "matroska": "WebM or Matroska", "asf": "Windows Media", "aac": "AAC", "amr": "AMR"}
_UNTOLD = ("aac", "amr")  # layouts without a length: FFmpeg's is a guess by the file's size
_LATE = 0.25  # seconds by which a container's duration may pass the sound's


def _other_format(head: bytes) -> str | None:
    return next((name for (at, magic), name in _OTHER.items() if head[at:].startswith(magic)), None)


def _opened_by_av(path: Path, piece: Piece, name: str, *, stack: contextlib.ExitStack) -> Sound:
    called = _CALLED.get(name, f"an unusual kind of {name}")
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{shown(path)}: is {called}, which needs the extra audio: {EXTRA}") from error
    try:
        file = stack.enter_context(path.open("rb"))
        container = stack.enter_context(av.open(file, format=name, metadata_errors="replace"))
        if not container.streams.audio:
            raise ValueError(f"{shown(path)}: is {called} without a sound track")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise ValueError(f"{shown(path)}: is {called} in a coding that PyAV cannot decode")
        decoded = container.decode(track)
        first = next(decoded, None)  # tells what headers do not: HE-AAC doubles rate and channels as it is decoded
    except (av.FFmpegError, OSError) as error:
        if piece.short:
            raise _cut_short(path) from error
        raise ValueError(f"{shown(path)}: is damaged ({called}: {error.strerror})") from error
    if first is None and piece.short:
        raise _cut_short(path)
    if first is None:
        raise ValueError(f"{shown(path)}: holds no samples that can be decoded ({called})")
    rate, duration = first.sample_rate, None if name in _UNTOLD else container.duration
    return Sound(
        rate=rate,
        channels=first.layout.nb_channels,
        frames=round(duration / av.time_base * rate) if duration else None,
        short=piece.short,
        slack=round(_LATE * rate),
        lossy=not track.codec_context.codec.lossless,
        blocks=functools.partial(_blocks_by_av, path, itertools.chain((first,), decoded), called, short=piece.short),
    )


def _blocks_by_av(path: Path, frames: Iterator[Any], called: str, *, short: bool) -> Blocks:
    """The blocks of decoded frames, all in the first one's rate and channels. A `short` file may end in an error."""
    import av

    planar = None
    try:
        for frame in itertools.chain(frames, (None,)):  # None asks for the rest
            planar = planar or av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
            for part in planar.resample(frame):
                yield part.to_ndarray().T
    except (av.FFmpegError, OSError) as error:
        if short:
            return
        raise ValueError(f"{shown(path)}: is damaged ({called}: {error.strerror})") from error
