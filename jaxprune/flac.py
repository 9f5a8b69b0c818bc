"""The header and the last frames of a FLAC stream, and the checksum of its samples (RFC 9639).

A decoder fills a missing frame without a word, plays frames in whatever order they come, and believes a header that
contradicts the frames. It calls a frame that is cut at the file's end damaged. Decoding is `jaxprune.decoding`'s.
"""

import dataclasses
import functools
import hashlib
import itertools
import mmap
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, UInt16

Content = bytes | mmap.mmap
MARKS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")  # a stream begins with its mark and the head of a block of 34 bytes
_HEADER = 42  # bytes: the mark, the block's head and the block
_LONGEST = 2**22  # bytes; twice a frame of 65,535 samples of 8 channels of 32 bits
_LONGEST_HEAD = 16  # bytes of a frame's own header
_CANDIDATES = 3  # places that look like the start of a last frame: one in thousands of files has a false one
_RATES = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 0, 0, 0)
_BITS = (0, 8, 12, 0, 16, 20, 24, 32)
_TYPES = {8: "<i1", 16: "<i2", 24: "<i4"}  # of 24 bits three bytes of four
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The facts of a stream (STREAMINFO), as its frames should have them.

    `block` is the number of samples in a frame. `samples` of one channel are 0 where unknown, `md5` zeros.
    """

    block: int
    rate: int
    channels: int
    bits: int
    samples: int
    md5: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One stream's bytes, from `start` up to the `end` of its last whole frame, or of the stream where none was found.

    `header` is None where the file ends before it. `short` is true where a frame follows that is cut. `frames` is the
    number of samples of one channel up to `end` by the last frame's own number, 0 where unknown. `damage` says in words
    where header and frames contradict each other.
    """

    start: int
    end: int
    header: Header | None
    short: bool = False
    frames: int = 0
    damage: str = ""


class Check:
    """A stream's samples, block by block, held against the number and the MD5 that it gives."""

    def __init__(self, stream: Stream):
        self._stream, self._count, self._found = stream, 0, hashlib.md5(usedforsecurity=False)
        self._known = any(stream.header.md5) and stream.header.bits in _TYPES

    def add(self, block: Float32[np.ndarray, "samples channels"]) -> None:
        self._count += len(block)
        if not self._known:
            return
        bits = self._stream.header.bits
        whole = (block * np.float32(2 ** (bits - 1))).astype(_TYPES[bits])  # exact: float32 holds 24 bits
        self._found.update(whole.view("u1").reshape(-1, 4)[:, :3].tobytes() if bits == 24 else whole.data)

    def damage(self) -> str:
        """The damage that the samples show, in words, after the last block."""
        header, frames = self._stream.header, self._stream.frames
        if frames and self._count != frames:
            return f"it has frames up to sample {frames}, of which {self._count} could be decoded"
        if self._known and self._count >= header.samples and self._found.digest() != header.md5:
            return "its samples are not those of which its header has the MD5"
        return ""


def streams(content: Content, start: int) -> Iterator[Stream]:
    """The streams of a chain in order, the first at `start`. A tag behind the frames is no part of a stream."""
    while start < len(content):
        end = start
        while (end := _find(content, b"fLaC", end + 4)) >= 0:
            if content[end : end + 8] in MARKS:
                break
        end = end if end >= 0 else len(content)
        header = _header(content[start + 8 : start + _HEADER])
        yield (
            _stream(content, start, end, header=header)
            if header
            else Stream(start=start, end=end, header=None, short=True)
        )
        start = end


def _find(content: Content, mark: bytes, at: int) -> int:
    """Finds as `content.find` does, by copies of a MiB. In a memory map that is many times as fast."""
    for begin in range(at, len(content), 2**20):
        found = content[begin : begin + 2**20 + len(mark) - 1].find(mark)
        if found >= 0:
            return begin + found
    return -1


def _header(block: bytes) -> Header | None:
    """The facts in a block of STREAMINFO, None where the file ends within."""
    if len(block) < _HEADER - 8:
        return None
    facts = int.from_bytes(block[10:18], "big")
    return Header(
        block=int.from_bytes(block[2:4], "big"),
        rate=facts >> 44,
        channels=(facts >> 41 & 7) + 1,
        bits=(facts >> 36 & 31) + 1,
        samples=facts & (2**36 - 1),
        md5=bytes(block[18:34]),
    )


