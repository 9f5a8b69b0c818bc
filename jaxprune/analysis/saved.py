"""An `Analysis` on disk: analysis.json and where it came from. `jaxprune analyze` writes it; it is read back here.

out/analysis.json      everything: the statistics, the command, the extraction's manifest
out/NAME.csv           each table of `jaxprune.analysis.tables`
out/NAME.png, .svg     each picture of `jaxprune.plots.analysis`; kept*.png, .svg: clips, where spectrograms are
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.analysis.analyze import Analysis
from jaxprune.analysis.extraction import Extraction
from jaxprune.analysis.manifest import fields_of
from jaxprune.config import ModelConfig
from jaxprune.files import write_text
from jaxprune.json_files import fit, read_json

NAME, KIND, VERSION = "analysis.json", "jaxprune analysis", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedAnalysis:
    """An analysis found in the folder `path`.

    It has the statistics, the model's geometry, the place of the `extraction`, its `manifest`, and the `command` that
    analysed it.
    """

    path: Path
    analysis: Analysis
    config: ModelConfig
    extraction: Path
    manifest: Mapping[str, Any]
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Head:
    """The fields of analysis.json beside the statistics."""

    extraction: str
    extracted: dict[str, Any]
    command: str = ""


def save_analysis(analysis: Analysis, *, extraction: Extraction, out: Path, facts: Mapping[str, Any]) -> Path:
    """Writes `out`/analysis.json with some `facts` in front, and returns its path.

    The path of the extraction is relative to `out`, so both may be moved together.
    """
    head = {"kind": KIND, "version": VERSION, **facts}
    where = {"extraction": os.path.relpath(extraction.path, out), "extracted": extraction.manifest}
    content = json.dumps(head | where | analysis.to_json(), allow_nan=False, indent=1, ensure_ascii=False)
    write_text(out / NAME, content + "\n")
    return out / NAME


def is_analysis(path: Path) -> bool:
    """True for a folder that holds an analysis."""
    return (path / NAME).exists()


def read_analysis(path: str | os.PathLike[str]) -> SavedAnalysis:
    """The analysis in a folder. Raises `ValueError` when there is none, or it is of another version or damaged."""
    path = Path(path)
    file = path / NAME
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise ValueError(f"{path} holds no {NAME}; jaxprune analyze writes one") from None
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != VERSION:
        raise ValueError(f"{file} is not of this program's version {VERSION}; run jaxprune analyze again")
    try:
        head = fit(found, _Head, make=_make)
        analysis = fit(found, Analysis, make=_make)
        config = fields_of(head.extracted).model
        _check_sizes(analysis, config)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); run jaxprune analyze again") from error
    return SavedAnalysis(
        path=path,
        analysis=analysis,
        config=config,
        extraction=Path(os.path.normpath(path / head.extraction)),
        manifest=head.extracted,
        command=head.command,
    )


def _make(kind: type, found: Any) -> np.ndarray:
    """A jaxtyping array from JSON's lists. msgspec then checks its type and number of axes."""
    if "int64" in kind.dtypes and "float64" not in kind.dtypes:
        return np.array(found, np.int64)
    return np.array(found, np.float64)  # None becomes NaN, for which it stands


def _check_sizes(found: Analysis, config: ModelConfig) -> None:
    """Raises `ValueError` unless the parts of an analysis have the sizes that belong together."""
    blocks, stages = config.depth, len(found.stages)
    bins = {values.clusters.centres.size for values in found.values.values()}
    sizes = [("patches", found.patches, config.patches), ("block_overlap", found.block_overlap.chance.shape[0], blocks)]
    for name, one in found.kendall.items():
        sizes += [(f"kendall.{name}", len(estimate.value), blocks) for estimate in (one.published, one.tau_b)]
    for name, values in found.values.items():
        sizes.append((f"values.{name}", len(values.clusters.bounds) + 1, len(values.clusters.centres)))
    if found.kept is not None:
        counts = found.kept.clusters
        sizes += [("kept.clusters", counts.kept.shape, (stages, len(counts.entering)))]
        sizes += [("kept.clusters.share", counts.share.value.shape, counts.kept.shape)]
        sizes += [("kept.places", tuple(found.kept.places), found.stages)]
        sizes += [(f"places.{block}", one.grid.shape, config.grid) for block, one in found.kept.places.items()]
        sizes += [("kept.attention", len(found.kept.attention.auc.value), blocks)]
    for what, there, expected in sizes:
        if there != expected:
            raise ValueError(f"{what} is of size {there}, not {expected}")
    if len(bins) != 1:
        raise ValueError(f"its signals have {sorted(bins)} clusters")
