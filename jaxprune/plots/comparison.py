"""The picture of methods compared: quality over multiply-accumulates, a panel a model and a curve a method."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprune.experiments.sweep_points import pareto
from jaxprune.plots.clips import picture_path, save
from jaxprune.plots.pareto import NAMES
from jaxprune.plots.style import MARKERS, SERIES, head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A method's points in one panel: cost in GMACs a clip, quality (a share), and the ends of its intervals."""

    panel: str
    name: str
    gmacs: tuple[float, ...]
    quality: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


def comparison(
    curves: Sequence[Curve],
    *,
    title: str,
    path: str | os.PathLike[str],
    metric: str = "top1",
    order: Sequence[str] = (),
) -> list[Path]:
    """Draws the curves as a PNG and an SVG file beside each other, and returns the files.

    The dashed line joins the points of a panel that no other beats. Bars are intervals. A method looks alike in all
    panels, and in all pictures with the same `order`, whose methods begin the legend. Panels below each other share
    their scale. Raises `ValueError` without curves, and for another suffix than .png, .svg and .pdf.
    """
    path = picture_path(path)
    figure = comparison_figure(curves, title=title, metric=metric, order=order)
    paths = list(dict.fromkeys((path, path.with_suffix(".png"), path.with_suffix(".svg"))))
    for name in paths:
        save(figure, name)
    return paths


def comparison_figure(
    curves: Sequence[Curve], *, title: str, metric: str = "top1", order: Sequence[str] = ()
) -> Figure:
    """The figure of `comparison`."""
    if not curves:
        raise ValueError("there are no curves to draw")
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    used = {curve.name: None for curve in curves}
    looks = {name: _look(i) for i, name in enumerate(dict.fromkeys((*order, *used)))}
    names = [name for name in looks if name in used]
    wide = min(2, len(panels))
    rows = -(-len(panels) // wide)
    figure = Figure(figsize=(5.2 * wide, 4.0 * rows + 0.8), layout="constrained")
    head(figure, title)
    axes = figure.subplots(rows, wide, sharey="col", squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, [curve for curve in curves if curve.panel == panel], looks=looks)
        axis.set_title(panel, fontsize=9)
        axis.set_xlabel("GMACs per clip", fontsize=9)
        axis.set_ylabel(NAMES.get(metric, metric), fontsize=9)
    for axis in axes[len(panels) :]:
        axis.remove()
    handles = [Line2D([], [], label=name, **looks[name]) for name in names]
    handles.append(Line2D([], [], color="0.55", linestyle="--", linewidth=1, label="not beaten"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _look(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th method; dotted and hollow once all colours are used."""
    look = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
    return look if i < len(SERIES) else look | {"linestyle": ":", "markerfacecolor": "white"}


def _draw(axis: Axes, curves: Sequence[Curve], *, looks: dict[str, dict[str, Any]]) -> None:
    cost, quality = (np.concatenate([getattr(curve, name) for curve in curves]) for name in ("gmacs", "quality"))
    best = pareto(cost, quality)
    order = np.argsort(cost[best])
    axis.plot(cost[best][order], 100 * quality[best][order], "--", color="0.55", linewidth=1, zorder=1)
    for curve in curves:
        middle, ends = 100 * np.array(curve.quality), 100 * np.array(curve.intervals).T
        bars = np.abs(ends - middle)
        shape = {"linewidth": 0.9, "elinewidth": 0.5, "capsize": 1.5, "zorder": 2}
        axis.errorbar(curve.gmacs, middle, yerr=bars, **looks[curve.name], **shape)
    axis.tick_params(labelsize=8)
    axis.grid(color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)
