"""Prunes a model by attention, by pixels, the other way round and at random, and says what each costs in accuracy.

jaxprune ablate CHECKPOINT esc50 --root data/ESC-50 --keep-rates 0.7 0.5 --out ablation/esc50
jaxprune ablate CHECKPOINT esc50 --root data/ESC-50 --clusters-of extracted/esc50-1 --range-blocks 0 3 6 9
jaxprune ablate CHECKPOINT esc50 --root data/ESC-50 --bounds -0.8692 -0.5829 -0.2063 0.1130 0.4303 1.2028
jaxprune ablate UNPRUNED esc50 --root data/ESC-50 --also TUNED-0.7 TUNED-0.5

The data set is read once for each checkpoint. Fine-tuned models are other checkpoints: --also measures them under the
same settings, against the first without pruning.
"""

import dataclasses
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune import files
from jaxprune.analysis.bootstrap import DEFAULT, Bootstrap
from jaxprune.analysis.clusters import CLUSTERS, k_means
from jaxprune.analysis.extraction import read_extraction
from jaxprune.cli import console as cli
from jaxprune.cli.opening import card_for
from jaxprune.cli.options import DataSource
from jaxprune.data.batches import Workers, eval_batches
from jaxprune.data.records import Split, first_few
from jaxprune.experiments import ablation_tables as tables
from jaxprune.experiments.ablation import SCORES, ScoreName, ablate, range_settings, score_settings, summarize
from jaxprune.reduction.policy import DEFAULT_BLOCKS


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
def main(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    data: Annotated[DataSource, tyro.conf.arg(name="")],
    *,
    also: tuple[Path, ...] = (),
    split: Split = "test",
    scores: tuple[ScoreName, ...] = (*SCORES, "random"),
    keep_rates: tuple[float, ...] = (0.9, 0.7, 0.5),
    blocks: tuple[int, ...] = DEFAULT_BLOCKS,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    bounds: tuple[float, ...] = (),
    clusters_of: Path | None = None,
    clusters: int = CLUSTERS,
    range_blocks: tuple[int, ...] | None = None,
    bootstrap: Bootstrap = DEFAULT,
    batch: int = 32,
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 2,
    unusable: float = 0.01,
    out: Path | None = None,
) -> None:
    """Measure what pruning by other things than attention does to one or several checkpoints.

    Args:
        checkpoint: a directory that jaxprune convert or jaxprune finetune has written.
        data: which data set, and where.
        also: more checkpoints of the same classes, such as fine-tuned ones.
        split: which clips.
        scores: what chooses the patches; "lowest-" keeps those of lowest score.
        keep_rates: shares of the patches kept at each of the blocks.
        blocks: the blocks that prune by a score, counted from 0.
        seeds: of the random scores; the first also draws the ranges' controls.
        bounds: rising bounds of the patch mean: all runs of neighbouring intervals are kept in turn.
        clusters_of: an extraction of the same data set, whose patch means are clustered for the bounds instead.
        clusters: how many, with the first and last open to below and above.
        range_blocks: blocks after which ranges are kept, one at a time; the pruning blocks unless given.
        bootstrap: how intervals are made.
        batch: clips computed together.
        dtype: what the model computes in.
        threads: threads that decode.
        unusable: the share of clips that may be damaged or silent.
        out: a folder for ablation.json and ablation.csv.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    if bounds and clusters_of is not None:
        raise ValueError("--bounds and --clusters-of both name ranges; give one of them")
    if not seeds:
        raise ValueError("the seeds are []; give at least one")
    if clusters_of is not None:
        inner = k_means(read_extraction(clusters_of).column("mean"), clusters=clusters).bounds
        bounds = (-math.inf, *inner.tolist(), math.inf)
    dataset = data.read()
    paths = (checkpoint, *also)
    if len(set(paths)) < len(paths):
        raise ValueError(f"a checkpoint is named twice among {', '.join(map(str, paths))}")
    cards = {path: card_for(path, dataset) for path in paths}
    clips = len(dataset.clips(split))
    began, base, rows, bad = time.perf_counter(), None, {}, {}
    for path, card in cards.items():
        model = checkpoints.load(path, dtype=dtype)
        rates = [dict.fromkeys(blocks, rate) for rate in keep_rates]
        settings = score_settings(model, scores=scores, rates=rates, seeds=seeds)
        if bounds:
            settings += range_settings(model, bounds, blocks=range_blocks or blocks, seed=seeds[0])
        if not settings:
            raise ValueError("there is nothing to measure; give scores and keep rates below 1, or bounds")
        batches = eval_batches(
            dataset,
            split,
            frames=card.model.frames,
            batch_size=min(batch, clips),
            workers=Workers(threads=threads),
            unusable=unusable,
        )
        with batches, cli.progress("{task.description}") as progress:
            bar = progress.add_task(f"{len(settings)} settings", total=clips)
            answers = ablate(
                model,
                batches,
                card=card,
                settings=settings,
                single_label=dataset.single_label,
                watch=lambda done, bar=bar, progress=progress: progress.update(bar, completed=done),
            )
        base = base or answers
        bad |= answers.unusable
        rows[str(path)] = summarize(model, answers, settings=settings, base=base, bootstrap=bootstrap)
    seconds = time.perf_counter() - began
    device = jax.devices()[0].device_kind
    first = next(iter(rows.values()))[0]
    for path, found in rows.items():
        headings, cells = tables.shown(found, base=first)
        notes = tables.notes(found)
        if found[0].accuracy is not None:
            sure = f"{100 * bootstrap.confidence:g} % intervals over clips"
            notes.insert(0, f"In brackets: {sure}. Lost: points of percent against {checkpoint} without pruning.")
        cli.print_table(f"{dataset.name}, {split}, {found[0].clips} clips: {path}", headings, cells, notes=notes)
    if bad:
        reasons = list(bad.values())
        cli.notice(f"{len(reasons)} of {clips} clips could not be used: {first_few(reasons)}")
    cli.notice(f"{seconds:.1f} s on {device}, {dtype}")
    if out is not None:
        facts = {
            "command": shlex.join(sys.argv),
            "data": {"kind": type(data).__name__, **dataclasses.asdict(data)},
            "name": dataset.name,
            "split": split,
            "bounds": [bound if math.isfinite(bound) else None for bound in bounds],
            "bootstrap": dataclasses.asdict(bootstrap),
            "batch": batch,
            "dtype": dtype,
            "device": device,
            "seconds": seconds,
            "unusable": bad,
            "checkpoints": {path: [tables.to_json(row) for row in found] for path, found in rows.items()},
        }
        text = json.dumps(facts, allow_nan=False, indent=1, default=str, ensure_ascii=False)
        files.write_text(out / "ablation.json", text + "\n")
        files.write_text(out / "ablation.csv", tables.table(rows).to_csv())
        cli.notice(f"saved {out}/ablation.json and ablation.csv")
