"""Shows and writes an ablation's rows: rounded for a terminal, whole for CSV and JSON."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxprune.analysis.bootstrap import Estimate
from jaxprune.analysis.tables import Table
from jaxprune.experiments.ablation import AS_MANY, RANGE, UNPRUNED, Row, seed_spread

METRICS = {  # heading and factor of each metric
    "top1": ("top-1 %", 100),
    "top5": ("top-5 %", 100),
    "mean_average_precision": ("mAP %", 100),
    "auc": ("AUC %", 100),
    "d_prime": ("d'", 1),
}


def shown(rows: Sequence[Row], *, base: Row) -> tuple[list[str], list[tuple[object, ...]]]:
    """Headings and cells for a terminal. Intervals are in brackets, losses against `base` in percentage points."""
    metric = next(iter(rows[0].metrics))
    heading, factor = METRICS[metric]
    headings = [
        "chosen by",
        "kept",
        "blocks",
        "seed",
        "patches left",
        "GMACs",
        heading,
        "lost",
        "emptied",
        "of the others",
    ]
    cells = []
    for row in rows:
        setting = row.setting
        accuracy = f"{factor * row.metrics[metric]:.2f}"
        cells.append(
            (
                setting.score,
                "-" if setting.score == UNPRUNED else setting.keep,
                ",".join(map(str, setting.blocks)) or "-",
                "-" if setting.seed is None else setting.seed,
                patches_left(row),
                f"{row.macs / 1e9:.4f}",
                accuracy if row.accuracy is None else f"{accuracy} {between(row.accuracy)}",
                lost(row, base, metric=metric),
                row.emptied or "-",
                f"{factor * row.of_others[metric]:.2f}" if row.emptied and row.of_others else "-",
            )
        )
    return headings, cells


def notes(rows: Sequence[Row]) -> list[str]:
    """Remarks below the table."""
    metric = next(iter(rows[0].metrics))
    heading, factor = METRICS[metric]
    found = ["Patches left: mean ± std over clips [lowest, highest] after the last of the blocks."]
    if any(row.setting.score in (RANGE, AS_MANY) for row in rows):
        found.append(
            "Ranges of the patch mean: GMACs are those of the patches left; here they ran masked, at full cost."
        )
    if any(row.emptied for row in rows):
        found.append("Emptied clips have no patch left; they count. The last column is without them.")
    for (score, keep, blocks), (mean, std) in seed_spread(rows, metric=metric).items():
        at = ",".join(map(str, blocks))
        found.append(f"{score} {keep} at {at}, over its seeds: {heading} {factor * mean:.2f} ± {factor * std:.2f}.")
    return found


def patches_left(row: Row) -> str:
    """The patches left after the last block. A count that all clips share stands alone."""
    if not row.kept:
        return "all"
    mean, std, low, high = row.kept[max(row.kept)]
    return f"{low}" if low == high else f"{mean:.1f} ± {std:.1f} [{low}, {high}]"


def lost(row: Row, base: Row, *, metric: str) -> str:
    """The loss in percentage points, with its interval if there is one. A gain is negative."""
    lost = METRICS[metric][1] * (base.metrics[metric] - row.metrics[metric])
    return f"{lost:.2f}" if row.drop is None else f"{lost:.2f} {between(row.drop)}"


def between(estimate: Estimate) -> str:
    """An interval of shares, in percent."""
    return f"[{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def to_json(row: Row) -> dict[str, Any]:
    """Everything in JSON's types. Shares go from 0 to 1. An open end of a range is None."""
    setting = row.setting
    ends = None if setting.range is None else [end if abs(end) < float("inf") else None for end in setting.range]
    return {
        "score": setting.score,
        "keep": setting.keep,
        "rates": list(setting.rates),
        "range": ends,
        "blocks": list(setting.blocks),
        "seed": setting.seed,
        "clips": row.clips,
        "metrics": dict(row.metrics),
        "accuracy": _ends(row.accuracy),
        "drop": _ends(row.drop),
        "kept": {str(block): dict(zip(SPREAD, one, strict=True)) for block, one in row.kept.items()},
        "emptied": row.emptied,
        "metrics_of_emptied": dict(row.of_emptied),
        "metrics_of_others": dict(row.of_others),
        "gmacs": row.macs / 1e9,
        "gmacs_as_run": row.macs_as_run / 1e9,
    }


SPREAD = ("mean", "std", "lowest", "highest")


def table(rows: Mapping[str, Iterable[Row]]) -> Table:
    """All rows of all checkpoints, one a line. Patches are those left after the last block. Drops are shares."""
    lines, metrics = [], None
    for checkpoint, found in rows.items():
        for row in found:
            metrics = metrics or tuple(row.metrics)
            setting, kept = row.setting, row.kept[max(row.kept)] if row.kept else ("", "", "", "")
            drop = ("", "", "") if row.drop is None else (row.drop.value, row.drop.low, row.drop.high)
            blocks, seed = ",".join(map(str, setting.blocks)), "" if setting.seed is None else setting.seed
            rest = tuple(row.of_others.get(name, "") for name in metrics[:1])
            values = tuple(row.metrics[name] for name in metrics)
            cost = row.macs / 1e9, row.macs_as_run / 1e9
            what = checkpoint, setting.score, setting.keep, blocks, seed, row.clips
            lines.append((*what, *values, *drop, *kept, row.emptied, *rest, *cost))
    columns = ("checkpoint", "score", "keep", "blocks", "seed", "clips", *metrics)
    columns += ("drop", "drop_low", "drop_high", *(f"kept_{name}" for name in SPREAD), "emptied")
    columns += (f"{metrics[0]}_of_others", "gmacs", "gmacs_as_run")
    return Table(columns=columns, rows=tuple(_plain(line) for line in lines))


def _ends(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {field.name: float(getattr(estimate, field.name)) for field in dataclasses.fields(estimate)}


def _plain(line: Sequence[Any]) -> tuple[Any, ...]:
    """Turns numpy's numbers into Python's."""
    return tuple(cell.item() if hasattr(cell, "item") else cell for cell in line)
