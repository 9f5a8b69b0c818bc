"""The runs that a report is about, read from the folders that it is given.

A run is a folder of one of three kinds. An analysis (`jaxprune analyze`) shows clips if its extraction has not moved
and holds spectrograms. An extraction (`jaxprune extract`) is there for its clips alone. A sweep or ablation
(`jaxprune sweep`, `jaxprune ablate`) lends its table and pictures as they are. `jaxprune.report.report` makes the page.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxprune.analysis.extraction import Extraction, read_extraction
from jaxprune.analysis.manifest import is_extraction, read_manifest
from jaxprune.analysis.saved import SavedAnalysis, is_analysis, read_analysis

TABLES = {"sweep.csv": "Cost and accuracy", "ablation.csv": "Ablation"}  # what a folder of measurements holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """The content of a page: analyses, and extractions whose clips are shown, by names that tell the runs apart; and
    tables of `TABLES`. `notes` say what could not be had."""

    analyses: Mapping[str, SavedAnalysis]
    extractions: Mapping[str, Extraction]
    measured: tuple[Path, ...]
    notes: tuple[str, ...]


def read_runs(paths: Sequence[Path]) -> Runs:
    """Every folder's contents. Raises `ValueError` for none, and for a folder that holds nothing of ours."""
    if not paths:
        raise ValueError("there is nothing to report on; give at least one folder of jaxprune analyze")
    analyses, given, lent, measured, notes = [], [], [], [], []
    for path in dict.fromkeys(Path(os.path.normpath(path)) for path in paths):
        if is_analysis(path):
            analyses.append(read_analysis(path))
            found = _lent(analyses[-1])
            (notes if isinstance(found, str) else lent).append(found)
        if is_extraction(path):
            given.append(read_extraction(path))
        tables = [path / name for name in TABLES if (path / name).exists()]
        measured += tables
        if not (is_analysis(path) or is_extraction(path) or tables):
            what = "holds nothing to report on" if path.is_dir() else "is not a folder"
            raise ValueError(f"{path} {what}; give folders that jaxprune analyze, extract or sweep have written")
    shown = {one.path.resolve(): one for one in [*lent, *given]}
    lenders = {one.extraction.resolve() for one in analyses}
    alone = [one for where, one in shown.items() if where not in lenders]
    names = _names([*analyses, *alone])
    titles = dict(zip([one.path.resolve() for one in [*analyses, *alone]], names, strict=True))
    lent_by = {one.extraction.resolve(): titles[one.path.resolve()] for one in analyses}
    return Runs(
        analyses={titles[one.path.resolve()]: one for one in analyses},
        extractions={lent_by.get(where) or titles[where]: one for where, one in shown.items()},
        measured=tuple(measured),
        notes=tuple(notes),
    )


def _lent(saved: SavedAnalysis) -> Extraction | str:
    """The extraction that was analysed, or why its clips are not shown."""
    if not is_extraction(saved.extraction) or read_manifest(saved.extraction) != saved.manifest:
        return f"No clips of {saved.path.name}: the extraction it was made from is no longer where it was."
    found = read_extraction(saved.extraction)
    if not found.has_mel:
        return f"No clips of {saved.path.name}: its extraction holds no spectrograms (extract with --mel)."
    return found


def _names(found: Sequence[SavedAnalysis | Extraction]) -> list[str]:
    """A name for each run: its own; its folder too, where several have that name; and a number where that fails."""
    said = [one.analysis.name if isinstance(one, SavedAnalysis) else one.name for one in found]
    longer = [
        f"{one.path.name}: {name}" if said.count(name) > 1 else name for one, name in zip(found, said, strict=True)
    ]
    return [
        f"{name} ({longer[: place + 1].count(name)})" if longer.count(name) > 1 else name
        for place, name in enumerate(longer)
    ]
