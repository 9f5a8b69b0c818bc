"""Pictures of masked pretraining: each clip, the patches of it that the encoder saw, and the prediction of the others.

Where the target is normalised, the decoder predicts each patch less its mean and over its deviation. The pictures put
the true mean and deviation back, so that neighbouring patches can be compared.
"""

import os
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.config import ModelConfig
from jaxprune.features import HOP, SAMPLE_RATE
from jaxprune.plots.clips import mel_heights, picture_path, save, shortened
from jaxprune.plots.style import BLANK, COLORS, TICKS_HZ
from jaxprune.positions import covered, patch_corners


def draw_reconstructions(
    mel: Float[np.ndarray, "b t f"],
    *,
    visible: Int[np.ndarray, "b k"],
    prediction: Float[np.ndarray, "b n pixels"],
    names: Sequence[str],
    config: ModelConfig,
    normalised: bool,
    path: str | os.PathLike[str],
) -> None:
    """Writes a row a clip: the input, the input without the removed patches, and the seen patches beside the predicted.

    `visible` are the patches that the encoder saw. `prediction` is of all patches, `normalised` or not. Raises
    `ValueError` for another suffix than .png, .svg and .pdf.
    """
    path = picture_path(path)
    figure = Figure(figsize=(9.6, 0.5 + 1.9 * len(mel)), layout="constrained")
    axes = figure.subplots(len(mel), 3, sharex=True, sharey=True, squeeze=False)
    for row, clip, seen, pixels, name in zip(axes, mel, visible, prediction, names, strict=True):
        hidden = ~covered(config, seen)
        masked = np.ma.masked_where(hidden, clip)
        filled = np.where(hidden, predicted_mel(clip, pixels, config=config, normalised=normalised), clip)
        low, high = np.percentile(clip, (2, 99.8))
        titles = (
            shortened(name, most=28),
            f"seen: {len(seen)} of {config.patches} patches",
            "prediction of the others",
        )
        for panel, picture, title in zip(row, (clip, masked, filled), titles, strict=True):
            _panel(panel, picture, title=title, scale=(low, max(high, low + 1e-3)), config=config)
        row[0].set_ylabel("frequency (kHz)", fontsize=8)
    figure.supxlabel("time (s)", fontsize=8)
    save(figure, path)


def predicted_mel(
    mel: Float[np.ndarray, "t f"],
    prediction: Float[np.ndarray, "n pixels"],
    *,
    config: ModelConfig,
    normalised: bool,
) -> Float[np.ndarray, "t f"]:
    """The predicted patches at their places. `normalised` ones get the true patches' mean and deviation back."""
    picture = mel.copy()
    for (frame, first_bin), pixels in zip(patch_corners(config), prediction, strict=True):
        place = np.s_[frame : frame + config.patch, first_bin : first_bin + config.patch]
        patch = pixels.reshape(config.patch, config.patch)
        if normalised:
            patch = patch * np.sqrt(mel[place].var(ddof=1) + 1e-6) + mel[place].mean()
        picture[place] = patch
    return picture


def _panel(
    panel: Axes, picture: Float[np.ndarray, "t f"], *, title: str, scale: tuple[float, float], config: ModelConfig
) -> None:
    panel.imshow(
        picture.T,
        origin="lower",
        aspect="auto",
        extent=(0, config.frames * HOP / SAMPLE_RATE, 0, config.mels),
        vmin=scale[0],
        vmax=scale[1],
        cmap=mpl.colormaps[COLORS].with_extremes(bad=BLANK),
    )
    panel.set_title(title, fontsize=8).set_parse_math(False)  # a dollar sign in a file name is not a formula
    panel.set_yticks(mel_heights(TICKS_HZ, mels=config.mels), [f"{hertz / 1000:g}" for hertz in TICKS_HZ])
    panel.tick_params(labelsize=7)
