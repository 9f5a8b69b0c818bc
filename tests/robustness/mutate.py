"""Damage to files, drawn from a seed: bytes of any file, fields of JSON, records of zip files."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

BIG = (2**31, 2**63, 10**400, -1, 0, 1e308)
STRANGE = (None, True, "", "x" * 5000, [], {}, [[[]]], "\ud800", "../../etc/passwd", "=1+1", "\x00")
EVERY_BYTE = "bit", "bits", "cut", "zeros", "moved", "doubled", "inserted", "swapped", "header"
Mutation = Callable[[bytes, random.Random], bytes]


def mutations(name: str) -> dict[str, Mutation]:
    """The kinds of damage that fit a file, by name."""
    found: dict[str, Mutation] = {kind: lambda data, rng, kind=kind: _bytes(data, rng, kind) for kind in EVERY_BYTE}
    if name.endswith(".json"):
        found |= {kind: lambda data, rng, kind=kind: _fields(data, rng, kind) for kind in FIELDS}
    if name.endswith((".pth", ".npz")):
        found["records"] = _records
    return found


def _bytes(data: bytes, rng: random.Random, kind: str) -> bytes:
    """One damage to bytes, in the first 256 of them for "header"."""
    changed = bytearray(data)
    place, length = rng.randrange(len(data)), rng.choice((1, 4, 64, 1024))
    other = rng.randrange(len(data))
    match kind:
        case "bit":
            changed[place] ^= 1 << rng.randrange(8)
        case "bits":
            for _ in range(16):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "header":
            changed[rng.randrange(min(256, len(data)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        case "cut":
            del changed[place:]
        case "zeros":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        case "moved":
            part = changed[place : place + length]
            del changed[place : place + length]
            changed[other:other] = part
        case "doubled":
            changed[place:place] = changed[place : place + length]
        case "inserted":
            changed[place:place] = rng.randbytes(length)
        case "swapped":
            first, second = sorted((place, other))
            size = min(length, second - first)
            one, two = changed[first : first + size], changed[second : second + size]
            changed[first : first + len(two)], changed[second : second + len(one)] = two, one
    return bytes(changed)


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every (object or list, key) below some JSON."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, part in parts for place in [(content, key), *_places(part)]]


def _fields(data: bytes, rng: random.Random, kind: str) -> bytes:
    """One damage to the structure of JSON."""
    content = json.loads(data)
    places = _places(content)
    if not places:
        return data + b"]"
    part, key = rng.choice(places)
    match kind:
        case "field gone":
            del part[key]
        case "field of another type":
            part[key] = rng.choice(STRANGE)
        case "extreme":
            part[key] = rng.choice((*BIG, float("nan"), float("inf")))
        case "deep":
            text = json.dumps(content | {"deep": "here"} if isinstance(content, dict) else [*content, "here"])
            depth = rng.choice((100, 5000, 200_000))
            return text.replace('"here"', "[" * depth + "]" * depth).encode()
        case "fields swapped":
            other, place = rng.choice(places)
            part[key], other[place] = other[place], part[key]
            # One may hold the other now: then there is no such JSON.
            try:
                return json.dumps(content).encode()
            except (ValueError, RecursionError):
                return data[:-1]
    return json.dumps(content).encode()


FIELDS = "field gone", "field of another type", "extreme", "deep", "fields swapped"


def _records(data: bytes, rng: random.Random) -> bytes:
    """A zip file whose checksums are right, but with a record gone, cut, or in the place of another."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        records = {name: old.read(name) for name in old.namelist()}
    one, other = rng.sample(sorted(records), 2)
    match rng.choice(("swap", "drop", "cut", "longer")):
        case "swap":
            records[one], records[other] = records[other], records[one]
        case "drop":
            del records[one]
        case "cut":
            records[one] = records[one][: len(records[one]) // 2]
        case "longer":
            records[one] += records[other]
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as new:
        for name, record in records.items():
            new.writestr(name, record)
    return written.getvalue()
