"""Measures a checkpoint on a data set at several keep rates in one pass: accuracy or mAP beside the cost.

jaxprune evaluate CHECKPOINT speech-commands --root data/speech_commands_v0.02
jaxprune evaluate CHECKPOINT esc50 --root data/ESC-50 --fold 3 --keep-rates 1.0 0.7 --out result.json
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune import files
from jaxprune.cli import console as cli
from jaxprune.cli.opening import card_for
from jaxprune.cli.options import DataSource
from jaxprune.data.batches import Workers, eval_batches
from jaxprune.data.records import Split, first_few
from jaxprune.evaluation.evaluate import Evaluation, evaluate, keep_policies
from jaxprune.reduction.policy import DEFAULT_BLOCKS

COLUMNS = {  # heading and factor of each metric
    "top1": ("top-1 %", 100),
    "top5": ("top-5 %", 100),
    "mean_average_precision": ("mAP %", 100),
    "auc": ("AUC %", 100),
    "d_prime": ("d'", 1),
}


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
def main(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    data: Annotated[DataSource, tyro.conf.arg(name="")],
    *,
    split: Split = "test",
    keep_rates: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
    blocks: tuple[int, ...] = DEFAULT_BLOCKS,
    batch: int = 32,
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 2,
    unusable: float = 0.01,
    out: Path | None = None,
) -> None:
    """Measure a checkpoint on one split of a data set, at several keep rates in one pass.

    Args:
        checkpoint: a directory that jaxprune convert or jaxprune finetune has written.
        data: which data set, and where.
        split: which clips.
        keep_rates: shares of the patches kept at each pruning block; 1 prunes nothing.
        blocks: the blocks that prune, counted from 0.
        batch: clips computed together.
        dtype: what the model computes in.
        threads: threads that decode.
        unusable: the share of clips that may be damaged or silent.
        out: where to save everything as JSON.
    """
    if out is not None:
        if out.is_dir():
            raise ValueError(f"{out} is a directory; --out names a file")
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    dataset = data.read()
    card = card_for(checkpoint, dataset)
    clips = dataset.clips(split)
    model = checkpoints.load(checkpoint, dtype=dtype)
    policies = keep_policies(model, keep_rates, blocks=blocks)
    batches = eval_batches(
        dataset,
        split,
        frames=card.model.frames,
        batch_size=min(batch, len(clips)),
        workers=Workers(threads=threads),
        unusable=unusable,
    )
    with batches, cli.progress("evaluating", cli.Rate()) as progress:
        bar = progress.add_task("", total=len(clips))
        found = evaluate(
            model,
            batches,
            card=card,
            policies=policies,
            single_label=dataset.single_label,
            watch=lambda done: progress.update(bar, completed=done),
        )
    device = jax.devices()[0].device_kind
    print_evaluation(found, title=f"{dataset.name}, {split}: {checkpoint}", device=device, dtype=dtype)
    if out is not None:
        facts = {
            "command": shlex.join(sys.argv),
            "checkpoint": str(checkpoint),
            "source": card.source,
            "data": {"kind": type(data).__name__, **dataclasses.asdict(data)},
            "split": split,
            "blocks": blocks,
            "batch": batch,
            "dtype": dtype,
            "device": device,
        }
        content = facts | found.to_json()
        files.write_text(out, json.dumps(content, allow_nan=False, indent=1, default=str, ensure_ascii=False) + "\n")
        cli.notice(f"saved {out}")


def print_evaluation(found: Evaluation, *, title: str, device: str, dtype: str) -> None:
    """A row for each keep rate, and what the numbers are from."""
    names = list(next(iter(found.rates.values())).metrics)
    rows = [
        (
            f"{rate:g}",
            f"{measured.macs / 1e9:.3f}",
            f"{100 * measured.saving:.1f} %",
            *(f"{COLUMNS[name][1] * value:.3f}" for name, value in measured.metrics.items()),
            found.clips,
        )
        for rate, measured in found.rates.items()
    ]
    headings = [COLUMNS[name][0] for name in names]
    notes = [
        f"{device}, {dtype}: {found.seconds:.1f} s, {found.compiling:.1f} of them compiling; then "
        f"{found.clips_per_second:.1f} clips/s from files to answers, at all rates together.",
        f"The device was idle for want of data {100 * found.device_idle:.1f} % of that time; the host waited "
        f"{found.waited:.1f} s for it."
        + (" A CPU decodes on the cores that compute: idle means nothing queued." if device == "cpu" else ""),
    ]
    if found.classes_present < found.classes:
        notes.append(f"{found.classes_present} of {found.classes} classes have a clip.")
    if found.unusable:
        reasons = list(found.unusable.values())
        clips = "clip" if len(reasons) == 1 else "clips"
        notes.append(f"{len(reasons)} {clips} could not be used: {first_few(reasons)}")
    cli.print_table(title, ["keep rate", "GMACs", "saved", *headings, "clips"], rows, notes=notes)
