"""Measures a checkpoint on a data set at several keep rates in one pass: accuracy or mAP beside the cost.

jaxprune evaluate CHECKPOINT speech-commands --root data/speech_commands_v0.02
jaxprune evaluate CHECKPOINT esc50 --root data/ESC-50 --fold 3 --keep-rates 1.0 0.7 --out result.json
jaxprune evaluate CHECKPOINT esc50 --root data/ESC-50 --method tome
"""

import shlex
import sys
from pathlib import Path

import jax

from jaxprune import files
from jaxprune.amounts import in_words
from jaxprune.cli import console as cli
from jaxprune.cli.options import Subject, check_file, held, left_out, marked, rates_to_measure, trained_for, with_data
from jaxprune.cli.reducing import NONE_TOLD, SeveralReductions
from jaxprune.config import Card
from jaxprune.evaluation.evaluate import EvaluationResult, evaluate

COLUMNS = {  # heading and factor of each metric
    "top1": ("top-1 %", 100),
    "top5": ("top-5 %", 100),
    "mean_average_precision": ("mAP %", 100),
    "auc": ("AUC %", 100),
    "d_prime": ("d'", 1),
}


@with_data
def main(
    on: Subject,
    *,
    how: SeveralReductions = NONE_TOLD,
    batch: int = 32,
    out: Path | None = None,
) -> None:
    """Measure a checkpoint on one split of a data set, at several keep rates or savings in one pass.

    Args:
        on: the checkpoint and the clips.
        how: the reductions; the command's own keep rates are 1 0.9 0.8 0.7 0.6 0.5.
        batch: clips computed together.
        out: where to save everything as JSON.
    """
    check_file(out)
    with held(out):
        dataset = on.read()
        card, model = on.card(dataset), on.model()
        how = how.of(card)
        policies = how.policies(model, default=rates_to_measure([card]))
        if not all(isinstance(amount, float) for amount in policies):  # JAX sorts names, so all are of one type
            policies = {in_words(amount): policy for amount, policy in policies.items()}
        batches = on.batches(dataset, model, batch=batch)
        with batches, cli.progress("evaluating", cli.Rate()) as progress:
            bar = progress.add_task("", total=len(dataset.clips(on.split)))
            found = evaluate(
                model,
                batches,
                card=card,
                policies=policies,
                single_label=dataset.single_label,
                watch=lambda done: progress.update(bar, completed=done),
            )
        if card.keep_rates:
            cli.notice(f"{on.checkpoint} was trained for {trained_for(card)}")
        device, title = jax.devices()[0].device_kind, f"{dataset.name}, {on.split}, {how.method}: {on.checkpoint}"
        print_evaluation(found, title=title, device=device, dtype=on.dtype, card=card)
        if out is not None:
            facts = {
                "command": shlex.join(sys.argv),
                "checkpoint": str(on.checkpoint),
                "source": card.source,
                "data": on.source,
                "split": on.split,
                "trained_keep_rates": list(card.keep_rates),
                "method": how.method,
                "blocks": sorted({block for policy in policies.values() for block in policy.stages}),
                "batch": batch,
                "dtype": on.dtype,
                "device": device,
            }
            files.write_json(out, facts | found.to_json())
            cli.notice(f"saved {out}")


def print_evaluation(found: EvaluationResult, *, title: str, device: str, dtype: str, card: Card) -> None:
    """A row for each keep rate, and what the numbers are from."""
    names = list(next(iter(found.rates.values())).metrics)
    rows = [
        (
            amount if isinstance(amount, str) else marked(amount, card),
            f"{measured.macs / 1e9:.3f}",
            f"{100 * measured.saving:.1f} %",
            *(f"{COLUMNS[name][1] * value:.3f}" for name, value in measured.metrics.items()),
            found.clips,
        )
        for amount, measured in found.rates.items()
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
    notes += left_out(found.unusable.values())
    first = "keep rate" if all(isinstance(amount, float) for amount in found.rates) else "reduction"
    cli.print_table(title, [first, "GMACs", "saved", *headings, "clips"], rows, notes=notes)
