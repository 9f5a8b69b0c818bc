"""Shows and saves the log-mel of a sound file as the model sees it, and holds librosa's beside it.

    jaxprune features dog.wav --picture dog.png --out dog.npz
    jaxprune features dog.wav --checkpoint ast-words --picture dog.png

With --checkpoint it is the model's input: cut or padded to the model's length, and normalised.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxprune.analysis.librosa_mel import distances
from jaxprune.audio import windows_of
from jaxprune.checkpoint import load_card
from jaxprune.cli import console as cli
from jaxprune.cli.options import held
from jaxprune.config import Card
from jaxprune.features import FLOOR, HOP, MELS, SAMPLE_RATE, WINDOW, at_floor, log_mel, model_input, sample_count
from jaxprune.files import replace_file
from jaxprune.plots.clips import picture_path
from jaxprune.plots.log_mel import draw_log_mel


def main(
    file: Path,
    /,
    *,
    checkpoint: Path | None = None,
    mels: int | None = None,
    seconds: float = 60.0,
    out: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Show the log-mel of a sound file, and tell how far librosa's own mel is from it.

    Args:
        file: a sound file of any sample rate, channel count and length.
        checkpoint: the model whose input to show: a directory of jaxprune convert or jaxprune finetune, or the name of
            a shipped model. Without it, nothing is cut, padded or normalised.
        mels: mel bins; by default the checkpoint's, else 128.
        seconds: how much of the file to look at, from its beginning; a checkpoint's input has its own length.
        out: an .npz file for the arrays: log_mel, and with a checkpoint model_input, both (frames, bins).
        picture: where to draw it: a .png, .svg or .pdf file.
    """
    if out is not None and out.suffix != ".npz":
        raise ValueError(f"{out}: arrays are written as .npz, not as {out.suffix or 'a file without suffix'}")
    if picture is not None:
        picture_path(picture)
    with held(out), held(picture):
        card = None if checkpoint is None else load_card(checkpoint)
        read = MELS if card is None else card.model.mels
        if card is not None and mels not in (None, read):
            raise ValueError(f"--mels is {mels}, but {checkpoint} reads {read} bins; leave out one of them")
        waveform = beginning(file, samples=samples_of(seconds) if card is None else sample_count(card.model.frames))
        arrays = {"log_mel": np.asarray(log_mel(waveform, mels=read if mels is None else mels))}
        if card is not None:
            arrays["model_input"] = input_of(card, waveform)
        print_features(arrays, waveform, title=str(file))
        if out is not None:
            replace_file(out, lambda unfinished: np.savez(unfinished, **arrays))
            cli.notice(f"saved {', '.join(arrays)} in {out}")
        if picture is not None:
            label = "log-mel" if card is None else "normalised log-mel"
            draw_log_mel(list(arrays.values())[-1], title=file.name, label=label, path=picture)
            cli.notice(f"wrote {picture}")


def samples_of(seconds: float) -> int:
    """Samples in so many seconds. Raises `ValueError` for less than one frame."""
    if not WINDOW <= seconds * SAMPLE_RATE < float("inf"):
        raise ValueError(f"seconds is {seconds:g}; it must be at least {WINDOW / SAMPLE_RATE:g}")
    return round(seconds * SAMPLE_RATE)


def beginning(file: Path, *, samples: int) -> Float[np.ndarray, "begun"]:
    """Reads the first samples of a file, or all where it has fewer. Says on stderr what was changed or left out."""
    windows = windows_of(file, samples=samples, hop=samples)
    first = next(windows)
    for notice in first.notices:
        cli.notice(notice)
    if next(windows, None) is not None:
        cli.notice(f"{file} is longer; the first {samples / SAMPLE_RATE:.2f} s are shown")
    return first.waveform


def input_of(card: Card, waveform: Float[np.ndarray, "samples"]) -> Float[np.ndarray, "t f"]:
    """The input of a card's model for one waveform."""
    lengths = jnp.array([len(waveform)])
    config = card.model
    mel = model_input(
        waveform[None],
        lengths,
        frames=config.frames,
        mean=card.mean,
        std=card.std,
        padding=card.padding,
        mels=config.mels,
    )
    return np.asarray(mel[0])


def print_features(arrays: dict[str, Float[np.ndarray, "..."]], waveform: np.ndarray, *, title: str) -> None:
    """A table of the arrays, and one of librosa's distance from Kaldi's log-mel."""
    rows = [
        (
            name,
            len(mel),
            f"{len(mel) * HOP / SAMPLE_RATE:.2f}",
            mel.shape[1],
            *(f"{value:.3f}" for value in (mel.min(), mel.mean(), mel.std(), mel.max())),
        )
        for name, mel in arrays.items()
    ]
    silent = float(at_floor(arrays["log_mel"]).mean())
    notes = [f"{100 * silent:.1f} % of log_mel is the floor, {np.log(FLOOR):.3f}: no power in that bin and frame."]
    cli.print_table(title, ["", "frames", "s", "mel bins", "lowest", "mean", "std", "highest"], rows, notes=notes)
    rows = [
        (name, f"{found.largest:.2f}", f"{found.mean:.3f}", f"{found.signed:+.3f}")
        for name, found in distances(waveform, arrays["log_mel"]).items()
    ]
    notes = ["Differences of natural logarithms: 0.69 is a factor of two in power. Models here need Kaldi's."]
    columns = ["librosa.feature.melspectrogram", "largest difference", "mean difference", "mean with sign"]
    cli.print_table("librosa's log-mel against Kaldi's (log_mel)", columns, rows, notes=notes)
