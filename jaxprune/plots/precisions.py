"""The picture of keep rates and precisions: quality over measured time and over arithmetic, and what no other beats."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxprune.export.precisions import Pair, front
from jaxprune.plots.clips import picture_path, save
from jaxprune.plots.pareto import NAMES
from jaxprune.plots.style import MARKERS, SERIES, head


def precision_front(pairs: Sequence[Pair], *, title: str, path: str | os.PathLike[str]) -> Path:
    """Draws the pairs, a colour for each precision, and joins those that no other beats. Raises `ValueError` for a
    suffix that is no picture's."""
    path = picture_path(path)
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    head(figure, title)
    time, kept = figure.subplots(1, 2, sharey=True)
    best = front(pairs)
    time.plot([p.milliseconds for p in best], [100 * p.quality for p in best], "--", color="0.55", linewidth=1)
    for i, precision in enumerate(dict.fromkeys(pair.precision for pair in pairs)):
        looks = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        of_it = [pair for pair in pairs if pair.precision == precision]
        quality = [100 * pair.quality for pair in of_it]
        time.plot([pair.milliseconds for pair in of_it], quality, label=precision, **looks)
        kept.plot([100 * pair.overlap for pair in of_it], quality, **looks)
        for pair in of_it:
            place = (pair.milliseconds, 100 * pair.quality)
            time.annotate(pair.asked, place, (0, 6), textcoords="offset points", fontsize=7, ha="center")
    time.set_ylabel(NAMES.get(pairs[0].metric, pairs[0].metric), fontsize=9)
    time.set_xlabel("measured ms per clip; the number is the keep rate, or what was asked for", fontsize=9)
    kept.set_xlabel("patches kept as in float32 (%)", fontsize=9)
    for panel in (time, kept):
        panel.tick_params(labelsize=8)
        panel.grid(color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.margins(0.1)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save(figure, path)
    return path
