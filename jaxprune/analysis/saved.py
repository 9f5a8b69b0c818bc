"""An `Analysis` on disk: analysis.json, with where it came from, written by `scripts/analyze.py` and read back here.

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

from jaxprune.analysis.analyze import Analysis, Kendall, Kept, Values
from jaxprune.analysis.bootstrap import Bootstrap, Estimate
from jaxprune.analysis.clusters import Clusters
from jaxprune.analysis.extraction import Extraction
from jaxprune.analysis.retained import ClusterCounts, Contrast, Histograms, Overlap, Places
from jaxprune.config import ModelConfig
from jaxprune.files import write_text

NAME, KIND, VERSION = "analysis.json", "jaxprune analysis", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedAnalysis:
    """What `read_analysis` found in the folder `path`: the statistics, the model's geometry, where the `extraction`
    lay, its `manifest`, and the `command` that analysed it."""

    path: Path
    analysis: Analysis
    config: ModelConfig
    extraction: Path
    manifest: Mapping[str, Any]
    command: str


def save_analysis(analysis: Analysis, *, extraction: Extraction, out: Path, facts: Mapping[str, Any]) -> Path:
    """Writes `out`/analysis.json with some `facts` in front, and returns its path.

    The extraction is named as seen from `out`, so both may be moved together.
    """
    head = {"kind": KIND, "version": VERSION, **facts}
    where = {"extraction": os.path.relpath(extraction.path, out), "extracted": extraction.manifest}
    content = json.dumps(head | where | analysis.to_json(), allow_nan=False, indent=1, ensure_ascii=False)
    write_text(out / NAME, content + "\n")
    return out / NAME


def is_analysis(path: Path) -> bool:
    """Whether a folder holds an analysis."""
    return (path / NAME).exists()


def read_analysis(path: str | os.PathLike[str]) -> SavedAnalysis:
    """The analysis in a folder. Raises `ValueError` when there is none, or it is of another version or damaged."""
    path = Path(path)
    file = path / NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} holds no {NAME}; scripts/analyze.py writes one") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != VERSION:
        raise ValueError(f"{file} is not of this program's version {VERSION}; run scripts/analyze.py again")
    try:
        return SavedAnalysis(
            path=path,
            analysis=_analysis(found),
            config=ModelConfig(**found["extracted"]["model"]),
            extraction=Path(os.path.normpath(path / found["extraction"])),
            manifest=found["extracted"],
            command=found.get("command", ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); run scripts/analyze.py again") from error


def _analysis(found: Mapping[str, Any]) -> Analysis:
    return Analysis(
        **{name: found[name] for name in ("name", "clips", "patches", "score", "top1", "top")},
        stages=tuple(found["stages"]),
        bootstrap=Bootstrap(**found["bootstrap"]),
        values={signal: _values(one) for signal, one in found["values"].items()},
        kendall={signal: _kendall(one) for signal, one in found["kendall"].items()},
        kept=None if found["kept"] is None else _kept(found["kept"]),
        block_overlap=_overlap(found["block_overlap"]),
        overlaps={
            other: {int(block): _overlap(one) for block, one in by_block.items()}
            for other, by_block in found["overlaps"].items()
        },
    )


def _values(found: Mapping[str, Any]) -> Values:
    clusters = found["clusters"]
    return Values(
        mean=found["mean"],
        std=found["std"],
        quantiles=_floats(found["quantiles"]),
        clusters=Clusters(
            centres=_floats(clusters["centres"]),
            bounds=_floats(clusters["bounds"]),
            counts=_counts(clusters["counts"]),
            lowest=clusters["lowest"],
            highest=clusters["highest"],
        ),
    )


def _kendall(found: Mapping[str, Any]) -> Kendall:
    parts = ("published", "published_mean", "tau_b", "tau_b_mean")
    return Kendall(chance=_floats(found["chance"]), **{part: _estimate(found[part]) for part in parts})


def _kept(found: Mapping[str, Any]) -> Kept:
    counts, bins, seen = found["clusters"], found["histograms"], found["attention"]
    return Kept(
        histograms=Histograms(
            before=_counts(bins["before"]),
            after=_counts(bins["after"]),
            mean_edges=_floats(bins["mean_edges"]),
            std_edges=_floats(bins["std_edges"]),
        ),
        clusters=ClusterCounts(
            entering=_counts(counts["entering"]), kept=_counts(counts["kept"]), share=_estimate(counts["share"])
        ),
        places={
            int(block): Places(
                grid=_floats(one["grid"]),
                **{part: _estimate(one[part]) for part in ("by_band", "by_time", "sound", "padding")},
            )
            for block, one in found["places"].items()
        },
        attention=Contrast(**{part: _estimate(seen[part]) for part in ("retained", "pruned", "auc")}),
        attention_of=found["attention_of"],
    )


def _overlap(found: Mapping[str, Any]) -> Overlap:
    return Overlap(
        shared=_estimate(found["shared"]), jaccard=_estimate(found["jaccard"]), chance=_floats(found["chance"])
    )


def _estimate(found: Mapping[str, Any]) -> Estimate:
    return Estimate(**{end: _floats(found[end]) for end in ("value", "low", "high")})


def _floats(found: Any) -> np.ndarray:
    return np.array(found, np.float64)  # None, which stands for what is not a number, becomes NaN


def _counts(found: Any) -> np.ndarray:
    return np.array(found, np.int64)
