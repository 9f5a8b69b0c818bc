"""Opens a checkpoint's file or directory and hands back its tensors by name, without ever running what is inside.

It reads PyTorch files (zip and legacy), safetensors files, and Hugging Face directories, sharded or not. `pickles.py`
looks at a pickle first; then torch's restricted unpickler reads it. Published checkpoints carry a few foreign classes
beside their weights, which become blanks. Sizes are bounded before any work. `read.py` says what the tensors mean and
whether they are the right ones.
"""

import codecs
import dataclasses
import json
import pickle
import re
import stat
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from jaxprune.card_file import CARD

from .errors import CheckpointError, first_sentence, shown
from .pickles import DAMAGED, check_torch_file, is_legacy
from .state_dicts import Blank, StateDict, find_state_dict

LARGEST_FILE = 16 * 2**30  # bytes of weights; the largest published, with its optimizer, has 4 GB
LARGEST_JSON = 16 * 2**20  # bytes

# Tried in this order in a directory, as transformers does.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """The weights in a checkpoint, unjudged.

    `name` is what a card calls the source. `folder` is the place of a Hugging Face `config.json`. `checked` is true if
    the file had checksums and they were right. Of files only zip files have any; the hub has its own.
    """

    path: Path
    name: str
    folder: Path
    weights: StateDict
    checked: bool


def open_container(path: Path | str, *, key: str | None = None) -> Container:
    """Reads a file, or the weights of a Hugging Face directory. `key` chooses among several state dicts in a file.

    Raises `CheckpointError` for anything else.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(path, "does not exist")
    if not path.is_dir():
        return _open_file(path, key=key)
    if (path / CARD).is_file():
        raise CheckpointError(path, "is a jaxprune checkpoint already; --to-torch makes a PyTorch one of it")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            path,
            "is a directory without config.json, so not a Hugging Face checkpoint; to read a file in it, pass the file",
        )
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(path, f"holds no weights; looked for {', '.join(WEIGHT_FILES)}")
    return dataclasses.replace(_open_file(weights, key=key), path=path, name=path.resolve().name)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError` for anything else."""
    check_regular(path, largest=LARGEST_JSON)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read as JSON: {first_sentence(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f"holds a JSON {type(content).__name__} where an object was expected")
    return content


def check_regular(path: Path, *, largest: int) -> None:
    """Raises `CheckpointError` for a pipe or device, which may never end, and above `largest` bytes."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(path, "is not a regular file")
    if found.st_size > largest:
        raise CheckpointError(path, f"has {found.st_size:,} bytes; at most {largest:,} are read")


def _open_file(path: Path, *, key: str | None = None) -> Container:
    content, checked = _read_shards(path) if path.name.endswith(".index.json") else _read_file(path)
    weights = find_state_dict(content, path, key=key)
    return Container(path=path, name=path.resolve().name, folder=path.parent, weights=weights, checked=checked)


def _read_file(path: Path) -> tuple[Any, bool]:
    """The content of a file of weights of any format, and whether checksums vouch for it."""
    check_regular(path, largest=LARGEST_FILE)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError(path, "is empty; the download or copy failed")
    if head.lstrip()[:1] == b"<" and re.search(rb"<(!doctype|html|head|\?xml)", head[:1024], re.IGNORECASE):
        raise CheckpointError(
            path, "is a web page, not a checkpoint; the link led to a page about the file: fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(path, "is a Git LFS pointer, not the checkpoint; fetch it with `git lfs pull`")
    if _is_text(head) and not is_legacy(head):  # pickle protocol 0 is text
        raise CheckpointError(path, "is a text file, not a checkpoint")
    if head[4:9] == b"\0\0\0\0{":  # a header's length below 4 GB in 8 bytes, then its JSON
        return _read_safetensors(path), False
    zipped = head.startswith(b"PK\x03\x04")
    return _read_pickle(path, zipped=zipped), zipped


def _read_shards(index: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors of the shards that a Hugging Face index names, and whether checksums vouch for all of them.

    The shards must lie beside the index.
    """
    weight_map = read_json(index).get("weight_map")
    if (
        not weight_map
        or not isinstance(weight_map, dict)
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(index, "has no weight_map from tensor names to shard files")
    tensors: dict[str, torch.Tensor] = {}
    all_checked = True
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name.endswith(".index.json") or not (index.parent / name).is_file():
            raise CheckpointError(index, f"names the shard {shown(name)!r}, which is not a file beside it")
        content, checked = _read_file(index.parent / name)
        all_checked &= checked
        if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
            raise CheckpointError(index, f"names the shard {shown(name)!r}, which does not hold tensors by name")
        if twice := sorted(tensors.keys() & content.keys()):
            raise CheckpointError(index, "names shards that hold the same tensors twice:", [*map(shown, twice)])
        tensors |= content
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(index, "promises tensors that its shards do not hold:", [*map(shown, absent)])
    return tensors, all_checked


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:  # its own; the system's; torch's through it
        raise CheckpointError(path, f"is not a complete safetensors file: {first_sentence(error)}") from error
    if not tensors:
        raise CheckpointError(path, "holds no tensors")
    return tensors


# Foreign names that training programs leave beside the weights: their arguments, paths, and numpy values such as the
# best score. None of them is imported or called. Each yields a `Blank`.
_ALLOWED = (
    "argparse.Namespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath")
    ),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)

# torch's errors for a pickle whose values do not fit its functions, which take anything that a file gives them.
_MISFITS = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    AssertionError,
    struct.error,
)


def _read_pickle(path: Path, *, zipped: bool) -> Any:
    """The content of a `torch.save` file. A zip is memory-mapped, so an optimizer's state beside the weights stays
    unread."""
    check_torch_file(path, zipped=zipped)
    allowed = [(Blank, name) for name in _ALLOWED]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storage classes of old files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _MISFITS as error:
        if refused := re.search(r"\bGLOBAL (\S+)", str(error)):
            raise CheckpointError(
                path,
                f"was not opened: its pickle asks for {shown(refused[1])}, which weights do not need and which could "
                "run code; if you trust the file, save its state dict alone with torch.save and read that",
            ) from error
        raise CheckpointError(path, f"{DAMAGED}: {first_sentence(error)}") from error


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut in two
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t\f" for char in text)
