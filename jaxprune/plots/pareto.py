"""The picture of a sweep: accuracy over multiply-accumulates, and over measured time at each batch size.

Each score has a colour. Each block set has a marker, and each checkpoint if there are several. The line joins the
points that no other beats. Hollow points do not pay in time. Black diamonds are published results of other models.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprune.experiments.ablation import UNPRUNED
from jaxprune.experiments.sweep_points import Point
from jaxprune.plots.clips import picture_path, save
from jaxprune.plots.style import MARKERS, SERIES, head
from jaxprune.training.settings import Published

NAMES = {"top1": "top-1 accuracy (%)", "mean_average_precision": "mean average precision (%)"}


def pareto_front(
    points: Sequence[Point],
    *,
    title: str,
    path: str | os.PathLike[str],
    published: Sequence[Published] = (),
    chosen: Sequence[Point] = (),
) -> list[Path]:
    """Draws a sweep's points as a PNG and an SVG file beside each other, and returns the files.

    `chosen` points get a ring. `path` names one of the two files, or a .pdf to write besides. Raises `ValueError` for
    another suffix and without points.
    """
    path = picture_path(path)
    figure = pareto_front_figure(points, title=title, published=published, chosen=chosen)
    names = list(dict.fromkeys((path, path.with_suffix(".png"), path.with_suffix(".svg"))))
    for name in names:
        save(figure, name)
    return names


def pareto_front_figure(
    points: Sequence[Point], *, title: str, published: Sequence[Published] = (), chosen: Sequence[Point] = ()
) -> Figure:
    """A panel for the cost and one for the time at each batch size. All share the axis of accuracy."""
    if not points:
        raise ValueError("there are no points to draw")
    batches = list(dict.fromkeys(point.batch for point in points))
    colors, markers = looks(points)
    figure = Figure(figsize=(4.1 * (1 + len(batches)) + 0.4, 5.0), layout="constrained")
    head(figure, title)
    panels = figure.subplots(1, 1 + len(batches), sharey=True, squeeze=False)[0]
    first = [point for point in points if point.batch == batches[0]]
    _draw(panels[0], first, x="gmacs", front="best_by_macs", colors=colors, markers=markers, hollow=False)
    costs = [one.gmacs for one in [*first, *published]]
    for score in published:
        panels[0].plot(score.gmacs, score.percent, "D", color="black", markersize=6, zorder=4)
        side = "left" if 2 * score.gmacs < min(costs) + max(costs) else "right"
        place, label = (score.gmacs, score.percent), f"published, {score.keep_rate:g}"
        panels[0].annotate(label, place, (0, -11), textcoords="offset points", fontsize=7, ha=side)
    panels[0].set_xlabel("GMACs per clip", fontsize=9)
    panels[0].set_ylabel(NAMES.get(points[0].metric, points[0].metric), fontsize=9)
    for panel, batch in zip(panels[1:], batches, strict=True):
        here = [point for point in points if point.batch == batch]
        _draw(panel, here, x="milliseconds", front="best_by_time", colors=colors, markers=markers, hollow=True)
        panel.set_xlabel(f"measured ms per clip, batch {batch}", fontsize=9)
        for point in chosen:
            if point.batch == batch:
                ring = {"color": "none", "markeredgecolor": "black", "markeredgewidth": 1.2}
                panel.plot(point.milliseconds, 100 * point.quality, "o", markersize=14, **ring, zorder=1)
    for panel in panels:
        panel.tick_params(labelsize=8)
        panel.grid(color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.margins(0.09)
        if panel.get_xlim()[0] < 0:
            panel.set_xlim(left=0)
    handles = legend(points, colors=colors, markers=markers, published=bool(published), chosen=bool(chosen))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def looks(points: Sequence[Point]) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """A colour for each score, black without pruning, and a marker for each (candidate, block set)."""
    scores = dict.fromkeys(point.score for point in points if point.score != UNPRUNED)
    colors = {score: SERIES[i % len(SERIES)] for i, score in enumerate(scores)}
    colors |= {point.score: "black" for point in points if point.score == UNPRUNED}
    places = dict.fromkeys((point.candidate, point.blocks) for point in points if point.blocks)
    markers = {place: MARKERS[i % len(MARKERS)] for i, place in enumerate(places)}
    plain = dict.fromkeys((point.candidate, point.blocks) for point in points if not point.blocks)
    return colors, markers | dict.fromkeys(plain, "o")


def legend(
    points: Sequence[Point],
    *,
    colors: dict[str, str],
    markers: dict[tuple[str, str], str],
    published: bool,
    chosen: bool,
) -> list[Line2D]:
    """The meaning of colours, markers and lines."""
    several = len({point.candidate for point in points}) > 1
    handles = [Line2D([], [], color=color, linewidth=4, label=score) for score, color in colors.items()]
    for (candidate, blocks), marker in markers.items():
        if blocks:
            label = f"{candidate}: blocks {blocks}" if several else f"blocks {blocks}"
            handles.append(Line2D([], [], color="0.45", marker=marker, linestyle="none", label=label))
    handles.append(Line2D([], [], color="0.55", linestyle="--", linewidth=1, label="not beaten"))
    if any(not point.pays for point in points):
        shape = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "markeredgecolor": "0.45"}
        handles.append(Line2D([], [], **shape, label="does not pay in time"))
    if published:
        handles.append(Line2D([], [], color="black", marker="D", linestyle="none", label="published (other weights)"))
    if chosen:
        shape = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black"}
        handles.append(Line2D([], [], **shape, linestyle="none", label="fastest within the allowed loss"))
    for handle in handles:
        handle.set_label(handle.get_label().replace("$", r"\$"))
    return handles


def _draw(
    panel: Axes,
    points: Sequence[Point],
    *,
    x: str,
    front: str,
    colors: dict[str, str],
    markers: dict[tuple[str, str], str],
    hollow: bool,
) -> None:
    """Draws the points, the line through those that are not beaten, and their keep rates."""
    best = sorted((point for point in points if getattr(point, front)), key=lambda point: getattr(point, x))
    panel.plot(
        [getattr(p, x) for p in best], [100 * p.quality for p in best], "--", color="0.55", linewidth=1, zorder=1
    )
    for point in points:
        color, marker = colors[point.score], markers[point.candidate, point.blocks]
        face = "white" if hollow and not point.pays else color
        place = getattr(point, x), 100 * point.quality
        panel.plot(*place, marker, color=color, markerfacecolor=face, markersize=6, zorder=3)
    for point in best:
        place = getattr(point, x), 100 * point.quality
        label = UNPRUNED if point.score == UNPRUNED else point.keep
        panel.annotate(label, place, (0, 7), textcoords="offset points", fontsize=7, ha="center", color="0.25")
