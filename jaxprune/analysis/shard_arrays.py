"""Arrays in the shards of an extraction, read as data from elsewhere: sizes, types and numbers are checked first.

`jaxprune.analysis.extract` says what the arrays are.
"""

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from jaxprune.config import ModelConfig

PATCH_IDS = ("kept_", "groups_", "scored_")  # arrays by block that number patches or tokens, -1 for none
# Errors of a damaged zip file or of a strange array in it.
DAMAGE = (OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, zipfile.BadZipFile)


def array_in(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of a shard. Its checksum, and its size against its shape, are checked before it is made."""
    entry = file.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    content = file.read(entry)  # to the end, so that zipfile compares the checksum
    stream = io.BytesIO(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError(f"{name} is stored in version {version}")
    shape, by_column, dtype = read_header[version](stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} has other bytes than its shape {shape} asks for")
    values = np.frombuffer(content, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if by_column else "C")


def check_array(name: str, values: np.ndarray, *, clips: int, config: ModelConfig) -> None:
    """Raises `ValueError` unless an array has the documented shape and type, and names patches that exist."""
    y, n = config.classes, config.patches
    shapes = {"target": (y,), "logits": (y,), "mean": (n,), "std": (n,), "mel": (config.frames, config.mels)}
    ids = name.startswith(PATCH_IDS)
    by_block = ids or name.startswith("score_")
    expected = (n,) if name.startswith("groups_") else values.shape[1:2] if by_block else shapes.get(name, ())
    if values.shape != (clips, *expected) or (by_block and (values.ndim != 2 or values.shape[1] > n)):
        raise ValueError(f"{name} has shape {values.shape}, not {(clips, *expected)}")
    whole = ids or name in ("index", "frames", "target")
    kinds = "U" if name == "path" else "iu" if whole else "f"
    if values.dtype.kind not in kinds:
        raise ValueError(f"{name} is of type {values.dtype}")
    lowest = -1 if ids else 0
    if whole and values.size and (values.min() < lowest or (ids and values.max() >= n)):
        raise ValueError(f"{name} holds {values.min()} to {values.max()}")


def stages_in(path: Path, config: ModelConfig) -> list[tuple[int, ...]]:
    """The blocks whose kept patches a shard holds, rising; those with groups, and with positions of their scores."""
    try:
        with zipfile.ZipFile(path) as shard:
            names = [name.removesuffix(".npy") for name in shard.namelist()]
        found = [
            tuple(sorted(int(name.removeprefix(kind)) for name in names if name.startswith(kind))) for kind in PATCH_IDS
        ]
        stages = found[0]
        if any(not 0 <= block < config.depth for block in stages):
            raise ValueError(f"it prunes at blocks {list(stages)} of {config.depth}")
        if not all(set(blocks) <= set(stages) for blocks in found):
            raise ValueError(f"it has groups at other blocks than those that prune, {list(stages)}")
        return found
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read ({error}); extract again") from error
