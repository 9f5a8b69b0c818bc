"""Reading what `jaxprune.analysis.extract` wrote: arrays over all clips, and whether two extractions may be compared.

Files are read when an array is asked for, one array at a time. The format is in `jaxprune.analysis.extract`'s
docstring.
"""

import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune.config import ModelConfig
from jaxprune.positions import patch_corners

KIND, VERSION = "jaxprune extraction", 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """A complete extraction. `config` has the model's geometry, `stages` the blocks that pruned, rising (none: an
    unpruned model), `manifest` everything else that was written down."""

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
        return [len(_read(self.path / shard, "index")) for shard in self.manifest["shards"]]

    @property
    def clips(self) -> int:
        return len(self.index)

    @property
    def score_name(self) -> str:
        """The class of the score in `jaxprune.reduction.policy`, e.g. ClsAttention."""
        return self.manifest["policy"]["score"]["kind"]

    @property
    def name(self) -> str:
        """In tables and messages: family, data set, and what the stages kept."""
        rates = [stage.get("rate", stage["kind"]) for stage in self.manifest["policy"]["stages"].values()]
        kept = "/".join(dict.fromkeys(f"{rate:g}" if isinstance(rate, float) else str(rate) for rate in rates)) or "1"
        return f"{self.config.family} {self.manifest['data']['name']} {self.manifest['data']['split']} keep {kept}"

    @property
    def has_mel(self) -> bool:
        """Whether spectrograms were extracted."""
        return bool(self.manifest["compute"].get("mel"))

    def column(self, name: str) -> np.ndarray:
        """An array of all clips, by its name in the shards. Raises `ValueError` if it was not extracted."""
        return np.concatenate([_read(self.path / shard, name) for shard in self.manifest["shards"]])

    def rows(self, name: str, clips: Sequence[int]) -> np.ndarray:
        """`column(name)` at some rows, given rising, opening only the shards they lie in. Raises as `column`."""
        parts, first = [], 0
        for shard, count in zip(self.manifest["shards"], self._counts, strict=True):
            here = [clip - first for clip in clips if first <= clip < first + count]
            first += count
            if here:
                parts.append(_read(self.path / shard, name)[here])
        return np.concatenate(parts)

    def score(self, block: int) -> Float[np.ndarray, "clips n"]:
        """Scores of the patches entering a block, for the patches in `scored`."""
        return self.column(f"score_{self._block(block):02d}")

    def scored(self, block: int) -> Int[np.ndarray, "clips n"]:
        """Original positions of the patches entering a block; -1 where there is none."""
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
        """Which of the original patches a pruning block kept. Raises as `kept`."""
        return members(self.kept(block), patches=self.config.patches)

    def check_pruned(self) -> None:
        """Raises `ValueError` if there are no kept patches to speak of."""
        if not self.stages:
            raise ValueError(
                f"{self.path} was extracted without pruning, so it has no kept patches; extract with keep rate below 1"
            )

    def _block(self, block: int) -> int:
        if not 0 <= block < self.config.depth:
            raise ValueError(f"there is no block {block}; {self.path} has blocks 0 to {self.config.depth - 1}")
        return block


def read_extraction(path: str | os.PathLike[str]) -> Extraction:
    """The extraction in a folder. Raises `ValueError` when there is none, or it is unfinished or of another version."""
    path = Path(path)
    manifest = read_manifest(path)
    if not manifest["complete"]:
        shards = len(list(path.glob("shard-*.npz")))
        raise ValueError(
            f"{path} is unfinished ({shards} shards so far); run the command that began it again and it goes on"
        )
    config = ModelConfig(**manifest["model"])
    missing = [name for name in manifest["shards"] if not (path / name).exists()]
    if missing:
        raise ValueError(f"{path} has lost {missing[0]}; extract again to another folder")
    stages = tuple(int(name[5:]) for name in _names(path / manifest["shards"][0]) if name.startswith("kept_"))
    return Extraction(path=path, manifest=manifest, config=config, stages=tuple(sorted(stages)))


def is_extraction(path: Path) -> bool:
    """Whether a folder holds an extraction, finished or not."""
    return (path / MANIFEST).exists()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises `ValueError` when there is none or it is not ours."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not an extraction: it has no {MANIFEST}; scripts/extract.py makes one") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(f"{path / MANIFEST} is not the manifest of an extraction")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path} is of version {manifest.get('version')}; this program reads version {VERSION}")
    return manifest


def check_same_clips(first: Extraction, second: Extraction) -> None:
    """Raises `ValueError` unless both are of the same clips, cut to the same length and patches.

    The order of the patches may differ, as AST's and AudioMAE's does: compare on the grid (`on_grid`).
    """
    a, b = first.config, second.config
    for what, mine, theirs in (
        ("frames (T)", a.frames, b.frames),
        ("data set", first.manifest["data"]["name"], second.manifest["data"]["name"]),
        ("split", first.manifest["data"]["split"], second.manifest["data"]["split"]),
        ("clips", first.manifest["data"]["sha256"][:12], second.manifest["data"]["sha256"][:12]),
        ("patch grid", a.grid, b.grid),
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
    """Which patches are among each row's ids; -1 names none."""
    found = np.zeros((len(ids), patches + 1), bool)
    np.put_along_axis(found, ids.astype(np.intp), True, axis=1)  # -1 is the last column
    return found[:, :patches]


def on_grid(values: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Values by patch `(..., n)` as `(..., time, freq)`, low frequencies first, whatever the family's order."""
    steps = patch_corners(config) // np.array([config.time_stride, config.freq_stride])
    grid = np.empty((*values.shape[:-1], *config.grid), values.dtype)
    grid[..., steps[:, 0], steps[:, 1]] = values
    return grid


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as shard:
            return shard[name]
    except KeyError:
        hint = "; extract again with --mel" if name == "mel" else ""
        raise ValueError(f"{path} holds no {name}: it was not extracted{hint}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); extract again") from error


def _names(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as shard:
            return list(shard.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); extract again") from error
