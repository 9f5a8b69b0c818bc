"""Prunes a model by attention, by pixels, the other way round and at random, and says what each costs in accuracy.

jaxprune ablate CHECKPOINT esc50 --root data/ESC-50 --keep-rates 0.7 0.5 --out ablation/esc50
jaxprune ablate CHECKPOINT esc50 --root data/ESC-50 --clusters-of extracted/esc50-1 --range-blocks 0 3 6 9
jaxprune ablate CHECKPOINT esc50 --root data/ESC-50 --bounds -0.8692 -0.5829 -0.2063 0.1130 0.4303 1.2028
jaxprune ablate UNPRUNED esc50 --root data/ESC-50 --also TUNED-0.7 TUNED-0.5

The data set is read once for each checkpoint. Fine-tuned models are other checkpoints: --also measures them under the
same settings, against the first without pruning.
"""

import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxprune import files
from jaxprune.analysis.bootstrap import DEFAULT, Bootstrap
from jaxprune.analysis.clusters import CLUSTERS, k_means
from jaxprune.analysis.extraction import read_extraction
from jaxprune.cli import console as cli
from jaxprune.cli.options import OnDataset, Subject, check_folder, held, left_out, with_data
from jaxprune.config import Card
from jaxprune.data.records import Dataset
from jaxprune.evaluation.per_clip import Answers
from jaxprune.experiments import ablation_tables as tables
from jaxprune.experiments.ablation import (
    SCORES,
    OtherMethod,
    Row,
    ScoreName,
    Setting,
    ablate,
    method_settings,
    range_settings,
    saving_settings,
    score_settings,
    summarize,
)
from jaxprune.models import Classifier
from jaxprune.reduction.policy import default_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The settings to measure: scores at keep rates, and ranges of patch means."""

    scores: tuple[ScoreName, ...] = (*SCORES, "random")
    """what chooses the patches; "lowest-" keeps those of lowest score."""
    keep_rates: tuple[float, ...] = (0.9, 0.7, 0.5)
    """shares of the patches kept at each of the blocks."""
    blocks: tuple[int, ...] = ()
    """the blocks that prune by a score, counted from 0; those of 3, 6 and 9 that the model has unless given."""
    methods: tuple[OtherMethod, ...] = ()
    """other ways to reduce tokens to measure beside, at the cost of topk at the same rates."""
    savings: tuple[float, ...] = ()
    """shares of the unpruned model's arithmetic to save, beside the keep rates; all at equal cost."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of the random scores; the first also draws the ranges' controls."""
    bounds: tuple[float, ...] = ()
    """rising bounds of the patch mean: all runs of neighbouring intervals are kept in turn."""
    clusters_of: Path | None = None
    """an extraction of the same data set, whose patch means are clustered for the bounds instead."""
    clusters: int = CLUSTERS
    """how many, with the first and last open to below and above."""
    range_blocks: tuple[int, ...] | None = None
    """blocks after which ranges are kept, one at a time; the pruning blocks unless given."""

    def checked_bounds(self) -> tuple[float, ...]:
        """The bounds given, or those between the clusters. Raises `ValueError` for options that exclude each other."""
        if self.bounds and self.clusters_of is not None:
            raise ValueError("--bounds and --clusters-of both name ranges; give one of them")
        if not self.seeds:
            raise ValueError("the seeds are []; give at least one")
        if self.clusters_of is None:
            return self.bounds
        inner = k_means(read_extraction(self.clusters_of).column("mean"), clusters=self.clusters).bounds
        return (-math.inf, *inner.tolist(), math.inf)

    def settings(self, model: Classifier, *, bounds: Sequence[float]) -> list[Setting]:
        """Every setting. Raises `ValueError` where there is none."""
        blocks = self.blocks or default_blocks(model.config.depth)
        rates = [dict.fromkeys(blocks, rate) for rate in self.keep_rates]
        settings = score_settings(model, scores=self.scores, rates=rates, seeds=self.seeds)
        settings += method_settings(model, methods=self.methods, rates=rates)
        chosen = {"scores": self.scores, "methods": self.methods, "seeds": self.seeds}
        settings += saving_settings(model, savings=self.savings, blocks=self.blocks, **chosen)
        if bounds:
            settings += range_settings(model, bounds, blocks=self.range_blocks or blocks, seed=self.seeds[0])
        if not settings:
            raise ValueError("there is nothing to measure; give scores or methods and keep rates below 1, or bounds")
        return settings


@with_data
def main(
    on: Subject,
    *,
    also: tuple[Path, ...] = (),
    asked: Annotated[Asked, tyro.conf.arg(name="")] = Asked(),
    bootstrap: Bootstrap = DEFAULT,
    batch: int = 32,
    out: Path | None = None,
) -> None:
    """Measure what pruning by other things than attention does to one or several checkpoints.

    Args:
        on: the checkpoint and the clips.
        also: more checkpoints of the same classes, such as fine-tuned ones.
        asked: the settings.
        bootstrap: how intervals are made.
        batch: clips computed together.
        out: a folder for ablation.json and ablation.csv.
    """
    check_folder(out)
    bounds = asked.checked_bounds()
    dataset = on.read()
    paths = (on.checkpoint, *also)
    if len(set(paths)) < len(paths):
        raise ValueError(f"a checkpoint is named twice among {', '.join(map(str, paths))}")
    cards = {path: on.card(dataset, checkpoint=path) for path in paths}  # all of them before the work
    with held(out):
        began, found, bad = time.perf_counter(), {}, {}
        base = None
        for path, card in cards.items():
            model = on.model(path)
            settings = asked.settings(model, bounds=bounds)
            answers = answered(on, dataset, card=card, model=model, settings=settings, batch=batch)
            base = base or answers
            bad |= answers.unusable
            found[str(path)] = summarize(model, answers, settings=settings, base=base, bootstrap=bootstrap)
        facts = {
            "command": shlex.join(sys.argv),
            "data": on.source,
            "name": dataset.name,
            "split": on.split,
            "bounds": [bound if math.isfinite(bound) else None for bound in bounds],
            "bootstrap": dataclasses.asdict(bootstrap),
            "batch": batch,
            "dtype": on.dtype,
            "device": jax.devices()[0].device_kind,
            "seconds": time.perf_counter() - began,
            "unusable": bad,
        }
        show(found, facts)
        if out is not None:
            save(found, facts, out=out)


def answered(
    on: OnDataset, dataset: Dataset, *, card: Card, model: Classifier, settings: Sequence[Setting], batch: int
) -> Answers:
    """Every clip's answer of one model under all settings, with a bar."""
    with on.batches(dataset, model, batch=batch) as batches, cli.progress("{task.description}") as progress:
        bar = progress.add_task(f"{len(settings)} settings", total=len(dataset.clips(on.split)))
        return ablate(
            model,
            batches,
            card=card,
            settings=settings,
            single_label=dataset.single_label,
            watch=lambda done: progress.update(bar, completed=done),
        )


