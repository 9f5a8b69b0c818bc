"""Pictures of clips, and the writing of all pictures. Figures are built without pyplot: no display, no state.

`retained_patches` draws what pruning keeps, as the paper does. A window has its spectrogram, and after each stage the
same spectrogram with the dropped patches blank, and the patches of one token averaged. A file has its name only when it
is complete. Pictures of statistics are in `jaxprune.plots.analysis`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from jaxprune.analysis.extraction import on_grid
from jaxprune.config import ModelConfig
from jaxprune.features import HOP, LOWEST_HZ, SAMPLE_RATE, hertz_to_mel
from jaxprune.files import replace_file
from jaxprune.inference import Result
from jaxprune.plots.style import BLANK, COLORS, TICKS_HZ
from jaxprune.positions import covered, in_padding, patch_corners

SUFFIXES = (".png", ".svg", ".pdf")
ROWS = 6  # windows on a page


def retained_patches(results: Sequence[Result], config: ModelConfig, *, path: str | os.PathLike[str]) -> list[Path]:
    """Draws every result that carries its spectrogram, six to a page, and returns the files written.

    A row is one window: the model's input, then what is left of it after each pruning block. It has one colour scale.
    Time goes to the right in seconds of the file, frequency upwards on the mel scale. A row ends with the clip's sound.
    Patches in the padding beyond it are not drawn, but the panel's title counts them. Pages after the first get `-2`
    and so on before the suffix. Raises `ValueError` for another suffix than .png, .svg and .pdf, and when no result
    carries a spectrogram.
    """
    path = picture_path(path)
    shown = [result for result in results if result.mel is not None]
    if not shown:
        raise ValueError("no result carries its spectrogram; classify with mels set to how many should")
    pages = [shown[first : first + ROWS] for first in range(0, len(shown), ROWS)]
    names = [path] + [path.with_stem(f"{path.stem}-{page}") for page in range(2, len(pages) + 1)]
    for name, page in zip(names, pages, strict=True):
        save(retained_patches_figure(page, config), name)
    return names


def retained_patches_figure(results: Sequence[Result], config: ModelConfig) -> Figure:
    """One page of `retained_patches`. Every result must carry its spectrogram."""
    stages = max(len(result.kept) for result in results)
    figure = Figure(figsize=(2.9 * (1 + stages) + 0.9, 2.05 * len(results)), layout="constrained")
    rows = figure.subfigures(len(results), 1, squeeze=False, hspace=0.02)[:, 0]
    for row, result in zip(rows, results, strict=True):
        _draw_row(row, result, config)
    figure.supxlabel("time (s)", fontsize=8)
    return figure


def picture_path(path: str | os.PathLike[str]) -> Path:
    """The path, for checks before long work. Raises `ValueError` unless pictures are written under its suffix."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: pictures are written as {', '.join(SUFFIXES)}, not as {path.suffix or 'a file without suffix'}"
        )
    return path


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in its suffix's format, whole or not at all."""
    with mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):  # keeps text as text
        replace_file(path, lambda unfinished: figure.savefig(unfinished, dpi=160))


