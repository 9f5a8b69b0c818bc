"""Measures exported files in float32, bfloat16 and int8 at several keep rates: quality, patches kept, time.

jaxprune precision ast-words folder --root tests/words --test 1 --validation 0 --calibrate tests/words
jaxprune precision CHECKPOINT esc50 --root ESC-50 --keep-rates 1 0.7 0.5 --out precision.json --picture front.png
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Literal

from jaxprune import files
from jaxprune.cli import console as cli
from jaxprune.cli.export import CALIBRATING, recordings, spread
from jaxprune.cli.options import Subject, check_file, held, left_out, with_data
from jaxprune.cli.reducing import NONE_TOLD, SeveralReductions
from jaxprune.data.records import Dataset
from jaxprune.export.precisions import Pair, front, measure
from jaxprune.export.runtimes import RUNTIMES, Precision
from jaxprune.features import sample_count


@with_data
def main(
    on: Subject,
    *,
    how: SeveralReductions = NONE_TOLD,
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8"),
    runtime: Literal["openvino", "onnxruntime"] = "openvino",
    calibrate: Path | None = None,
    batch: int = 8,
    picture: Path | None = None,
    out: Path | None = None,
) -> None:
    """Measure every keep rate in every precision on one split of a data set, as files in a runtime.

    Args:
        on: the checkpoint and the clips.
        how: the reductions; keep rates 1 0.7 0.5 unless told.
        precisions: what the runtime computes in; onnxruntime has no bfloat16 on a CPU.
        runtime: what runs the files.
        calibrate: recordings to find the ranges of int8 on, a manifest or a folder; the data set's training clips
            unless given.
        batch: clips in a call.
        picture: where to draw quality over time: a .png, .svg or .pdf file.
        out: where to save everything as JSON.
    """
    from jaxprune.plots.clips import picture_path  # brings Matplotlib

    check_file(out)
    if picture is not None:
        picture_path(picture)
    with held(out), held(picture):
        dataset = on.read()
        card, model = on.card(dataset), on.model()
        how = how.of(card)
        batches = on.batches(dataset, model, batch=batch)
        with batches:
            pairs = measure(
                model,
                batches,
                card=card,
                policies=how.policies(model, default=(1.0, 0.7, 0.5)),
                precisions=precisions,
                runtime=runtime,
                calibrate=_sounds(
                    dataset, calibrate, needed="int8" in precisions, samples=sample_count(card.model.frames)
                ),
                single_label=dataset.single_label,
                tell=cli.notice,
            )
        title = f"{dataset.name}, {on.split}, {how.method}: {on.checkpoint} in {RUNTIMES[runtime].name}"
        print_pairs(pairs, title=title, notes=left_out(batches.unusable.values()))
        if picture is not None:
            from jaxprune.plots.precisions import precision_front

            cli.notice(f"wrote {precision_front(pairs, title=title, path=picture)}")
        if out is not None:
            facts = {"command": shlex.join(sys.argv), "checkpoint": str(on.checkpoint), "data": on.source}
            facts |= {"split": on.split, "method": how.method, "runtime": runtime, "batch": batch}
            files.write_json(out, facts | {"pairs": [dataclasses.asdict(pair) for pair in pairs]})
            cli.notice(f"saved {out}")


def _sounds(dataset: Dataset, path: Path | None, *, needed: bool, samples: int) -> list:
    """The waveforms to calibrate on. Raises `ValueError` where none are named and there are no training clips."""
    if not needed:
        return []
    if path is not None:
        return recordings(path, samples=samples)
    if "train" not in dataset.sizes():
        raise ValueError(
            f"int8 needs recordings to find its ranges on, and {dataset.name} has no training clips; "
            "name some (--calibrate)"
        )
    return [record.load()[:samples] for record in spread(dataset.clips("train"), CALIBRATING)]


def print_pairs(pairs: list[Pair], *, title: str, notes: list[str]) -> None:
    """Prints a row for each pair, and marks those that no other beats in quality and time."""
    best = front(pairs)
    rows = [
        (
            pair.asked,
            pair.precision,
            f"{pair.macs / 1e9:.3f}",
            f"{100 * pair.quality:.2f}",
            f"{100 * pair.overlap:.1f} %",
            f"{100 * pair.same_label:.1f} %",
            f"{pair.difference:.1e}",
            f"{pair.milliseconds:.2f}",
            f"{pair.file_bytes / 1e6:.1f}",
            "*" if pair in best else "",
        )
        for pair in pairs
    ]
    metric = {"top1": "top-1 %", "mean_average_precision": "mAP %"}[pairs[0].metric]
    columns = ["keep rate", "precision", "GMACs", metric, "same patches", "same label", "logits differ", "ms", "MB", ""]
    told = [
        "Against the float32 model in JAX at the same keep rate. ms: per clip, the median over batches; what else the "
        "machine did is in it (jaxprune benchmark times fairly). *: no other is better and faster.",
        *notes,
    ]
    cli.print_table(title, columns, rows, notes=told)
