"""The byte layout of sound files: where each sound in a file begins and ends, and whether its end is missing.

Sound libraries read the first sound of a joined file and take a file's length for its header's. Both hide sound, or
its loss, without a word. So the headers are walked here. Decoding is `jaxprune.decoding`'s.
"""

import dataclasses
import functools
import mmap
import struct
from collections.abc import Iterator

from jaxprune import flac, ogg, other_containers

Content = bytes | mmap.mmap
UNKNOWN = (2**31, 2**32)  # sizes near these, and 0, stand in headers that were written before the length was known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One sound's bytes, from `start` up to `end`.

    `short` is true where the header promises more than the file holds. `frames` is the promised number of samples of
    one channel, None where the header does not say. `lossy` means frames of mp3, whose decoder may round their number.
    `prefix` belongs in front of the bytes: a Xing header where the sound has none of its own, for without one a decoder
    guesses the length and stops there. `damage` says in words what is wrong with the bytes, where they tell. `skipped`
    are bytes between frames of mp3 that are none. `stream`
    is a FLAC stream, whose checksum the samples are held against.
    """

    start: int
    end: int
    short: bool = False
    frames: int | None = None
    lossy: bool = False
    prefix: bytes = b""
    damage: str = ""
    skipped: int = 0
    stream: flac.Stream | None = None


def pieces(content: Content) -> tuple[Piece, ...]:
    """The sounds of a file's bytes (or its memory map) in order, none for a layout that is not known here."""
    start = after_id3(content, 0)
    magic = content[start : start + 4]
    if magic == b"OggS":
        return tuple(_ogg(content))
    if magic == b"fLaC":
        return tuple(_flac(content, start))
    if magic in _CHUNKS:
        return tuple(_chunked(content))
    if magic == b".snd" and len(content) >= 24:
        offset, size = struct.unpack(">II", content[4:12])
        return (Piece(start=0, end=len(content), short=_is_known(size) and offset + size > len(content)),)
    if _mpeg(content, start):
        found = tuple(_mp3(content, start, len(content)))
        if len(found) == 1 and not found[0].prefix:  # with its tags: they change nothing
            found = (dataclasses.replace(found[0], start=0, end=len(content)),)
        return found
    return (Piece(start=0, end=len(content), short=True),) if other_containers.is_cut(content, start) else ()


# Containers of chunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunks:
    """A container's conventions: where its first chunk lies, and how a chunk gives its name and size."""

    first: int
    name: int  # bytes of a chunk's name
    size: str
    sound: bytes  # the name of the chunk with the sound
    align: int = 2
    counts_header: bool = False


_CHUNKS = {
    b"RIFF": _Chunks(first=12, name=4, size="<I", sound=b"data"),
    b"RF64": _Chunks(first=12, name=4, size="<I", sound=b"data"),
    b"FORM": _Chunks(first=12, name=4, size=">I", sound=b"SSND"),
    b"caff": _Chunks(first=8, name=4, size=">Q", sound=b"data", align=1),
    b"riff": _Chunks(first=40, name=16, size="<Q", sound=b"data", align=8, counts_header=True),
}
_SAMPLES = (1, 3, 6, 7, 0xFFFE)  # formats of wav whose blocks are samples: integers, floats, a-law, mu-law, extensible
_MP3_IN_RIFF = 0x55


def _chunked(content: Content) -> Iterator[Piece]:
    """A piece for each file of chunks, one joined to the other."""
    start = 0
    while content[start : start + 4] in _CHUNKS:
        kind = _CHUNKS[content[start : start + 4]]
        found, end = _chunks(content, start + kind.first, kind)
        at, size = found.get(kind.sound, (end, None))
        short = size is not None and at + size > len(content)
        form, block = _wav_format(content, found)
        if form == _MP3_IN_RIFF and (inside := list(_mp3(content, at, min(end, at + (size or end))))):
            yield from (dataclasses.replace(piece, short=piece.short or short) for piece in inside)
        else:
            frames = size // block if short and block and form in _SAMPLES else None
            first = content[at : at + 4]
            if size is None and content[at - 4 : at] == bytes(4) and first and not first.strip().isalnum():
                # No chunk but sound follows a size of 0, which a decoder would believe.
                prefix = content[start : at - 4] + struct.pack("<I", min(end - at, 2**32 - 1))
                yield Piece(start=at, end=end, prefix=prefix)
            else:
                yield Piece(start=start, end=end, short=short, frames=frames)
        if end == len(content):
            return
        start = end


