"""The pages of an Ogg file, each held against its own checksum.

A decoder leaves out pages whose checksum fails, without a word: all sound behind them would come too early.
"""

import dataclasses
import mmap
import zlib
from collections.abc import Iterator

HEADER = 27  # bytes before a page's table of segments
_CHECKSUM = slice(22, 26)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """One page, from `start` up to `end`, which may lie beyond the file's end: then the page is not `complete`.

    `first` and `last` are its stream's marks. `stream` and `number` name it. `intact` is false where the checksum of a
    complete page fails.
    """

    start: int
    end: int
    first: bool
    last: bool
    stream: bytes
    number: int
    complete: bool
    intact: bool


def pages(content: bytes | mmap.mmap) -> Iterator[Page]:
    """Every page that begins with Ogg's mark, in the file's order."""
    at = 0
    while (at := content.find(b"OggS", at)) >= 0 and at + HEADER <= len(content):
        flags, segments = content[at + 5], content[at + 26]
        lacing = content[at + HEADER : at + HEADER + segments]
        end = at + HEADER + segments + sum(lacing)
        complete = end <= len(content) and len(lacing) == segments
        yield Page(
            start=at,
            end=end,
            first=bool(flags & 2),
            last=bool(flags & 4),
            stream=bytes(content[at + 14 : at + 18]),
            number=int.from_bytes(content[at + 18 : at + 22], "little"),
            complete=complete,
            intact=not complete or _is_intact(content[at:end]),
        )
        at = end


def is_ended(found: list[Page]) -> bool:
    """True if the last of a sound's pages is there, whole, and marked as the last."""
    return bool(found) and found[-1].last and found[-1].complete


def damage(found: list[Page]) -> str:
    """The damage to a sound made of these pages, in words; nothing where every page is there and intact."""
    failed = sum(not page.intact for page in found)
    numbers: dict[bytes, int] = {}
    missing = 0
    for page in found:
        missing += page.number != numbers.get(page.stream, page.number - 1) + 1
        numbers[page.stream] = page.number
    if not failed and not missing:
        return ""
    return f"of its {len(found)} pages {failed} fail their checksum, and {missing} do not follow the one before"


def _is_intact(page: bytes) -> bool:
    """True if the page's CRC-32 is the one it carries.

    Ogg's runs over the bits of each byte from the highest to the lowest, starts at 0 and is not inverted at the end.
    zlib's goes the other way round in all three, so it is given reversed bytes.
    """
    cleared = page[: _CHECKSUM.start] + bytes(4) + page[_CHECKSUM.stop :]
    found = zlib.crc32(cleared.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return found.to_bytes(4, "big").translate(_REVERSED) == page[_CHECKSUM]
