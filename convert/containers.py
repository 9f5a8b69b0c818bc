"""Opens a checkpoint's file or directory and hands back its tensors by name, without ever running what is inside.

Covers PyTorch files (zip and legacy), safetensors files, and Hugging Face directories, sharded or not. A pickle is read
by torch's restricted unpickler; the few foreign classes that published checkpoints carry beside their weights become
blanks. What the tensors mean, and whether they are the right ones, is for `read.py` to say.
"""

import codecs
import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

LISTED = 40  # problems spelled out in an error's message; `CheckpointError.problems` holds all of them

# Tried in this order in a directory, as transformers does.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# What training programs wrap a state dict in, besides writing it bare.
WRAPPERS = ("model", "state_dict")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one sentence naming the file, then every problem found in it, a line each."""

    def __init__(self, path: Path | str, sentence: str, problems: Sequence[str] = ()):
        self.problems = tuple(problems)
        more = len(self.problems) - LISTED
        lines = [f"{path} {sentence}", *self.problems[:LISTED], *([f"... and {more} more"] if more > 0 else [])]
        super().__init__("\n  ".join(lines))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """What was in a checkpoint, unjudged.

    `folder` is where a Hugging Face `config.json` would lie. `beside` names what lay next to the weights, with the
    reason why it is left out; `strange` describes entries among the weights that are not tensors.
    """

    path: Path
    folder: Path
    tensors: Mapping[str, torch.Tensor]
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    strange: tuple[str, ...] = ()


def open_container(path: Path | str) -> Container:
    """Reads a file, or the weights of a Hugging Face directory. Raises `CheckpointError` for anything else."""
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(path, "does not exist")
    if not path.is_dir():
        return _open_file(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            path,
            "is a directory without config.json, so not a Hugging Face checkpoint; to read a file in it, pass the file",
        )
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(path, f"holds no weights; looked for {', '.join(WEIGHT_FILES)}")
    return dataclasses.replace(_open_file(weights), path=path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `CheckpointError` if it is anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read as JSON: {_first_sentence(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f"holds a JSON {type(content).__name__} where an object was expected")
    return content


def _open_file(path: Path) -> Container:
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if not path.is_file():
        raise CheckpointError(path, "is neither a file nor a directory")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError(path, "is empty; the download or copy failed")
    if head.lstrip()[:1] == b"<" and re.search(rb"<(!doctype|html|head|\?xml)", head[:1024], re.IGNORECASE):
        raise CheckpointError(
            path, "is a web page, not a checkpoint; the link led to a page about the file, fetch the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(path, "is a Git LFS pointer, not the checkpoint; fetch it with `git lfs pull`")
    if _is_text(head):
        raise CheckpointError(path, "is a text file, not a checkpoint")
    if head[8:9] == b"{" and not head.startswith((b"PK", b"\x80")):
        return _open_safetensors(path)
    return _open_pickle(path, zipped=head.startswith(b"PK\x03\x04"))


def _open_shards(index: Path) -> Container:
    """All shards named by a Hugging Face index; they must lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if (
        not weight_map
        or not isinstance(weight_map, dict)
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(index, "has no weight_map from tensor names to shard files")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(weight_map.values())):
        shard = index.parent / name
        if Path(name).name != name or name.endswith(".index.json") or not shard.is_file():
            raise CheckpointError(index, f"names the shard {name!r}, which is not a file beside it")
        content = _open_file(shard).tensors
        if twice := sorted(tensors.keys() & content.keys()):
            raise CheckpointError(index, "names shards that hold the same tensors twice:", twice)
        tensors |= content
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(index, "promises tensors that its shards do not hold:", absent)
    return Container(path=index, folder=index.parent, tensors=tensors)


def _open_safetensors(path: Path) -> Container:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # safetensors has its own exception, and torch's and the system's come through it
        raise CheckpointError(path, f"is not a complete safetensors file: {_first_sentence(error)}") from error
    if not tensors:
        raise CheckpointError(path, "holds no tensors")
    return Container(path=path, folder=path.parent, tensors=tensors)


class _Blank:
    """Stands in for a foreign object beside the weights: takes any arguments and any state, keeps and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Blank":
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any):
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


# The foreign names that training programs leave beside the weights: their arguments, paths in them, and numpy values
# such as the best score so far. None of them is imported or called; each name yields a `_Blank`.
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


def _open_pickle(path: Path, *, zipped: bool) -> Container:
    """A `torch.save` file. Memory-mapped when zipped, so that an optimizer's state beside the weights is never read."""
    allowed = [(_Blank, name) for name in _ALLOWED]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storage classes of old files
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged or hostile pickle can raise anything at all
        if refused := re.search(r"\bGLOBAL (\S+)", str(error)):
            raise CheckpointError(
                path,
                f"was not opened: its pickle asks for {refused[1]}, which weights do not need and which could run "
                "code; if you trust the file, save its state dict alone with torch.save and read that",
            ) from error
        raise CheckpointError(
            path,
            f"is not a complete PyTorch checkpoint (damaged, cut short or of another kind): {_first_sentence(error)}",
        ) from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> Container:
    """Finds the state dict: the content itself, or under one of `WRAPPERS` with training state beside it."""
    if not isinstance(content, Mapping):
        kind = "saved arguments or numpy values" if isinstance(content, _Blank) else f"a {type(content).__name__}"
        raise CheckpointError(path, f"holds {kind}, not a state dict")
    wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    beside = {
        str(key): "stored beside the weights, not part of the model" for key in content if wrapper and key != wrapper
    }
    state = content[wrapper] if wrapper else content
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        entries = ", ".join(map(str, list(state)[:10]))
        raise CheckpointError(path, f"holds no tensors by name; its entries are: {entries or 'none'}")
    strange = tuple(
        f"{key}: is of type {_kind(value)}, not a tensor" for key, value in state.items() if key not in tensors
    )
    return Container(path=path, folder=path.parent, tensors=tensors, beside=beside, strange=strange)


def _kind(value: Any) -> str:
    return "a foreign class" if isinstance(value, _Blank) else type(value).__name__


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut in two
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t\f" for char in text)


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0][:200]
