"""Kept patches beside where the speech is.

    python -m scripts.studies.speech extracted/ast/tuned-0.7-at-0.7 extracted/audiomae/tuned-0.7-at-0.7

Reads pruned extractions that hold their spectrograms (`jaxprune extract --mel float16`). A frame holds speech where its
power is at most 30 dB below that of the clip's loudest frame, and a column of patches where half of its frames do. So
loud noise counts as speech; in clips of one word in a quiet room there is little of it. The table has the share of
patches that stay to the end in columns with speech and in the others, and the first divided by the second.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Bool, Float

from jaxprune.analysis.bootstrap import DEFAULT, Estimate, interval, resampled
from jaxprune.analysis.extraction import Extraction, on_grid, read_extraction
from jaxprune.cli import console as cli
from jaxprune.config import ModelConfig
from jaxprune.files import write_json

BELOW = 30.0  # decibels
COLUMNS = ("extraction", "columns with speech %", "kept with speech %", "kept without %", "times as often")


def main(extractions: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path | None = None) -> None:
    """Print the shares of patches kept with and without speech.

    Args:
        extractions: folders of jaxprune extract, of a pruned model, with --mel.
        out: where to save the numbers as JSON.
    """
    rows, table = [], []
    for path in extractions:
        extraction = read_extraction(path)
        speech = speech_in(extraction)
        shares, times = kept_by_speech(kept_to_the_end(extraction), speech)
        table.append(
            [str(path), f"{100 * speech.mean():.1f}", _told(shares[0], 100), _told(shares[1], 100), _told(times)]
        )
        rows.append({"extraction": str(path), "columns_with_speech": float(speech.mean())})
        rows[-1] |= {"kept_with_speech": _ends(shares[0]), "kept_without": _ends(shares[1]), "times": _ends(times)}
    cli.print_table("Patches kept to the end", COLUMNS, table, notes=["In brackets: 95 % intervals over clips."])
    if out is not None:
        write_json(out, rows)


def kept_to_the_end(extraction: Extraction) -> Bool[np.ndarray, "clips time freq"]:
    """The patches left after the last pruning block. Raises `ValueError` for an extraction without pruning."""
    extraction.check_pruned()
    return on_grid(extraction.kept_mask(extraction.stages[-1]), extraction.config)


def speech_in(extraction: Extraction) -> Bool[np.ndarray, "clips time"]:
    """The columns of patches that hold speech. Raises `ValueError` for an extraction without spectrograms."""
    std = extraction.manifest["checkpoint"]["card"]["std"]
    return columns_with_speech(extraction.column("mel").astype(np.float64), std=std, config=extraction.config)


def columns_with_speech(
    mel: Float[np.ndarray, "clips t f"], *, std: float, config: ModelConfig
) -> Bool[np.ndarray, "clips time"]:
    """The columns of patches of whose frames at least half are speech. `mel` is normalised, by two times `std`."""
    power = np.exp(2 * std * mel).sum(axis=2)  # of each frame, up to a factor
    decibels = 10 * np.log10(power / power.max(axis=1, keepdims=True))
    first = config.time_stride * np.arange(config.grid[0])
    frames = first[:, None] + np.arange(config.patch)  # time frames
    return (decibels >= -BELOW)[:, frames].mean(axis=2) >= 0.5


def kept_by_speech(
    kept: Bool[np.ndarray, "clips time freq"], speech: Bool[np.ndarray, "clips time"]
) -> tuple[Estimate, Estimate]:
    """The shares of patches kept with speech and without (2,), and the first over the second."""
    where = np.stack([speech, ~speech], axis=1)  # clips 2 time
    found = (kept.sum(axis=2)[:, None] * where).sum(axis=2)
    value, draws = resampled(found, where.sum(axis=2) * kept.shape[2], bootstrap=DEFAULT)
    shares = interval(value, draws, confidence=DEFAULT.confidence)
    with np.errstate(invalid="ignore", divide="ignore"):
        times = interval(value[:1] / value[1:], draws[:, :1] / draws[:, 1:], confidence=DEFAULT.confidence)
    return shares, times[0]


def _told(one: Estimate, factor: float = 1.0) -> str:
    value, low, high = (f"{factor * float(x):.{1 if factor > 1 else 2}f}" for x in (one.value, one.low, one.high))
    return f"{value} [{low}, {high}]"


def _ends(one: Estimate) -> list[float]:
    return [float(one.value), float(one.low), float(one.high)]


if __name__ == "__main__":
    cli.run(main)
