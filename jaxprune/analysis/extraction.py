"""Reads an extraction that `jaxprune.analysis.extract` wrote: arrays over all clips, and checks that two compare.

Files are read when an array is asked for, one array at a time. The docstring of `jaxprune.analysis.extract` has the
format.
"""

import dataclasses
import functools
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune.analysis.manifest import fields_of, read_manifest
from jaxprune.analysis.shard_arrays import DAMAGE, array_in, check_array, stages_in
from jaxprune.config import ModelConfig, Padding
from jaxprune.positions import patch_corners


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
    grouped: tuple[int, ...] = ()
    before: tuple[int, ...] = ()

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
        if block in self.before:
            return self.column(f"scored_{block:02d}")
        before = [stage for stage in self.stages if stage < self._block(block)]
        if before:
            return self.kept(before[-1])
        every = np.arange(self.config.patches, dtype=np.int16)
        return np.broadcast_to(every, (self.clips, len(every)))

    def kept(self, block: int) -> Int[np.ndarray, "clips k"]:
        """Original positions that are tokens of their own after a reducing block, in token order; -1 for another token.

        Raises `ValueError` for a model without pruning and for a block that does not prune.
        """
        self.check_pruned()
        if block not in self.stages:
            raise ValueError(f"block {block} of {self.path} does not prune; blocks {list(self.stages)} do")
        return self.column(f"kept_{block:02d}")

    def kept_mask(self, block: int) -> Bool[np.ndarray, "clips n"]:
        """True for the original patches that a reducing block left as tokens of their own. Raises as `kept`."""
        return members(self.kept(block), patches=self.config.patches)

    def groups(self, block: int) -> Int[np.ndarray, "clips n"]:
        """The token after a reducing block that holds each original patch, -1 for none. Raises as `kept`."""
        if block in self.grouped:
            return self.column(f"groups_{block:02d}")
        kept = self.kept(block).astype(np.intp)
        groups = np.full((len(kept), self.config.patches + 1), -1)
        np.put_along_axis(groups, kept, np.broadcast_to(np.arange(kept.shape[1]), kept.shape), axis=1)
        return groups[:, :-1]

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
                clips, values = (array_in(file, one) for one in ("index", name))
            check_array(name, values, clips=len(clips), config=self.config)
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
    stages, grouped, before = stages_in(path / manifest["shards"][0], config)
    return Extraction(path=path, manifest=manifest, config=config, stages=stages, grouped=grouped, before=before)


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