def _draw_row(row: SubFigure, result: Result, config: ModelConfig) -> None:
    """Draws a window's spectrogram, and the patches that each stage left."""
    heading = row.suptitle(_heading(result), x=0.005, ha="left", fontsize=9, fontweight="bold")
    heading.set_parse_math(False)  # a dollar sign in a file name is not a formula
    panels = row.subplots(1, 1 + len(result.kept), sharex=True, sharey=True, squeeze=False)[0]
    panels[0].set_title(f"input: {config.patches} patches", fontsize=8)
    image = _draw_mel(panels[0], result.mel, result=result, config=config)
    for panel, block in zip(panels[1:], result.kept, strict=True):
        patches, mel, title = left_of(result, block, config=config)
        panel.set_title(title, fontsize=8)
        _draw_mel(panel, np.ma.masked_where(~covered(config, patches), mel), result=result, config=config)
        if block in result.groups:
            _draw_borders(panel, result.groups[block], result=result, config=config)
    panels[0].set_ylabel("frequency (kHz)", fontsize=8)
    bar = row.colorbar(image, ax=panels, pad=0.01, aspect=18, extend="both", format="%+.2f", ticks=MaxNLocator(4))
    bar.set_label("log-mel,\nnormalised", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def left_of(
    result: Result, block: int, *, config: ModelConfig
) -> tuple[Int[np.ndarray, "_"], Float[np.ndarray, "t f"], str]:
    """The patches that are left after a block, the spectrogram as its tokens hold it, and a title.

    Patches of one token look alike: each shows the mean of them all.
    """
    if block in result.groups:
        groups = result.groups[block]
        patches = np.flatnonzero(groups >= 0)
        title = f"after block {block}: {len(np.unique(groups[patches]))} tokens of {len(patches)} patches"
        return patches, averaged(result.mel, groups, config=config), title
    patches = result.kept[block]
    padding = in_padding(config, patches, frames=result.frames).sum()
    beyond = f" ({padding} in padding)" if padding else ""
    return patches, result.mel, f"after block {block}: {len(patches)} of {config.patches}{beyond}"


def averaged(
    mel: Float[np.ndarray, "t f"], groups: Int[np.ndarray, "n"], *, config: ModelConfig
) -> Float[np.ndarray, "t f"]:
    """The spectrogram with every patch replaced by the mean of the patches that share its token."""
    mel, corners = mel.copy(), patch_corners(config)
    original = mel.copy()
    for token in np.unique(groups[groups >= 0]):
        members = corners[groups == token]
        if len(members) > 1:
            cut = [original[t : t + config.patch, f : f + config.patch] for t, f in members]
            for t, f in members:
                mel[t : t + config.patch, f : f + config.patch] = np.mean(cut, axis=0)
    return mel


def _draw_borders(panel: Axes, groups: Int[np.ndarray, "n"], *, result: Result, config: ModelConfig) -> None:
    """Draws lines between neighbouring patches of different tokens, if either holds several."""
    grid = on_grid(groups[None], config)[0]  # time freq
    tokens, sizes = np.unique(groups, return_counts=True)
    several = np.isin(grid, tokens[(sizes > 1) & (tokens >= 0)])
    second = HOP / SAMPLE_RATE
    height, width = config.freq_stride, config.time_stride * second
    lines = []
    for t, f in np.argwhere((grid[1:] != grid[:-1]) & (several[1:] | several[:-1])):
        x = result.start + (t + 1) * width
        lines.append([(x, f * height), (x, (f + 1) * height)])
    for t, f in np.argwhere((grid[:, 1:] != grid[:, :-1]) & (several[:, 1:] | several[:, :-1])):
        lines.append([(result.start + at * width, (f + 1) * height) for at in (t, t + 1)])
    panel.add_collection(LineCollection(lines, colors="white", linewidths=0.6), autolim=False)


def _heading(result: Result) -> str:
    label, probability = result.top[0]
    end = result.start + result.seconds
    stretch = f"{shortened(result.path.name)}, {result.start:.2f} to {end:.2f} s"
    truth = f", label: {shortened(', '.join(result.truth))}" if result.truth else ""
    return f"{stretch}{truth}, top label: {shortened(label)} ({probability:.2f})"


def _draw_mel(panel: Axes, mel: Float[np.ndarray, "t f"], *, result: Result, config: ModelConfig) -> AxesImage:
    """Draws a spectrogram up to the last patch that holds sound. Masked values are blank, and the clip's end is marked.

    The axes are those of `librosa.display.specshow`: seconds to the right, a mel scale upwards. specshow itself draws a
    rectangle for each pixel, and knows neither blank patches nor a clip's own start.
    """
    shown = frames_shown(config, frames=result.frames)
    low, high = color_range(result)
    right = result.start + shown * HOP / SAMPLE_RATE
    image = panel.imshow(
        mel[:shown].T,
        origin="lower",
        aspect="auto",
        extent=(result.start, right, 0, config.mels),
        vmin=low,
        vmax=high,
        cmap=mpl.colormaps[COLORS].with_extremes(bad=BLANK),
    )
    if result.frames < shown:
        end = result.start + result.frames * HOP / SAMPLE_RATE
        panel.axvspan(end, right, facecolor="none", edgecolor="0.6", hatch="/////", linewidth=0)
    panel.set_yticks(mel_heights(TICKS_HZ, mels=config.mels), [f"{hertz / 1000:g}" for hertz in TICKS_HZ])
    panel.tick_params(labelsize=7)
    return image


def color_range(result: Result) -> tuple[float, float]:
    """The values at the ends of the colour scale. Nearly all of the clip's sound lies between them."""
    low, high = np.percentile(result.mel[: result.frames].astype(np.float32), (2, 99.8))
    return float(low), float(max(high, low + 1e-3))


def frames_shown(config: ModelConfig, *, frames: int) -> int:
    """The end of the last patch with any of the first `frames` frames. Without padding it is the whole length."""
    starts = patch_corners(config)[:, 0]
    sounding = starts[starts < frames]
    return config.frames if len(sounding) == len(starts) else int(sounding.max()) + config.patch


def mel_heights(hertz: Sequence[float], *, mels: int) -> Float[np.ndarray, "_"]:
    """Heights of frequencies on an axis on which mel bin i reaches from i to i + 1."""
    lowest, highest, *heights = hertz_to_mel(np.array([LOWEST_HZ, SAMPLE_RATE / 2, *hertz]))
    return (np.array(heights) - lowest) / (highest - lowest) * (mels + 1) - 0.5


def shortened(text: str, *, most: int = 48) -> str:
    """The text, cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
