"""An `Analysis` as flat tables: a name, the columns, and rows of plain values, ready for CSV or a terminal.

A row has one number and its interval, so any table program can filter them. Nothing is rounded here.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

from jaxprune.analysis.analyze import QUANTILES, Analysis
from jaxprune.analysis.bootstrap import Estimate

INTERVAL = ("value", "low", "high")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def to_csv(self) -> str:
        """The table with a heading. NaN is an empty cell.

        Text that a spreadsheet would run as a formula begins with an apostrophe, which is how spreadsheets mark text.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([_cell(column) for column in self.columns])
        writer.writerows([[_cell(cell) for cell in row] for row in self.rows])
        return text.getvalue()


def tables(analysis: Analysis) -> dict[str, Table]:
    """All tables by name. Those on kept patches need a model that pruned; `overlap` needs other extractions.

    Blocks and clusters count from 0, clusters from the lowest intensity. The block `mean` is the mean over blocks.
    """
    made = {
        "values": Table(columns=("signal", "what", "value"), rows=tuple(_values(analysis))),
        "kendall": Table(columns=("signal", "definition", "block", *INTERVAL), rows=tuple(_kendall(analysis))),
        "block_overlap": Table(
            columns=("block", "other", "shared", "low", "high", "jaccard", "chance"),
            rows=tuple(_block_overlap(analysis)),
        ),
    }
    if analysis.kept:
        made["clusters"] = Table(
            columns=("block", "cluster", "entering", "kept", "share", "low", "high"), rows=tuple(_clusters(analysis))
        )
        made["places"] = Table(columns=("block", "part", "place", *INTERVAL), rows=tuple(_places(analysis)))
        made["attention"] = Table(columns=("block", "what", *INTERVAL), rows=tuple(_attention(analysis)))
    if analysis.overlaps:
        made["overlap"] = Table(
            columns=("other", "block", "shared", "low", "high", "jaccard", "chance"), rows=tuple(_overlap(analysis))
        )
    return made


def _values(analysis: Analysis) -> Iterator[tuple]:
    for signal, values in analysis.values.items():
        yield signal, "mean", values.mean
        yield signal, "std", values.std
        for share, quantile in zip(QUANTILES, values.quantiles.tolist(), strict=True):
            yield signal, f"quantile {share:g}", quantile
        found = values.clusters
        for i, (centre, count) in enumerate(zip(found.centres.tolist(), found.counts.tolist(), strict=True)):
            yield signal, f"cluster {i} centre", centre
            yield signal, f"cluster {i} patches", count
        for i, bound in enumerate(found.bounds.tolist()):
            yield signal, f"bound of clusters {i} and {i + 1}", bound


def _kendall(analysis: Analysis) -> Iterator[tuple]:
    for signal, found in analysis.kendall.items():
        for definition in ("published", "tau_b"):
            for block, row in enumerate(_rows(getattr(found, definition))):
                yield signal, definition, block, *row
            yield signal, definition, "mean", *_row(getattr(found, f"{definition}_mean"))
        for block, chance in enumerate(found.chance.tolist()):
            yield signal, "published by chance", block, chance, math.nan, math.nan


def _block_overlap(analysis: Analysis) -> Iterator[tuple]:
    found = analysis.block_overlap
    for i in range(len(found.chance)):
        for j in range(i):
            yield i, j, *_row(found.shared[i, j]), float(found.jaccard.value[i, j]), float(found.chance[i, j])


def _clusters(analysis: Analysis) -> Iterator[tuple]:
    found = analysis.kept.clusters
    for stage, block in enumerate(analysis.stages):
        for cluster, row in enumerate(_rows(found.share[stage])):
            yield block, cluster, int(found.entering[cluster]), int(found.kept[stage, cluster]), *row


def _places(analysis: Analysis) -> Iterator[tuple]:
    for block, found in analysis.kept.places.items():
        for part, estimate in (("mel band", found.by_band), ("time", found.by_time)):
            for place, row in enumerate(_rows(estimate)):
                yield block, part, place, *row
        yield block, "sound", "", *_row(found.sound)
        yield block, "padding", "", *_row(found.padding)


def _attention(analysis: Analysis) -> Iterator[tuple]:
    found = analysis.kept.attention
    for block in range(len(found.auc.value)):
        for what in ("retained", "pruned", "auc"):
            yield block, what, *_row(getattr(found, what)[block])


def _overlap(analysis: Analysis) -> Iterator[tuple]:
    for other, by_block in analysis.overlaps.items():
        for block, found in by_block.items():
            stage = "last" if block == -1 else block
            yield other, stage, *_row(found.shared), float(found.jaccard.value), float(found.chance)


def _rows(estimate: Estimate) -> Iterable[tuple[float, float, float]]:
    return (_row(estimate[i]) for i in range(len(estimate.value)))


def _row(estimate: Estimate) -> tuple[float, float, float]:
    return float(estimate.value), float(estimate.low), float(estimate.high)


def _cell(value: Any) -> Any:
    """A value as it stands in a CSV file."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and value != "-":
        return f"'{value}"
    return value
