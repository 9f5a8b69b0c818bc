"""Writes what a model makes of every clip of a data set: scores, kept patches, patch statistics, logits, in shards.

jaxprune extract CHECKPOINT esc50 --root data/ESC-50 --keep-rate 0.7 --out extracted/esc50-0.7
jaxprune extract CHECKPOINT speech-commands --root data/speech_commands --keep-rate 1 --out extracted/words

The same command goes on with an extraction that was cut off. `jaxprune/analysis/extract.py` says what the files hold,
`jaxprune analyze` makes statistics of them. With --compare 5 nothing stays but a table: five extractions and five
plain evaluations in turn, and what extraction adds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxprune.amounts import in_words
from jaxprune.analysis.extract import extract
from jaxprune.analysis.identity import SHARD_CLIPS, MelType, describe
from jaxprune.cli import console as cli
from jaxprune.cli.options import OnDataset, Subject, left_out, with_data
from jaxprune.cli.reducing import UNTOLD, OneReduction
from jaxprune.config import Card
from jaxprune.data.records import Dataset
from jaxprune.evaluation.evaluate import evaluate
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy
from jaxprune.registry import reduced


@with_data
def main(
    on: Subject,
    *,
    out: Path,
    how: OneReduction = UNTOLD,
    batch: int = 32,
    shard: int = SHARD_CLIPS,
    mel: MelType | None = None,
    compare: int = 0,
) -> None:
    """Extract what a model makes of one split of a data set, under one reduction.

    Args:
        on: the checkpoint and the clips.
        out: the folder to write to, or to go on with.
        how: the reduction; keep rate 0.7 unless told.
        batch: clips computed together.
        shard: clips in a file, about: whole batches.
        mel: the type in which to keep the spectrograms too; they are most of the bytes.
        compare: extract and evaluate so many times in turn instead, and tell what extraction adds.
    """
    for name, value, lowest in (("batch", batch, 1), ("shard", shard, 1), ("compare", compare, 0)):
        if value < lowest:
            raise ValueError(f"{name} is {value}; it must be at least {lowest}")
    dataset = on.read()
    card, model = on.card(dataset), on.model()
    how = how.of(card)
    amount = how.amount(default=0.7, depth=model.config.depth)
    policy = reduced(model, how.method, amount)
    batch = min(batch, len(dataset.clips(on.split)))
    shard_batches = max(1, shard // batch)
    job = Job(
        on=on,
        dataset=dataset,
        card=card,
        model=model,
        amount=in_words(amount),
        policy=policy,
        batch=batch,
        shard_batches=shard_batches,
        mel=mel,
    )
    if compare:
        out.parent.mkdir(parents=True, exist_ok=True)
        compared(job, beside=out, times=compare)
    else:
        show(job, out)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model, policy and split: to be extracted, or evaluated for comparison."""

    on: OnDataset
    dataset: Dataset
    card: Card
    model: Classifier
    amount: str
    policy: Policy
    batch: int
    shard_batches: int
    mel: MelType | None

    @property
    def clips(self) -> int:
        return len(self.dataset.clips(self.on.split))

    def extract(self, out: Path, *, watch: Callable[[int], None] = lambda done: None) -> dict[str, str]:
        """Writes the extraction, or goes on with it. The unusable clips and why."""
        alike = {"card": self.card, "policy": self.policy, "mel": self.mel, "shard_batches": self.shard_batches}
        description = describe(
            self.model,
            self.dataset,
            split=self.on.split,
            batch=self.batch,
            checkpoint=self.on.checkpoint,
            source=self.on.source,
            **alike,
        )
        with self.on.batches(self.dataset, self.model, batch=self.batch) as reading:
            found = extract(self.model, reading, out=out, description=description, watch=watch, **alike)
        return found.manifest.get("unusable", {})

    def evaluate(self) -> None:
        """The same clips and policy, evaluated and nothing kept."""
        with self.on.batches(self.dataset, self.model, batch=self.batch) as reading:
            evaluate(
                self.model,
                reading,
                card=self.card,
                policies={self.amount: self.policy},
                single_label=self.dataset.single_label,
            )


def show(job: Job, out: Path) -> None:
    """Extracts with a bar. It begins where the extraction goes on, so that its speed is this run's."""
    with cli.progress("extracting", cli.Rate()) as progress:
        bars = []

        def watch(done: int) -> None:
            if not bars:
                bars.append(progress.add_task("", total=job.clips, completed=done))
            progress.update(bars[0], completed=done)

        bad = job.extract(out, watch=watch)
    for sentence in left_out(bad.values()):
        cli.notice(sentence)
    cli.notice(f"{out} holds {job.clips - len(bad)} clips")


def compared(job: Job, *, beside: Path, times: int) -> None:
    """Times extraction and evaluation in turn, after a first pass of each that compiles, and prints the difference.

    The processor's time, of all threads, tells more than the clock's where other programs run too.
    """
    seconds: dict[str, list[tuple[float, float]]] = {"plain evaluation": [], "extraction, writing included": []}
    evaluation, extraction = seconds.values()
    for _ in range(times + 1):
        evaluation.append(timed(job.evaluate))
        with tempfile.TemporaryDirectory(dir=beside.absolute().parent) as folder:
            extraction.append(timed(lambda to=Path(folder) / "extraction": job.extract(to)))
    rows = [
        (name, *(f"{statistics.median(run[clock] for run in found[1:]):.2f}" for clock in (0, 1)), f"{found[0][0]:.2f}")
        for name, found in seconds.items()
    ]
    added = [
        statistics.median(after[clock] / before[clock] - 1 for before, after in zip(*runs, strict=True))
        for runs in [(evaluation[1:], extraction[1:])]
        for clock in (0, 1)
    ]
    notes = [f"Extraction adds {100 * added[0]:.1f} % time, {100 * added[1]:.1f} % of the processor's ({times} pairs)."]
    title = f"{job.clips} clips, {jax.devices()[0].device_kind}; medians"
    cli.print_table(title, ["pass", "time, s", "processor, s", "first time, compiling, s"], rows, notes=notes)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of the processor in all threads."""
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]