def show(found: Mapping[str, list[Row]], facts: Mapping[str, Any]) -> None:
    """A table for each checkpoint, and what the numbers are from."""
    reference, rows = next(iter(found.items()))
    for path, of_path in found.items():
        headings, cells = tables.shown(of_path, base=rows[0])
        notes = tables.notes(of_path)
        if of_path[0].accuracy is not None:
            sure = f"{100 * facts['bootstrap']['confidence']:g} % intervals over clips"
            notes.insert(0, f"In brackets: {sure}. Lost: points of percent against {reference} without pruning.")
        title = f"{facts['name']}, {facts['split']}, {of_path[0].clips} clips: {path}"
        cli.print_table(title, headings, cells, notes=notes)
    for sentence in left_out(facts["unusable"].values()):
        cli.notice(sentence)
    cli.notice(f"{facts['seconds']:.1f} s on {facts['device']}, {facts['dtype']}")


def save(found: Mapping[str, list[Row]], facts: Mapping[str, Any], *, out: Path) -> None:
    """Everything as ablation.json and ablation.csv."""
    checkpoints = {path: [tables.to_json(row) for row in rows] for path, rows in found.items()}
    files.write_json(out / "ablation.json", {**facts, "checkpoints": checkpoints})
    files.write_text(out / "ablation.csv", tables.table(found).to_csv())
    cli.notice(f"saved {out}/ablation.json and ablation.csv")
