"""Trains micro models on the spoken corpus, `ast-words` among them, and measures what pruning them costs and saves.

    python -m scripts.words.make corpus --snr 0 20
    python -m scripts.words.train ast --corpus corpus --out runs/words-ast

Hours on two CPU cores, in stages; the same command goes on where it was cut off. A shallow model is trained from
random weights, deepened and trained on without pruning; from there one model is fine-tuned without pruning and one for
each keep rate, all alike. The unpruned one is then also pruned without any tuning.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxprune import checkpoint
from jaxprune.cli import console as cli
from jaxprune.config import Family
from jaxprune.data.batches import eval_batches
from jaxprune.data.published import SpeechCommands
from jaxprune.evaluation.evaluate import evaluate, keep_policies
from jaxprune.evaluation.timing import milliseconds
from jaxprune.files import write_text
from jaxprune.models import Classifier, build, deepened
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.recipes import recipe
from jaxprune.training.settings import Recipe
from scripts.studies.pieces import STOPPED, Run, done, located

SHALLOW = 2  # blocks of the model that is trained first


def main(
    family: Annotated[Family, tyro.conf.Positional],
    *,
    corpus: Path,
    out: Path,
    start: str | None = None,
    tuned: tuple[float, ...] = (1.0, 0.7, 0.5),
    untuned: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5),
    seed: int = 0,
) -> int:
    """Train a micro model in stages, fine-tune it at several keep rates, and measure accuracy, cost and time.

    Args:
        family: ast or audiomae.
        corpus: what scripts/words/make.py wrote.
        out: directory of all runs, models and the results; the same one goes on.
        start: unpruned model to fine-tune from, such as jaxprune/shipped/ast-words, in place of
            training one from random weights.
        tuned: keep rates to fine-tune at; must hold 1, the model that is compared with.
        untuned: keep rates at which the unpruned model is pruned without tuning.
        seed: decides weights, order and augmentation of every stage.
    """
    if 1.0 not in tuned:
        raise ValueError(f"--tuned is {list(tuned)}; it must hold 1, the model that the others are compared with")
    base = located(recipe(f"{family}-words"), corpus)
    with StopOnSignal() as stop:
        stages = (("shallow", shallow(base), SHALLOW), ("deep", deep(base), 12)) if start is None else ()
        for name, stage, depth in stages:
            first = out / f"{name}-start"
            if not first.exists():
                before = checkpoint.load(out / "shallow" / "model") if depth > SHALLOW else None
                save_start(first, stage, depth=depth, before=before, labels=SpeechCommands(root=corpus).read().labels)
            if not done(Run(name=name, recipe=from_checkpoint(stage, first)), out, seed=seed, stop=stop):
                return STOPPED
        for rate in tuned:
            stage = dataclasses.replace(base, prune=dataclasses.replace(base.prune, keep_rate=rate))
            run = Run(name=f"tuned-{rate:g}", recipe=from_checkpoint(stage, start or out / "deep" / "model"))
            if not done(run, out, seed=seed, stop=stop):
                return STOPPED
    rows = measure(corpus, out, tuned=tuned, untuned=untuned)
    print_rows(rows, family, out)
    return 0


def shallow(base: Recipe) -> Recipe:
    """The first stage: few blocks, so that learning sets in soon, and a high learning rate."""
    return dataclasses.replace(
        base,
        name=f"{base.name}-shallow",
        optimizer=dataclasses.replace(base.optimizer, base_lr=8e-3),
        prune=dataclasses.replace(base.prune, keep_rate=1.0, blocks=()),
        loop=dataclasses.replace(base.loop, epochs=20),
    )


def deep(base: Recipe) -> Recipe:
    """The second stage: all blocks, no pruning, SpecAugment because the first one ended in overfitting."""
    return dataclasses.replace(
        base,
        name=f"{base.name}-deep",
        augment=dataclasses.replace(base.augment, time_mask=12, freq_mask=12),
        optimizer=dataclasses.replace(base.optimizer, base_lr=3e-3),
        prune=dataclasses.replace(base.prune, keep_rate=1.0),
        loop=dataclasses.replace(base.loop, epochs=7),
    )


def from_checkpoint(stage: Recipe, start: str | Path) -> Recipe:
    return dataclasses.replace(stage, start=dataclasses.replace(stage.start, checkpoint=str(start)))


def save_start(path: Path, stage: Recipe, *, depth: int, before: Classifier | None, labels: tuple[str, ...]) -> None:
    """Saves the model a stage starts from: random weights, or the stage's before with blocks added."""
    config = stage.model(depth=depth)
    model = build(config) if before is None else deepened(before, depth)
    source = "random weights" if before is None else "a shallow model deepened"
    card = dataclasses.replace(stage.card(config, labels=labels, source=source), trained=before is not None)
    checkpoint.save(path, model, card=card)


def measure(
    corpus: Path, out: Path, *, tuned: tuple[float, ...], untuned: tuple[float, ...]
) -> list[dict[str, object]]:
    """A row for every model and keep rate: accuracy on the test clips, cost, and time against the unpruned model."""
    dataset = SpeechCommands(root=corpus).read()
    rows, also = [], {1.0: (1.0, *untuned)}
    for rate in tuned:
        path = out / f"tuned-{rate:g}" / "model"
        model, card = checkpoint.load(path), checkpoint.load_card(path)
        policies = keep_policies(model, also.get(rate, (rate,)))
        with eval_batches(dataset, "test", frames=model.config.frames, batch_size=64) as batches:
            found = evaluate(model, batches, card=card, policies=policies, single_label=True)
        for keep, measured in found.rates.items():
            rows.append(
                {
                    "trained_at": rate,
                    "keep_rate": keep,
                    "accuracy": measured.metrics["top1"],
                    "clips": found.clips,
                    "gmacs": measured.macs / 1e9,
                    "saving": measured.saving,
                }
            )
    speed = milliseconds(model, dict.fromkeys(row["keep_rate"] for row in rows))
    return [
        row | {"milliseconds": speed[row["keep_rate"]], "speed_up": speed[1.0] / speed[row["keep_rate"]]}
        for row in rows
    ]


def print_rows(rows: list[dict[str, object]], family: Family, out: Path) -> None:
    """The table, and the same as JSON."""
    base = rows[0]
    table = [
        (
            "fine-tuned" if row["trained_at"] == row["keep_rate"] else "not tuned for it",
            f"{row['keep_rate']:g}",
            f"{100 * row['accuracy']:.2f}",
            f"{100 * (row['accuracy'] - base['accuracy']):+.2f}",
            f"{row['gmacs']:.4f}",
            f"{100 * row['saving']:.1f} %",
            f"{row['milliseconds']:.3f}",
            f"{row['speed_up']:.2f}",
        )
        for row in rows
    ]
    columns = ["model", "keep rate", "top-1 %", "difference", "GMACs", "saved", "ms per clip", "speed-up"]
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    cli.print_table(f"{family}, {base['clips']} test clips", columns, table, notes=[f"{device}, commit {commit[:12]}"])
    result = {"command": shlex.join(sys.argv), "commit": commit, "device": device, "rows": rows}
    write_text(out / "words.json", json.dumps(result, indent=1) + "\n")
    cli.notice(f"saved {out / 'words.json'}")


if __name__ == "__main__":
    cli.run(main)
