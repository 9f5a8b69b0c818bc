"""The containers that PyAV decodes, and whether their headers promise more than a file holds.

FFmpeg reads some files that were cut short as if they were whole, and calls others damaged.
"""

import mmap
import struct

Content = bytes | mmap.mmap
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = b"\x30\x26\xb2\x75"
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object with the file's size


def is_cut(content: Content, start: int) -> bool:
    """True if a file of MPEG-4, ADTS, Matroska or ASF that begins at `start` lacks its end; False for what is none."""
    if content[start + 4 : start + 8] == b"ftyp":
        return _mpeg4(content, start)
    if content[start : start + 2] in (b"\xff\xf1", b"\xff\xf9"):
        return _adts(content, start)
    if content[start : start + 4] == _EBML:
        return _matroska(content, start)
    return content[start : start + 4] == _ASF and _asf(content)


def _mpeg4(content: Content, at: int) -> bool:
    """A file is cut within a box, or before the one that describes the sound."""
    described = False
    while at + 8 <= len(content):
        size, name = struct.unpack(">I4s", content[at : at + 8])
        described |= name == b"moov"
        if size == 1 and at + 16 <= len(content):
            (size,) = struct.unpack(">Q", content[at + 8 : at + 16])
        elif size == 0:  # up to the end
            break
        if size < 8 or at + size > len(content):
            return size >= 8
        at += size
    return not described


def _adts(content: Content, at: int) -> bool:
    """A file is cut within a frame."""
    while content[at : at + 1] == b"\xff" and (header := content[at : at + 6]):
        if len(header) < 6:
            return True
        if header[1] & 0xF6 != 0xF0:
            return False
        size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        if size < 7 or at + size > len(content):
            return size >= 7
        at += size
    return False


def _matroska(content: Content, at: int) -> bool:
    """A file is cut within its one segment, unless that was written without a size."""
    size, at = _number(content, at + 4)
    if size is None or content[at + size : at + size + 4] != _SEGMENT:
        return False
    size, at = _number(content, at + size + 4)
    return size is not None and at + size > len(content)


def _number(content: Content, at: int) -> tuple[int | None, int]:
    """A number of Matroska, None for unknown, and the place behind it. Its leading zeros tell how long it is."""
    head = content[at : at + 8]
    length = 9 - head[0].bit_length() if head else 9
    if length > len(head):
        return None, at
    value = int.from_bytes(head[:length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length


def _asf(content: Content) -> bool:
    """A file is smaller than it says, unless it was broadcast, when none could know."""
    at = content.find(_ASF_FILE, 0, 2**16)
    if at < 0 or at + 92 > len(content):
        return False
    (size,), (flags,) = struct.unpack("<Q", content[at + 40 : at + 48]), struct.unpack("<I", content[at + 88 : at + 92])
    return not flags & 1 and size > len(content)
