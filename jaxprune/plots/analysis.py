"""An `Analysis` as pictures: rank correlation, intensity clusters, places, histograms, attention, agreement of blocks.

Each `..._figure` returns a matplotlib figure and writes nothing. `pictures` makes all that an analysis allows.
Intervals are those of the analysis. Blocks and clusters count from 0. Time goes to the right, and low frequencies are
at the bottom. Series differ by marker, dash and colour. Colour-blind readers can tell the colours apart (Okabe & Ito
2008). Dotted lines are chance levels.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from jaxprune.analysis.analyze import Analysis, Kendall
from jaxprune.analysis.bootstrap import Estimate
from jaxprune.analysis.retained import Contrast, Histograms, Overlap, Places
from jaxprune.config import ModelConfig
from jaxprune.features import HOP, SAMPLE_RATE
from jaxprune.plots.clips import mel_heights, shortened
from jaxprune.plots.style import BLANK, COLORS, MARKERS, SERIES, TICKS_HZ

DASHES = ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1)))
CROWDED = 20  # more points than this get a band instead of markers and bars
SCORES = {"ClsAttention": "attention from CLS", "ReceivedAttention": "attention received"}
WIDE = 7.4  # inches; a page shows it at a size that can be read


def pictures(analysis: Analysis, config: ModelConfig) -> dict[str, Figure]:
    """All figures of one analysis by name. Those on kept patches need a model that pruned."""
    made = {
        "kendall": kendall_figure({analysis.name: analysis.kendall}),
        "block_overlap": block_overlap_figure(analysis),
    }
    if analysis.kept:
        made["clusters"] = clusters_figure(analysis)
        made["places"] = places_figure(analysis.kept.places, config)
        made["histograms"] = histograms_figure(analysis)
        made["attention"] = attention_figure(analysis)
    return made


def kendall_figure(runs: Mapping[str, Mapping[str, Kendall]]) -> Figure:
    """Rank correlation per block, for several runs by name. A column is a signal.

    The upper panels show the published definition and its chance level, the lower ones tau-b.
    """
    signals = list(dict.fromkeys(signal for found in runs.values() for signal in found))
    figure = Figure(figsize=(WIDE, 5.2 + 0.18 * len(runs)), layout="constrained")
    panels = figure.subplots(2, len(signals), sharex=True, sharey="row", squeeze=False)
    for column, signal in zip(panels.T, signals, strict=True):
        column[0].set_title(f"score against the patch's {signal}", fontsize=9)
        for number, (style, found) in enumerate(zip(_styles(len(runs)), runs.values(), strict=False)):
            shift = min(0.12, 0.7 / len(runs)) * (
                number - (len(runs) - 1) / 2
            )  # so that intervals do not hide each other
            _line(column[0], found[signal].published, shift=shift, **style)
            _line(column[1], found[signal].tau_b, shift=shift, **style)
            blocks = np.arange(len(found[signal].chance))
            column[0].plot(blocks, found[signal].chance, color=style["color"], linestyle=":", linewidth=1)
        column[1].axhline(0, color="0.4", linestyle=":", linewidth=1)
        column[1].set_xlabel("block", fontsize=8)
    panels[0, 0].set_ylabel("Kendall as published\n(ties agree; dotted: chance)", fontsize=8)
    panels[1, 0].set_ylabel("Kendall tau-b\n(dotted: chance)", fontsize=8)
    for panel in panels.flat:
        _plain(panel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    _legend(figure, panels[0, 0].containers, [shortened(name, most=80) for name in runs], columns=1)
    return figure


def clusters_figure(analysis: Analysis) -> Figure:
    """Patches per intensity cluster, all clips together: those entering, and the number and share of those kept."""
    found, centres = analysis.kept.clusters, analysis.values["mean"].clusters.centres
    figure = Figure(figsize=(WIDE, 3.6), layout="constrained")
    panel = figure.subplots()
    groups = 1 + len(analysis.stages)
    width, place = 0.86 / groups, np.arange(len(centres))
    left = place - 0.43 + width / 2
    panel.bar(left, found.entering, width, color="0.85", edgecolor="0.3", label="entering", linewidth=0.7)
    shades = mpl.colormaps["cividis"](np.linspace(0.1, 0.85, groups - 1))
    for stage, (block, shade) in enumerate(zip(analysis.stages, shades, strict=True)):
        share, at = found.share[stage], left + (stage + 1) * width
        spread = np.abs(np.stack([share.low, share.high]) - share.value) * found.entering
        panel.bar(
            at, found.kept[stage], width, color=shade, edgecolor="0.3", linewidth=0.7, label=f"kept, block {block}"
        )
        panel.errorbar(at, found.kept[stage], spread, fmt="none", ecolor="0.1", elinewidth=0.8, capsize=1.5)
        tops = found.kept[stage] + np.nan_to_num(spread[1])
        for x, top, value in zip(at, tops, share.value, strict=True):
            text = "" if np.isnan(value) else f"{100 * value:.0f}%"
            panel.annotate(
                text, (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=7 if groups < 4 else 6
            )
    names = [f"{i}\n({centre:+.2f})" for i, centre in enumerate(centres)]
    names[0], names[-1] = f"{names[0]}\nquietest", f"{names[-1]}\nloudest"
    panel.set_xticks(place, names)
    panel.set_xlabel("intensity cluster (its centre, normalised log-mel)", fontsize=8)
    panel.set_ylabel(f"patches of {analysis.clips:,} clips", fontsize=8)
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.margins(y=0.08)
    _plain(panel, grid="y")
    _legend(figure, *panel.get_legend_handles_labels(), columns=groups)
    return figure


def places_figure(places: Mapping[int, Places], config: ModelConfig) -> Figure:
    """Places of kept patches: a map per pruning block, of the share of clips that keep each place.

    Below it are the shares per mel band and per time step, with intervals. All are shares of the patches that enter the
    model.
    """
    figure = Figure(figsize=(WIDE, 5.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.05, 1), hspace=0.03)
    maps = upper.subplots(1, len(places), sharex=True, sharey=True, squeeze=False)[0]
    time, freq = config.grid
    step = config.time_stride * HOP / SAMPLE_RATE
    # A cell is centred on its patch. It is narrower than the patch where strides are short.
    start = (config.patch - config.time_stride) / 2 * HOP / SAMPLE_RATE
    bottom = (config.patch - config.freq_stride) / 2
    extent = (start, start + time * step, bottom, bottom + freq * config.freq_stride)
    for panel, (block, found) in zip(maps, places.items(), strict=True):
        image = panel.imshow(
            found.grid.T,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=0,
            vmax=1,
            cmap=COLORS,
            interpolation="none",
        )
        panel.set_title(f"kept after block {block}", fontsize=9)
        panel.set_xlabel("time (s)", fontsize=8)
        panel.set_yticks(mel_heights(TICKS_HZ, mels=config.mels), [f"{hertz / 1000:g}" for hertz in TICKS_HZ])
        panel.tick_params(labelsize=8)
    maps[0].set_ylabel("frequency (kHz)", fontsize=8)
    bar = upper.colorbar(image, ax=maps, pad=0.015, aspect=18, format=PercentFormatter(1, 0))
    bar.set_label("clips that keep the patch", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    by_band, by_time = lower.subplots(1, 2, sharey=True)
    heights = bottom + (np.arange(freq) + 0.5) * config.freq_stride
    seconds = start + (np.arange(time) + 0.5) * step
    for style, (block, found) in zip(_styles(len(places)), places.items(), strict=False):
        _line(by_band, found.by_band, at=heights, label=f"after block {block}", **style)
        _line(by_time, found.by_time, at=seconds, **style)
    by_band.set_xticks(mel_heights(TICKS_HZ, mels=config.mels), [f"{hertz / 1000:g}" for hertz in TICKS_HZ])
    by_band.set_xlabel("frequency (kHz, mel scale)", fontsize=8)
    by_time.set_xlabel("time (s)", fontsize=8)
    by_band.set_ylabel("share of patches kept", fontsize=8)
    by_band.yaxis.set_major_formatter(PercentFormatter(1, 0))
    by_band.set_ylim(-0.03, 1.03)
    for panel in (by_band, by_time):
        _plain(panel)
    _legend(lower, *by_band.get_legend_handles_labels(), columns=len(places))
    return figure


def histograms_figure(analysis: Analysis) -> Figure:
    """Patches by mean and std, before pruning and after its last stage (the paper's pictures), and the share kept."""
    found: Histograms = analysis.kept.histograms
    figure = Figure(figsize=(WIDE, 3.1), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    densities = [
        found.log_density(counts) if counts.sum() else np.zeros(counts.shape) for counts in (found.before, found.after)
    ]
    highest = max(density.max() for density in densities)
    share = np.ma.masked_invalid(
        np.divide(found.after, found.before, where=found.before > 0, out=np.full(found.before.shape, np.nan))
    )
    counts, last = [int(one.sum()) for one in (found.before, found.after)], analysis.stages[-1]
    titles = (f"before pruning\n{counts[0]:,} patches", f"after block {last}\n{counts[1]:,} patches", "share kept")
    for panel, values, top, title in zip(panels, (*densities, share), (highest, highest, 1), titles, strict=True):
        shown = np.ma.masked_where(found.before == 0, values)  # without any patch: blank, not zero
        image = panel.pcolormesh(
            found.mean_edges, found.std_edges, shown.T, vmin=0, vmax=top, cmap=COLORS, rasterized=True
        )
        for bound in analysis.values["mean"].clusters.bounds:
            panel.axvline(bound, color="0.5", linewidth=0.6, linestyle=":")
        panel.set_title(title, fontsize=9)
        panel.set_facecolor(BLANK)
        panel.tick_params(labelsize=8)
        if panel is panels[0]:
            continue
        together = panels[:2] if panel is panels[1] else panel
        style = {"format": PercentFormatter(1, 0)} if panel is panels[2] else {"label": "log(1 + density)"}
        bar = figure.colorbar(image, ax=together, pad=0.02, aspect=22, **style)
        bar.ax.tick_params(labelsize=7)
        bar.ax.yaxis.label.set_size(8)
    panels[0].set_ylabel("patch std (normalised log-mel)", fontsize=8)
    figure.supxlabel("patch mean (normalised log-mel)", fontsize=8)
    return figure


def attention_figure(analysis: Analysis) -> Figure:
    """Scores of the patches kept to the end beside the others', per block, and how well a score parts the two."""
    found: Contrast = analysis.kept.attention
    figure = Figure(figsize=(WIDE, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, 1))
    named = {"kept to the end": found.retained, "pruned": found.pruned}
    for style, (name, estimate) in zip(_styles(2), named.items(), strict=False):
        _line(upper, estimate, label=name, **style)
    score = SCORES.get(analysis.score, analysis.score)
    upper.set_title(f"{score}, in {analysis.kept.attention_of}", fontsize=9)
    upper.set_ylabel("multiples of\nthe clip's mean", fontsize=8)
    upper.axhline(1, color="0.4", linestyle=":", linewidth=1)
    _line(lower, found.auc, color=SERIES[2], marker="D", linestyle="-")
    lower.axhline(0.5, color="0.4", linestyle=":", linewidth=1)
    lower.set_ylabel("AUC, kept against pruned\n(dotted: chance)", fontsize=8)
    lower.set_xlabel("block", fontsize=8)
    lower.set_ylim(top=1.02)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    for panel in (upper, lower):
        _plain(panel)
    _legend(figure, *upper.get_legend_handles_labels(), columns=2)
    return figure


def block_overlap_figure(analysis: Analysis) -> Figure:
    """Agreement of every two blocks: the share of the best patches that both choose."""
    found: Overlap = analysis.block_overlap
    blocks = len(found.chance)
    side = max(2.6, min(5.0, 1.4 + 0.36 * blocks))
    figure = Figure(figsize=(side + 1.3, side), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(found.shared.value, vmin=0, vmax=1, cmap=COLORS, origin="lower")
    for i, j in np.ndindex(blocks, blocks):
        value = found.shared.value[i, j]
        color = "white" if value < 0.6 else "black"
        panel.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=color)
    panel.set_xticks(range(blocks))
    panel.set_yticks(range(blocks))
    panel.tick_params(labelsize=8)
    panel.set_xlabel("block", fontsize=8)
    panel.set_ylabel("block", fontsize=8)
    panel.set_title(
        f"best {100 * analysis.top:g} % of patches shared (%)\nby chance {100 * np.nanmean(found.chance):.0f} %",
        fontsize=9,
    )
    bar = figure.colorbar(image, ax=panel, format=PercentFormatter(1, 0), shrink=0.85)
    bar.ax.tick_params(labelsize=7)
    return figure


def _line(
    panel: Axes, estimate: Estimate, *, at: Float[np.ndarray, "_"] | None = None, shift: float = 0.0, **style: Any
) -> None:
    """Draws values joined by a line, with their intervals. Places without a value are left out."""
    at = np.arange(len(estimate.value)) if at is None else at
    spread = np.abs(np.stack([estimate.low, estimate.high]) - estimate.value)
    panel.errorbar(
        at + shift, estimate.value, spread, markersize=3.5, linewidth=1.2, elinewidth=0.9, capsize=2, **style
    )


def _styles(count: int) -> list[dict[str, Any]]:
    """The colour, marker and dash of each series."""
    styles = zip(cycle(SERIES), cycle(MARKERS), cycle(DASHES), range(count), strict=False)
    return [{"color": color, "marker": marker, "linestyle": dash} for color, marker, dash, _ in styles]


def _plain(panel: Axes, *, grid: str = "both") -> None:
    panel.grid(axis=grid, color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure | SubFigure, handles: Sequence, names: Sequence[str], *, columns: int) -> None:
    """Puts the legend below the panels, where it hides nothing. A dollar sign in a name begins no formula."""
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