def _stream(content: Content, start: int, end: int, *, header: Header) -> Stream:
    """The stream that lies from `start` to `end`, by its header and its last frames."""
    frames = list(itertools.islice(_last_frames(content, start + _HEADER, end, header=header), _CANDIDATES))
    found = Stream(start=start, end=end, header=header)
    if not frames:
        return found
    for name, unit in (("rate", "Hz"), ("channels", "channels"), ("bits", "bits")):
        one, other = getattr(header, name), getattr(frames[0][1], name)
        if other not in (0, one):
            return dataclasses.replace(found, damage=f"its header says {one} {unit}, its frames say {other}")

    def until(stop: int, frame: _Frame | None, *, short: bool) -> Stream:
        # Only where the header counts them are frames sure to be numbered from the first.
        number = frame.last if frame and header.samples else 0
        return dataclasses.replace(found, end=stop, frames=number, short=short)

    for at, frame in frames:
        left = _remainders(content[at:end])
        whole = np.flatnonzero((left == 0) & np.append(left[1:] != 0, True)) + 1  # zeros change nothing
        if left[-1] == 0 or (len(whole) and frame.last == header.samples):  # a decoder stops there
            return until(end, frame, short=False)
        for size in whole:
            stop = at + int(size)
            if content[stop : stop + 8].startswith(_TAGS):
                return until(stop, frame, short=False)
            if end - stop < _LONGEST_HEAD:
                return until(stop, frame, short=True)
    # The last frame is not whole. A false one may lie within it.
    for (stop, _), (at, frame) in itertools.combinations(frames, 2):
        if _remainders(content[at:stop])[-1] == 0:
            return until(stop, frame, short=True)
    return until(frames[0][0], None, short=True) if len(frames) == 1 else found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frame:
    """A frame's facts by its own header, 0 where it leaves them to the stream's.

    `last` is the number of samples of one channel up to its end.
    """

    rate: int
    channels: int
    bits: int
    last: int


def _last_frames(content: Content, start: int, end: int, *, header: Header) -> Iterator[tuple[int, _Frame]]:
    """The places that look like the start of a frame, from the last to the first."""
    begin = max(start, end - _LONGEST)
    tail = content[begin:end]
    at = len(tail)
    while (at := max(tail.rfind(b"\xff\xf8", 0, at), tail.rfind(b"\xff\xf9", 0, at))) >= 0:
        if frame := _frame(tail[at : at + _LONGEST_HEAD], header):
            yield begin + at, frame
        at += 1


def _frame(head: bytes, header: Header) -> _Frame | None:
    """The frame whose header these bytes begin with. None where there is none or its own checksum fails."""
    if len(head) < 6:
        return None
    size, rate, channels, bits = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the frame's number is written as in UTF-8
    if size == 0 or rate == 15 or channels > 10 or head[3] & 1 or ones in (1, 8):
        return None
    at = 5 + max(0, ones - 1)
    number = head[4] & (0x7F >> ones)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    wide = {6: 1, 7: 2}.get(size, 0)
    length = int.from_bytes(head[at : at + wide], "big") + 1 if wide else 192 if size == 1 else 144 << size
    length = 256 << size - 8 if size > 7 else length
    at += wide
    own = {12: 1, 13: 2, 14: 2}.get(rate, 0)
    said = int.from_bytes(head[at : at + own], "big") * {12: 1000, 14: 10}.get(rate, 1) if own else _RATES[rate]
    at += own
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    first = number if head[1] & 1 else number * header.block
    return _Frame(rate=said, channels=channels + 1 if channels < 8 else 2, bits=_BITS[bits], last=first + length)


def _crc8(head: bytes) -> int:
    found = 0
    for byte in head:
        found ^= byte
        for _ in range(8):
            found = found << 1 ^ (0x107 if found & 0x80 else 0)
    return found


@functools.cache
def _powers() -> UInt16[np.ndarray, "32767"]:
    """The powers of x modulo the polynomial of the CRC-16, x^16 + x^15 + x^2 + 1. x has the order 32,767."""
    found, power = [], 1
    for _ in range(32767):
        found.append(power)
        power = power << 1 ^ (0x18005 if power & 0x8000 else 0)
    return np.array(found, np.uint16)


def _remainders(frame: bytes) -> UInt16[np.ndarray, "bytes"]:
    """The CRC-16 remainder at each byte of a frame. It is 0 where the bytes up to there end with their own CRC-16."""
    bits = np.unpackbits(np.frombuffer(frame, np.uint8))
    terms = _powers()[np.arange(len(bits) - 1, -1, -1) % 32767]
    return np.bitwise_xor.accumulate(np.bitwise_xor.reduce((bits * terms).reshape(-1, 8), axis=1))