def _chunks(content: Content, at: int, kind: _Chunks) -> tuple[dict[bytes, tuple[int, int | None]], int]:
    """The place and size of each chunk's content by its name, and the end of them all.

    A size is None where the writer could not know it: then the chunk goes on to the end of the file.
    """
    found: dict[bytes, tuple[int, int | None]] = {}
    wide = struct.calcsize(kind.size)
    while at + kind.name + wide <= len(content) and len(found) < 1000:
        name, header = content[at : at + kind.name][:4], kind.name + wide
        if name in _CHUNKS:
            return found, at
        (size,) = struct.unpack_from(kind.size, content, at + kind.name)
        size -= header if kind.counts_header else 0
        if name == kind.sound and b"ds64" in found:
            (size,) = struct.unpack_from("<Q", content, found[b"ds64"][0] + 8)
        known = name != kind.sound or _is_known(size)
        found.setdefault(name, (at + header, size if known else None))
        if size < 0 or not known:
            break
        at += header + -(-size // kind.align) * kind.align
    return found, len(content)


def _wav_format(content: Content, found: dict[bytes, tuple[int, int | None]]) -> tuple[int, int]:
    """A wav's format number and bytes a block, zeros for what is no wav."""
    at, size = found.get(b"fmt ", (0, 0))
    if not size or size < 14 or at + 14 > len(content):
        return 0, 0
    return struct.unpack_from("<H", content, at)[0], struct.unpack_from("<H", content, at + 12)[0]


def _is_known(size: int) -> bool:
    return size not in (0, 2**64 - 1) and all(abs(size - unknown) > 8192 for unknown in UNKNOWN)


# Ogg and FLAC


def _ogg(content: Content) -> Iterator[Piece]:
    """A piece for each link of a chain. A link begins with its first pages and ends with a page that is marked last."""
    start, link = 0, []
    for page in ogg.pages(content):
        if page.first and not all(other.first for other in link):
            yield Piece(start=start, end=page.start, short=not ogg.is_ended(link), damage=ogg.damage(link))
            start, link = page.start, []
        link.append(page)
    yield Piece(start=start, end=len(content), short=not ogg.is_ended(link), damage=ogg.damage(link))


def _flac(content: Content, start: int) -> Iterator[Piece]:
    """A piece for each stream of a chain, the first at `start`."""
    for one in flac.streams(content, start):
        known = one if one.header else None
        yield Piece(start=one.start, end=one.end, short=one.short, damage=one.damage, stream=known)


# mp3

_BITRATES = {  # kbit/s by (MPEG 1?, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_VERSIONS = {3: 1, 2: 2, 0: 4}  # MPEG 1, 2 and 2.5: the rates are divided by this


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A frame of mp3: its bytes, what must stay equal within one sound, and where a Xing header would stand."""

    header: bytes
    size: int
    kind: tuple[int, int, int, bool]
    xing: int


def _mpeg(content: Content, at: int) -> _Frame | None:
    """The frame that begins here, None where none does."""
    return _frame(content[at : at + 4])


@functools.lru_cache(maxsize=4096)
def _frame(header: bytes) -> _Frame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or bitrate in (0, 15):
        return None
    first = version == 3
    rate = (44100, 48000, 32000)[rate] // _VERSIONS[version]
    bits = 1000 * _BITRATES[first, layer][bitrate - 1]
    mono = header[3] >> 6 == 3
    if layer == 1:
        size = (12 * bits // rate + padding) * 4
    else:
        size = (144 if first or layer == 2 else 72) * bits // rate + padding
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[first, mono]
    return _Frame(header, size, (version, layer, rate, mono), 4 + side)


def _mp3(content: Content, at: int, end: int) -> Iterator[Piece]:
    """A piece for each sound of frames from `at` to `end`: joined files, with or without Xing headers.

    A new sound begins at a Xing header, where more frames follow than the last Xing header counted, at another rate or
    number of channels, and after an ID3 tag. Frames that are cut or missing make a piece short.
    """
    sound: _Sound | None = None
    begun, skipped = False, 0
    while at < end:
        frame = _mpeg(content, at)
        if frame is None:
            if tagged := after_id3(content, at) - at:
                if sound:
                    yield sound.piece(at)
                sound = None
                at += tagged
            else:
                place = _next_frame(content, at + 1, end, kind=sound.first.kind if sound else None)
                skipped += place - at
                at = place
            continue
        header = content[at : at + 4 + 32 + 16]
        counted = _xing(header[frame.xing :])
        changed = sound is not None and frame.kind != sound.first.kind and _repeats(content, at, frame, end)
        full = sound is not None and sound.is_full and _mpeg(content, at + frame.size) is not None
        if sound is None or changed or counted or full:
            if sound:
                yield sound.piece(at)
            # The delay that a later Xing header tells is not taken off, as in players of the joined stream.
            later = counted is not None and begun
            sound = _Sound(
                start=at + frame.size * later,
                first=frame,
                promised=counted,
                own=not later and counted is not None,
            )
            begun, skipped = True, 0
        if not counted:
            sound.count += 1
            sound.bitrates.add(frame.header[2] >> 4)
        sound.skipped += skipped
        skipped = 0
        sound.cut = at + frame.size > end
        at += frame.size
        sound.end = min(at, end)
    if sound:
        yield sound.piece(end)


@dataclasses.dataclass(kw_only=True)
class _Sound:
    """A sound that is being walked: its frames so far and those that its Xing header promised."""

    start: int
    first: _Frame
    promised: tuple[int, int] | None
    own: bool  # its Xing header is kept
    bitrates: set[int] = dataclasses.field(default_factory=set)
    count: int = 0
    skipped: int = 0
    end: int = 0
    cut: bool = False

    @property
    def is_full(self) -> bool:
        """All promised frames are here. One more may follow: some writers count the header's own frame."""
        return self.promised is not None and 0 < self.promised[0] <= self.count

    def piece(self, until: int) -> Piece:
        frames, size = self.promised or (0, 0)
        missing = frames - self.count
        short = self.cut or missing > 1 or (missing == 1 and self.end - self.start < size)
        guessed = not self.own and len(self.bitrates) > 1  # with one bitrate the guess is right
        prefix = _xing_frame(self.first, self.count) if guessed else b""
        end = min(self.end, until)
        return Piece(start=self.start, end=end, short=short, lossy=True, prefix=prefix, skipped=self.skipped)


def _xing_frame(like: _Frame, count: int) -> bytes:
    """A frame whose Xing header counts so many frames, nothing for layers that have no such header."""
    if like.kind[1] != 3:
        return b""
    for bitrate in range(1, 15):
        header = bytes([0xFF, like.header[1] | 1, bitrate << 4 | like.header[2] & 0x0C, like.header[3]])
        frame = _frame(header)
        if frame and frame.size >= frame.xing + 12:
            return header.ljust(frame.xing, b"\0") + (b"Xing" + struct.pack(">II", 1, count)).ljust(
                frame.size - frame.xing, b"\0"
            )
    return b""


def _xing(text: bytes) -> tuple[int, int] | None:
    """The frames and bytes that a Xing header counts (0 for what it leaves out), None for an ordinary frame."""
    if text[:4] not in (b"Xing", b"Info") or len(text) < 16:
        return None
    flags, *numbers = struct.unpack(">III", text[4:16])
    frames = numbers.pop(0) if flags & 1 else 0
    return frames, numbers.pop(0) if flags & 2 else 0


def _next_frame(content: Content, at: int, end: int, *, kind: tuple[int, int, int, bool] | None) -> int:
    """The next place where two frames of one kind follow each other, or where a tag begins."""
    tag = content.find(b"ID3", at, end)
    while (at := content.find(b"\xff", at, end)) >= 0:
        if 0 <= tag < at:
            return tag
        frame = _mpeg(content, at)
        if frame and kind in (None, frame.kind) and _repeats(content, at, frame, end):
            return at
        at += 1
    return tag if tag >= 0 else end


def _repeats(content: Content, at: int, frame: _Frame, end: int) -> bool:
    following = _mpeg(content, at + frame.size)
    return at + frame.size == end or (following is not None and following.kind == frame.kind)


def after_id3(content: Content, at: int) -> int:
    """The place behind an ID3 tag of version 2 that begins here, else `at`."""
    head = content[at : at + 10]
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:]) > 127 or head[3] > 9:
        return at
    return at + 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
