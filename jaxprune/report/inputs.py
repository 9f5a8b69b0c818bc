"""What a report is about: the runs in the folders that it is given.

A run is a folder: an analysis (`scripts/analyze.py`), whose extraction lends its clips where it still lies where it lay
and holds spectrograms; an extraction (`scripts/extract.py`), for its clips alone; or a sweep or ablation
(`scripts/sweep.py`, `ablate.py`), whose table and pictures are taken as they are. `jaxprune.report.report` makes the
page.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxprune.analysis.extraction import Extraction, is_extraction, read_extraction, read_manifest
from jaxprune.analysis.saved import SavedAnalysis, is_analysis, read_analysis

TABLES = {"sweep.csv": "Cost and accuracy", "ablation.csv": "Ablation"}  # what a folder of measurements holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """What a page is about: analyses, and extractions whose clips are shown, by names that tell the runs apart; and
    tables of `TABLES`. `notes` say what could not be had."""

    analyses: Mapping[str, SavedAnalysis]
    extractions: Mapping[str, Extraction]
    measured: tuple[Path, ...]
    notes: tuple[str, ...]


def read_runs(paths: Sequence[Path]) -> Runs:
    """Every folder's contents. Raises `ValueError` for none, and for a folder that holds nothing of ours."""
    if not paths:
        raise ValueError("there is nothing to report on; give at least one folder of scripts/analyze.py")
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
            raise ValueError(
                f"{path} {what}; give folders that scripts/analyze.py, extract.py or sweep.py have written"
            )
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
    """What to call each run: its name; its folder too, where several have that name; and a number where that fails."""
    said = [one.analysis.name if isinstance(one, SavedAnalysis) else one.name for one in found]
    longer = [
        f"{one.path.name}: {name}" if said.count(name) > 1 else name for one, name in zip(found, said, strict=True)
    ]
    return [
        f"{name} ({longer[: place + 1].count(name)})" if longer.count(name) > 1 else name
        for place, name in enumerate(longer)
    ]
