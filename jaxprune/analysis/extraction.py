"""Reads an extraction that `jaxprune.analysis.extract` wrote: arrays over all clips, and checks that two compare.

Files are read when an array is asked for, one array at a time. The docstring of `jaxprune.analysis.extract` has the
format.
"""

import dataclasses
import functools
import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune.analysis.manifest import fields_of, read_manifest
from jaxprune.config import ModelConfig, Padding
from jaxprune.positions import patch_corners

# Errors of a damaged zip file or of a strange array in it.
DAMAGE = (OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """A complete extraction.

    `config` is the model's geometry. `stages` are the blocks that pruned, rising; an unpruned model has none.
    `manifest` is everything else that was written down.
    """

    path: Path
    manifest: Mapping[str, Any]
    config: ModelConfig
    stages: tuple[int, ...]

    @functools.cached_property
    def index(self) -> Int[np.ndarray, "clips"]:
        """Each clip's place in its split."""
        return self.column("index")

    @functools.cached_property
    def _counts(self) -> list[int]:
        """Clips in each shard."""
        return [len(self._read(shard, "index")) for shard in self.manifest["shards"]]

    @property
    def clips(self) -> int:
        """Number of clips."""
        return len(self.index)

    @property
    def score_name(self) -> str:
        """The class of the score in `jaxprune.reduction.policy`, e.g. ClsAttention."""
        return self.manifest["policy"]["score"]["kind"]

    @property
    def name(self) -> str:
        """Its name in tables and messages: family, data set, and what the stages kept."""
        rates = [stage.get("rate", stage["kind"]) for stage in self.manifest["policy"]["stages"].values()]
        kept = "/".join(dict.fromkeys(f"{rate:g}" if isinstance(rate, float) else str(rate) for rate in rates)) or "1"
        return f"{self.config.family} {self.manifest['data']['name']} {self.manifest['data']['split']} keep {kept}"

    @property
    def padding(self) -> Padding:
        """The log-mel that filled short clips. An older manifest does not tell; there it was the minimum."""
        return self.manifest["checkpoint"]["card"].get("padding", "minimum")

    @property
    def has_mel(self) -> bool:
        """True where spectrograms were extracted."""
        return bool(self.manifest["compute"].get("mel"))

    def column(self, name: str) -> np.ndarray:
        """The array of this name over all clips. Raises `ValueError` if it was not extracted."""
        return np.concatenate([self._read(shard, name) for shard in self.manifest["shards"]])

    def rows(self, name: str, clips: Sequence[int]) -> np.ndarray:
        """`column(name)` at some rows, given rising. Opens only the shards they lie in. Raises as `column`."""
        parts, first = [], 0
        for shard, count in zip(self.manifest["shards"], self._counts, strict=True):
            here = [clip - first for clip in clips if first <= clip < first + count]
            first += count
            if here:
                parts.append(self._read(shard, name)[here])
        return np.concatenate(parts)

    def score(self, block: int) -> Float[np.ndarray, "clips n"]:
        """Scores of the patches that enter a block, in the order of `scored`."""
        return self.column(f"score_{self._block(block):02d}")

    def scored(self, block: int) -> Int[np.ndarray, "clips n"]:
        """Original positions of the patches that enter a block; -1 where there is none."""
        before = [stage for stage in self.stages if stage < self._block(block)]
        if before:
            return self.kept(before[-1])
        every = np.arange(self.config.patches, dtype=np.int16)
        return np.broadcast_to(every, (self.clips, len(every)))

    def kept(self, block: int) -> Int[np.ndarray, "clips k"]:
        """Original positions kept at a pruning block, in token order; -1 where there is none.

        Raises `ValueError` for a model without pruning and for a block that does not prune.
        """
        self.check_pruned()
        if block not in self.stages:
            raise ValueError(f"block {block} of {self.path} does not prune; blocks {list(self.stages)} do")
        return self.column(f"kept_{block:02d}")

    def kept_mask(self, block: int) -> Bool[np.ndarray, "clips n"]:
        """True for the original patches that a pruning block kept. Raises as `kept`."""
        return members(self.kept(block), patches=self.config.patches)

    def check_pruned(self) -> None:
        """Raises `ValueError` if there are no kept patches to speak of."""
        if not self.stages:
            raise ValueError(
                f"{self.path} was extracted without pruning, so it has no kept patches; extract with keep rate below 1"
            )

    def _read(self, shard: str, name: str) -> np.ndarray:
        """An array of one shard, checked against the model. Raises `ValueError` as `column`, and for damage."""
        path = self.path / shard
        try:
            with zipfile.ZipFile(path) as file:
                if f"{name}.npy" not in file.namelist():
                    hint = "; extract again with --mel" if name == "mel" else ""
                    raise _NotExtracted(f"{path} holds no {name}: it was not extracted{hint}")
                clips, values = (_array(file, one) for one in ("index", name))
            _check_array(name, values, clips=len(clips), config=self.config)
            return values
        except _NotExtracted:
            raise
        except DAMAGE as error:
            raise ValueError(f"{path} cannot be read ({error}); extract again") from error

    def _block(self, block: int) -> int:
        if not 0 <= block < self.config.depth:
            raise ValueError(f"there is no block {block}; {self.path} has blocks 0 to {self.config.depth - 1}")
        return block


def read_extraction(path: str | os.PathLike[str]) -> Extraction:
    """The extraction in a folder. Raises `ValueError` if there is none, or it is unfinished or of another version."""
    path = Path(path)
    manifest = read_manifest(path)
    if not manifest["complete"]:
        shards = len(list(path.glob("shard-*.npz")))
        raise ValueError(
            f"{path} is unfinished ({shards} shards so far); run the command that began it again and it goes on"
        )
    config = fields_of(manifest).model
    missing = [name for name in manifest["shards"] if not (path / name).is_file()]
    if missing:
        raise ValueError(f"{path} has lost {missing[0]}; extract again to another folder")
    if not manifest["shards"]:
        raise ValueError(f"{path / MANIFEST} names no shards; extract again to another folder")
    stages = _stages(path / manifest["shards"][0], config)
    return Extraction(path=path, manifest=manifest, config=config, stages=stages)


def check_same_clips(first: Extraction, second: Extraction) -> None:
    """Raises `ValueError` unless both are of the same clips, cut or padded alike, in the same patches.

    The order of the patches may differ, as AST's and AudioMAE's do. So compare on the grid (`on_grid`).
    """
    a, b = first.config, second.config
    for what, mine, theirs in (
        ("frames (T)", a.frames, b.frames),
        ("data set", first.manifest["data"]["name"], second.manifest["data"]["name"]),
        ("split", first.manifest["data"]["split"], second.manifest["data"]["split"]),
        ("clips", first.manifest["data"]["sha256"][:12], second.manifest["data"]["sha256"][:12]),
        ("patch grid", a.grid, b.grid),
        ("paddings", first.padding, second.padding),
    ):
        if mine != theirs:
            raise ValueError(
                f"{first.path} and {second.path} cannot be compared: their {what} differ, {mine} and {theirs}"
            )
    if not np.array_equal(first.index, second.index):
        raise ValueError(
            f"{first.path} and {second.path} cannot be compared: other clips were unusable, so that {first.clips} and "
            f"{second.clips} are left"
        )


def check_same_model(first: Extraction, second: Extraction) -> None:
    """Raises `ValueError` unless both are of the same weights and clips."""
    check_same_clips(first, second)
    mine, theirs = (found.manifest["checkpoint"]["weights_sha256"][:12] for found in (first, second))
    if mine != theirs:
        raise ValueError(f"{second.path} is of another model than {first.path}: weights {theirs}, not {mine}")


def members(ids: Int[np.ndarray, "clips k"], *, patches: int) -> Bool[np.ndarray, "clips {patches}"]:
    """True for the patches that each row's ids name; -1 names none."""
    found = np.zeros((len(ids), patches + 1), bool)
    np.put_along_axis(found, ids.astype(np.intp), True, axis=1)  # -1 is the last column
    return found[:, :patches]


def on_grid(values: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Values by patch `(..., n)` as `(..., time, freq)`, low frequencies first, whatever the family's order."""
    steps = patch_corners(config) // np.array([config.time_stride, config.freq_stride])
    grid = np.empty((*values.shape[:-1], *config.grid), values.dtype)
    grid[..., steps[:, 0], steps[:, 1]] = values
    return grid


class _NotExtracted(ValueError):
    """An array that was never asked for."""


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
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


def _check_array(name: str, values: np.ndarray, *, clips: int, config: ModelConfig) -> None:
    """Raises `ValueError` unless an array has the documented shape and type, and names patches that exist."""
    y, n = config.classes, config.patches
    shapes = {"target": (y,), "logits": (y,), "mean": (n,), "std": (n,), "mel": (config.frames, config.mels)}
    by_block = name.startswith(("score_", "kept_"))
    expected = values.shape[1:2] if by_block else shapes.get(name, ())
    if values.shape != (clips, *expected) or (by_block and (values.ndim != 2 or values.shape[1] > n)):
        raise ValueError(f"{name} has shape {values.shape}, not {(clips, *expected)}")
    whole = name in ("index", "frames", "target") or name.startswith("kept_")
    kinds = "U" if name == "path" else "iu" if whole else "f"
    if values.dtype.kind not in kinds:
        raise ValueError(f"{name} is of type {values.dtype}")
    lowest = -1 if name.startswith("kept_") else 0
    if whole and values.size and (values.min() < lowest or (name.startswith("kept_") and values.max() >= n)):
        raise ValueError(f"{name} holds {values.min()} to {values.max()}")


def _stages(path: Path, config: ModelConfig) -> tuple[int, ...]:
    """The blocks whose kept patches a shard holds, rising."""
    try:
        with zipfile.ZipFile(path) as shard:
            names = [name.removesuffix(".npy") for name in shard.namelist()]
        stages = tuple(sorted(int(name[5:]) for name in names if name.startswith("kept_")))
        if any(not 0 <= block < config.depth for block in stages):
            raise ValueError(f"it prunes at blocks {list(stages)} of {config.depth}")
        return stages
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read ({error}); extract again") from error
