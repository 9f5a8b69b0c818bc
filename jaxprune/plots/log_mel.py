"""The picture of one log-mel spectrogram, with axes in seconds and hertz."""

import os

import librosa
import librosa.display
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxprune.features import HOP, LOWEST_HZ, SAMPLE_RATE
from jaxprune.plots.clips import picture_path, save
from jaxprune.plots.style import COLORS


def draw_log_mel(mel: Float[np.ndarray, "t f"], *, title: str, label: str, path: str | os.PathLike[str]) -> None:
    """Writes a spectrogram as a .png, .svg or .pdf file. `label` says what the colours measure.

    Raises `ValueError` for another suffix.
    """
    path = picture_path(path)
    frames, bins = mel.shape
    figure = Figure(figsize=(max(4.0, min(16.0, frames / 100)), 3.2), layout="constrained")
    axes = figure.subplots()
    # HTK's mel scale is Kaldi's. The first and last edge belong to no bin.
    centres = librosa.mel_frequencies(bins + 2, fmin=LOWEST_HZ, fmax=SAMPLE_RATE / 2, htk=True)[1:-1]
    image = librosa.display.specshow(
        mel.T,
        sr=SAMPLE_RATE,
        hop_length=HOP,
        x_axis="time",
        y_axis="mel",
        y_coords=centres,
        htk=True,
        cmap=COLORS,
        ax=axes,
    )
    axes.xaxis.set_major_locator(MaxNLocator(6))  # librosa's ticks overlap on a short clip
    axes.set(title=title, xlabel="time, s", ylabel="frequency, Hz")
    figure.colorbar(image, ax=axes, label=label)
    save(figure, path)
