"""Looks at a `torch.save` file before torch reads it: sizes, checksums, the pickle's instructions, its storages.

torch's restricted unpickler runs no foreign code, but it believes what a file says of itself. A record shorter than its
tensor gives the neighbour's bytes. A key that is a tuple doubled 40 times is hashed for ever. So the pickle is walked
here first, on a stack of descriptions that cost nothing. The storages that it names are compared with the file.
`containers.py` reads the tensors.
"""

import dataclasses
import errno
import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, first_sentence, shown

LARGEST_PICKLE = 16 * 2**20  # bytes; AudioMAE-large with its optimizer has 108,489
MOST_INSTRUCTIONS = 500_000  # AudioMAE-large with its optimizer has 37,409
MOST_PARTS = 10_000  # of a tuple with all that is inside: hashing it costs as much
DEEPEST = 100  # containers in containers
LARGEST_DIRECTORY = 64 * 2**20  # bytes of a zip's list of records

# The number in the first pickle of a file from before torch 1.6, as protocols 2 to 5 and 0 to 1 write it.
LEGACY_MAGIC = ((0x1950A86A20F9469CFC6C).to_bytes(10, "little"), b"119547037146038801333356")
DAMAGED = "is not a complete PyTorch checkpoint (damaged, cut short or of another kind)"


class _Unsound(ValueError):
    """A pickle that torch must not read. The text continues a sentence that begins with the path."""


