"""Classifies sound files with a converted checkpoint at any keep rate, and shows what pruning costs and keeps.

    jaxprune classify CHECKPOINT dog.wav street.mp3 --keep-rate 0.7 --picture kept.png

Long files are cut into windows of the model's length and every window is reported. `jaxprune listen` joins windows to
events with begin and end. A file that cannot be used is named on stderr; the others are classified all the same, and
the exit code is 1.
"""

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune.amounts import in_words
from jaxprune.cli import console as cli
from jaxprune.cli.options import held, tell_if_slower
from jaxprune.cli.reducing import UNTOLD, OneReduction
from jaxprune.config import Card
from jaxprune.inference import BATCH, Report, classify

_ARENA_MAX = -8  # the number of this option in malloc.h
RANDOM = "random weights: the labels mean nothing"


def main(
    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")],
    audio: Annotated[list[Path], tyro.conf.arg(metavar="AUDIO [AUDIO ...]")],
    /,
    *,
    how: OneReduction = UNTOLD,
    top: int = 5,
    batch: int = BATCH,
    picture: Path | None = None,
    most_pictured: int = 48,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> int:
    """Classify sound files with a converted checkpoint at any keep rate, window by window.

    For events with begin and end in a long file, and their label tracks: jaxprune listen CHECKPOINT FILE --events OUT.

    Args:
        checkpoint: a directory of jaxprune convert or jaxprune finetune, or the name of a shipped model.
        audio: wav, flac, ogg or mp3 files of any sample rate, channel count and length.
        how: the reduction; none unless told, or the highest keep rate of a model that was trained for several below 1.
        top: how many labels to show.
        batch: windows computed together.
        picture: where to draw the spectrograms, dropped patches blank, merged ones averaged: a .png, .svg or .pdf file.
        most_pictured: how many windows to draw at most, the first ones, six to a page.
        as_json: print JSON and nothing else on stdout.
        dtype: what the model computes in.
    """
    _use_one_heap()
    tell_if_slower(dtype)
    card = checkpoints.load_card(checkpoint)
    how = how.of(card)
    amount = how.amount(default=card.highest_keep_rate, depth=card.model.depth)
    if picture is not None:
        plots = _pictures(picture, most=most_pictured)
    mels = 0 if picture is None else most_pictured
    asked = {"keep_rate": amount, "method": how.method}
    with held(picture):
        report = classify(audio, checkpoint, top=top, batch=batch, mels=mels, dtype=dtype, **asked)
        for notice in (*report.notices, *how.remarks(checkpoint, card, amount)):
            cli.notice(notice)
        tell(report, card, checkpoint=checkpoint, as_json=as_json)
        if picture is not None:
            cli.notice(f"wrote {', '.join(map(str, plots.retained_patches(report.results, card.model, path=picture)))}")
            if len(report.results) > most_pictured:
                cli.notice(f"the picture shows the first {most_pictured} of {len(report.results)} windows")
    for reason in report.refused.values():
        cli.notice(f"not classified: {reason}")
    return 1 if report.refused else 0


def tell(report: Report, card: Card, *, checkpoint: Path, as_json: bool) -> None:
    """Prints the answers as tables or as JSON, and says where they are of random weights."""
    if as_json:
        facts = {"checkpoint": str(checkpoint), "source": card.source, "random_weights": not card.trained}
        print(json.dumps(facts | report.to_json(), allow_nan=False, indent=1))
        if not card.trained:
            cli.notice(RANDOM)
    else:
        print_report(report, named=bool(card.labels), notes=[] if card.trained else [f"{checkpoint}: {RANDOM}"])


def _use_one_heap() -> None:
    """Keeps glibc from giving each thread a heap of its own, whose holes add up to 150 MB over an hour of sound."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_ARENA_MAX, 1)


def _pictures(path: Path, *, most: int) -> ModuleType:
    """The pictures' module, which brings Matplotlib: without a picture nothing is spent on it.

    Raises `ValueError` for a picture that cannot be drawn.
    """
    from jaxprune.plots import clips

    clips.picture_path(path)
    if most < 1:
        raise ValueError(f"--most-pictured is {most}; it must be at least 1")
    return clips


def print_report(report: Report, *, named: bool, notes: list[str]) -> None:
    """Prints the labels and their cost. Without names, labels are class indices."""
    kind = "" if named else "class "
    rows = [
        (
            result.path,
            f"{result.start:.2f}",
            f"{result.start + result.seconds:.2f}",
            ", ".join(f"{kind}{label} ({probability:.3f})" for label, probability in result.top),
        )
        for result in report.results
    ]
    cli.print_table("Most likely labels", ["file", "from s", "to s", "label and probability"], rows, notes=notes)
    cost = (
        in_words(report.amount) if report.method == "topk" else f"{report.method}, {in_words(report.amount)}",
        f"{report.macs / 1e9:.2f}",
        f"{report.unpruned_macs / 1e9:.2f}",
        f"{100 * report.saving:.1f} %",
        f"{report.milliseconds:.1f}",
        f"{report.compile_seconds:.1f}",
        report.device,
    )
    columns = ["keep rate", "GMACs", "unpruned GMACs", "saved", "ms per window", "compile s", "device"]
    timed = f"{report.timed_batches} {'batch' if report.timed_batches == 1 else 'batches'} of {report.batch}"
    how = f"median of {timed} after a warm-up" if report.warmed_up else f"{timed}, the first run after compiling"
    measured = f"ms per window: features and model on the device, {report.dtype}, {how}."
    cli.print_table("Cost", columns, [cost], notes=[measured])
