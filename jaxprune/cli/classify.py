"""Classifies sound files with a converted checkpoint at any keep rate, and shows what pruning costs and keeps.

    jaxprune classify CHECKPOINT dog.wav street.mp3 --keep-rate 0.7 --picture kept.png

Long files are cut into windows of the model's length and every window is reported. `jaxprune listen` joins windows to
events with begin and end. A file that cannot be used is named
on stderr; the others are classified all the same, and the exit code is 1.
"""

import ctypes
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune.cli import console as cli
from jaxprune.cli.options import held, trained_for
from jaxprune.config import Card
from jaxprune.inference import BATCH, Report, classify
from jaxprune.reduction.policy import DEFAULT_BLOCKS, at_blocks, stage_rates
from jaxprune.registry import LEARNED, MethodName

_ARENA_MAX = -8  # the number of this option in malloc.h
RANDOM = "random weights: the labels mean nothing"


def main(
    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")],
    audio: Annotated[list[Path], tyro.conf.arg(metavar="AUDIO [AUDIO ...]")],
    /,
    *,
    keep_rate: float = 1.0,
    blocks: tuple[int, ...] = (),
    rates: tuple[float, ...] = (),
    method: MethodName = "topk",
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
        keep_rate: share of the patches kept at each pruning block, above 0 and at most 1; 1 prunes nothing.
        blocks: the blocks that prune, counted from 0; those of 3, 6 and 9 that the model has unless given.
        rates: one keep rate for each of the blocks, in place of --keep-rate.
        method: the way to reduce tokens; tome and pool cost as much as topk does at the keep rate.
        top: how many labels to show.
        batch: windows computed together.
        picture: where to draw the spectrograms, dropped patches blank, merged ones averaged: a .png, .svg or .pdf file.
        most_pictured: how many windows to draw at most, the first ones, six to a page.
        as_json: print JSON and nothing else on stdout.
        dtype: what the model computes in.
    """
    _use_one_heap()
    card = checkpoints.load_card(checkpoint)
    keep = stage_rates(keep_rates(keep_rate, blocks=blocks, rates=rates), depth=card.model.depth)
    if picture is not None:
        plots = _pictures()
        plots.picture_path(picture)
        _check_pictured(most_pictured)
    mels = 0 if picture is None else most_pictured
    with held(picture):
        report = classify(
            audio, checkpoint, keep_rate=keep, method=method, top=top, batch=batch, mels=mels, dtype=dtype
        )
        for notice in (*report.notices, *remarks(checkpoint, card, keep, method=method)):
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


def remarks(checkpoint: Path, card: Card, keep: Mapping[int, float], *, method: MethodName) -> Iterator[str]:
    """Sentences about a method or a keep rate that the model was not trained for."""
    if card.model.predictors and method != LEARNED and min(keep.values(), default=1) < 1:
        yield f"{checkpoint} has learned predictors, and {method} does not ask them (--method {LEARNED} does)"
    if outside := [f"{rate:g}" for rate in sorted(set(keep.values())) if not card.covers(rate)]:
        yield f"keep rate {' and '.join(outside)}: {checkpoint} was trained for {trained_for(card)}"


def _use_one_heap() -> None:
    """Keeps glibc from giving each thread a heap of its own, whose holes add up to 150 MB over an hour of sound."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_ARENA_MAX, 1)


def _check_pictured(most: int) -> None:
    if most < 1:
        raise ValueError(f"--most-pictured is {most}; it must be at least 1")


def _pictures() -> ModuleType:
    """The pictures' module, which brings Matplotlib: without a picture nothing is spent on it."""
    from jaxprune.plots import clips

    return clips


def keep_rates(keep_rate: float, *, blocks: tuple[int, ...], rates: tuple[float, ...]) -> float | dict[int, float]:
    """The options as `stage_rates` reads them. Raises `ValueError` where they contradict each other."""
    everywhere = at_blocks(blocks, keep_rate)
    if not rates:
        return everywhere
    if keep_rate != 1:
        raise ValueError("--keep-rate and --rates were both given; choose one of them")
    blocks = blocks or DEFAULT_BLOCKS
    if len(rates) != len(blocks):
        raise ValueError(f"{len(rates)} --rates were given for {len(blocks)} --blocks {blocks}; give one for each")
    return dict(zip(blocks, rates, strict=True))


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
        in_words(report.keep_rates) if report.method == "topk" else f"{report.method}, {in_words(report.keep_rates)}",
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


def in_words(keep: Mapping[int, float]) -> str:
    """`0.7 at blocks 3 6 9`, or each block's own rate."""
    if len(set(keep.values())) == 1:
        return f"{next(iter(keep.values())):g} at blocks {' '.join(map(str, keep))}"
    return ", ".join(f"{rate:g} at block {block}" for block, rate in keep.items())