@dataclasses.dataclass
class _Described:
    """An object that a pickle would build: the number of its parts with all inside, its depth, a tuple's items."""

    parts: int = 1
    depth: int = 1
    items: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle asks for."""

    name: str


def check_torch_file(path: Path, *, zipped: bool) -> None:
    """Raises `CheckpointError` for a file whose structure, checksums or pickle are not those of a sound one."""
    try:
        (_check_zip if zipped else _check_legacy)(path)
    except _Unsound as error:
        raise CheckpointError(path, str(error)) from error


def is_legacy(head: bytes) -> bool:
    """Tells whether a file begins as `torch.save` began it before torch 1.6."""
    return any(magic in head[:40] for magic in LEGACY_MAGIC)


def _check_zip(path: Path) -> None:
    """A file of torch 1.6 or later: a zip of one pickle and one record a storage."""
    with path.open("rb") as file:
        _check_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                records = _records(archive, size=path.stat().st_size)
                storages = _described(io.BytesIO(archive.read(records["data.pkl"])))
                _check_storages(storages, {name: info.file_size for name, info in records.items()})
                damaged = archive.testzip()
        except _Unsound:
            raise
        except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError) as error:
            raise _Unsound(f"{DAMAGED}: {first_sentence(error)}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the file's beginning
                raise
            raise _Unsound(f"{DAMAGED}: its list of records points outside the file") from error
    if damaged:
        raise _Unsound(
            f"is not a complete PyTorch checkpoint: the checksum of its record {shown(damaged)} does not fit, so the "
            "file is damaged (or was saved with checksums turned off; then save it again with torch.save)"
        )


def _check_directory(file: io.BufferedIOBase) -> None:
    """Raises `_Unsound` for a zip whose list of records would fill the memory. Reads only its end."""
    tail = file.seek(0, 2)
    file.seek(max(0, tail - 2**16 - 100))
    end = file.read()
    at, at64 = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    sizes = [struct.unpack_from("<I", end, at + 12)[0]] if 0 <= at <= len(end) - 16 else []
    if sizes == [0xFFFFFFFF] and 0 <= at64 <= len(end) - 48:
        sizes = [struct.unpack_from("<Q", end, at64 + 40)[0]]
    if any(size > LARGEST_DIRECTORY for size in sizes):
        raise _Unsound(f"lists records over {sizes[0]:,} bytes; a checkpoint's list has at most {LARGEST_DIRECTORY:,}")
    file.seek(0)


def _records(archive: zipfile.ZipFile, *, size: int) -> dict[str, zipfile.ZipInfo]:
    """The records by name, without the folder that torch puts around them."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    records = {name.partition("/")[2]: info for name, info in zip(names, infos, strict=True)}
    if "constants.pkl" in records:
        raise _Unsound("is a TorchScript archive, not a state dict; save model.state_dict() with torch.save")
    if "data.pkl" not in records:
        raise _Unsound("is a zip file, but not one of torch.save: it has no data.pkl")
    if len(records) < len(infos) or len({name.partition("/")[0] for name in names}) > 1:
        raise _Unsound("holds records twice, or in several folders; torch.save writes each once, in one folder")
    if any(info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise _Unsound("was packed again with compression or a password; save it again with torch.save")
    if sum(info.file_size for info in infos) > size:
        raise _Unsound("is not a complete PyTorch checkpoint: its records claim more bytes than the file has")
    if records["data.pkl"].file_size > LARGEST_PICKLE:
        raise _Unsound(f"has a pickle of {records['data.pkl'].file_size:,} bytes; at most {LARGEST_PICKLE:,} are read")
    return records


def _check_storages(storages: dict[str, int], sizes: dict[str, int]) -> None:
    for key, expected in storages.items():
        found = sizes.get(f"data/{key}")
        if found is None:
            raise _Unsound(f"is not a complete PyTorch checkpoint: its record data/{shown(key)} is missing")
        if found < expected:
            raise _Unsound(
                f"is not a complete PyTorch checkpoint: its record data/{shown(key)} has {found:,} bytes where its "
                f"tensors need {expected:,}"
            )


def _check_legacy(path: Path) -> None:
    """A file from before torch 1.6: five pickles in a row, then the storages' numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(LARGEST_PICKLE))
    if not is_legacy(head.getvalue()):
        raise _Unsound(f"{DAMAGED}: it does not begin as torch.save begins a file")
    storages: dict[str, int] = {}
    for _ in range(5):  # magic number, protocol, system, content, the storages' keys
        storages |= _described(head)
    if sum(storages.values()) > size:
        raise _Unsound("is not a complete PyTorch checkpoint: its tensors need more bytes than the file has")


def _instructions(file: io.BufferedIOBase) -> Iterator[tuple[str, Any]]:
    """The instructions of one pickle and their arguments. Afterwards the file stands behind it."""
    protocol = "0 or 1"  # these two do not say
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(file)):
            if code.name == "PROTO":
                protocol = argument
            if code.name not in _STEPS:
                raise _Unsound(
                    f"was saved with the unsupported pickle protocol {protocol} (its instruction {code.name} is not "
                    "read); save it again with torch.save's own protocol 2, that is, without pickle_protocol"
                )
            if count >= MOST_INSTRUCTIONS:
                raise _Unsound(f"has a pickle of more than {MOST_INSTRUCTIONS:,} instructions; it is not read")
            yield code.name, argument
    except _Unsound:
        raise
    except ValueError as error:  # pickletools' word for what is cut short or no pickle
        raise _Unsound(f"{DAMAGED}: {first_sentence(error)}") from error


def _described(file: io.BufferedIOBase) -> dict[str, int]:
    """The bytes of every storage that one pickle names. Walks through all that it would build."""
    walk = _Walk()
    for name, argument in _instructions(file):
        try:
            walk.step(name, argument)
        except (IndexError, KeyError) as error:  # an empty stack, a memo never filled
            raise _Unsound(f"{DAMAGED}: its pickle takes what it never put there") from error
    return walk.storages


class _Walk:
    """The stack of an unpickler, holding descriptions in place of objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, int] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        _STEPS[name](self, argument)

    def push(self, value: Any) -> None:
        if isinstance(value, _Described) and (value.parts > MOST_PARTS or value.depth > DEEPEST):
            raise _Unsound("was not opened: its pickle nests values deeper or wider than any state dict's keys need")
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """The items put on the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def tuple_of(self, items: list[Any]) -> None:
        self.push(_Described(1 + sum(map(_parts, items)), 1 + max(map(_depth, items), default=0), tuple(items)))

    def take(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def fill(self, items: list[Any]) -> None:
        """Adds items to the container on top. A list or dictionary cannot be a key, so only its depth counts."""
        container = self.stack.pop()
        depth = max([_depth(container), *(1 + _depth(item) for item in items)])
        if isinstance(container, _Described):
            container.depth = depth
        self.push(container)

    def persistent(self) -> None:
        """Notes the storage that an identifier names: ("storage", class, key, place, numbers)."""
        identifier = self.stack.pop()
        match identifier.items if isinstance(identifier, _Described) else ():
            case ("storage", _Global(name), str(key), _, int(numbers), *_) if numbers >= 0:
                self.storages[key] = numbers * _item_size(name)
            case _:
                raise _Unsound("was not opened: its pickle refers to something that is no tensor's storage")
        self.push(_Described())


def _parts(value: Any) -> int:
    return value.parts if isinstance(value, _Described) else 1


def _depth(value: Any) -> int:
    return value.depth if isinstance(value, _Described) else 0


def _item_size(storage_class: str) -> int:
    """Bytes of one number in a storage of this class. 1 if torch has no such class: it refuses it itself."""
    kind = storage_class.rpartition(".")[2].removesuffix("Storage")
    names = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
    names |= {"Int": "int32", "Short": "int16", "ComplexFloat": "complex64", "ComplexDouble": "complex128"}
    return getattr(torch, names[kind]).itemsize if kind in names else 1


def _replace(count: int) -> Callable[[_Walk, Any], None]:
    """An instruction that makes one unknown object of the topmost `count`."""

    def step(walk: _Walk, _argument: Any) -> None:
        items = walk.take(count)
        walk.push(_Described(1 + sum(map(_parts, items)), 1 + max(map(_depth, items))))

    return step


# All instructions that torch's weights-only unpickler knows. Protocols other than 2 use others.
_STEPS: dict[str, Callable[[_Walk, Any], None]] = {
    **dict.fromkeys(("PROTO", "STOP"), lambda walk, _: None),
    "MARK": lambda walk, _: walk.mark(),
    "GLOBAL": lambda walk, name: walk.push(_Global(name.replace(" ", "."))),
    **dict.fromkeys(("NEWOBJ", "REDUCE"), _replace(2)),
    "BUILD": lambda walk, _: walk.fill([walk.stack.pop()]),
    "APPEND": lambda walk, _: walk.fill([walk.stack.pop()]),
    "APPENDS": lambda walk, _: walk.fill(walk.marked()),
    "SETITEM": lambda walk, _: walk.fill(walk.take(2)),
    "SETITEMS": lambda walk, _: walk.fill(walk.marked()),
    "TUPLE": lambda walk, _: walk.tuple_of(walk.marked()),
    "TUPLE1": lambda walk, _: walk.tuple_of(walk.take(1)),
    "TUPLE2": lambda walk, _: walk.tuple_of(walk.take(2)),
    "TUPLE3": lambda walk, _: walk.tuple_of(walk.take(3)),
    "BINPERSID": lambda walk, _: walk.persistent(),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda walk, index: walk.push(walk.memo[index])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda walk, index: walk.memo.__setitem__(index, walk.stack[-1])),
    **dict.fromkeys(("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda walk, _: walk.push(_Described())),
    **dict.fromkeys(("NONE", "NEWFALSE", "NEWTRUE"), lambda walk, _: walk.push(None)),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"),
        lambda walk, value: walk.push(value),
    ),
}
