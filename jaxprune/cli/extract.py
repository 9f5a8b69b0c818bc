"""Writes what a model makes of every clip of a data set: scores, kept patches, patch statistics, logits, in shards.

jaxprune extract CHECKPOINT esc50 --root data/ESC-50 --keep-rate 0.7 --out extracted/esc50-0.7
jaxprune extract CHECKPOINT speech-commands --root data/speech_commands --keep-rate 1 --out extracted/words

The same command goes on with an extraction that was cut off. `jaxprune/analysis/extract.py` says what the files hold,
`jaxprune analyze` makes statistics of them. With --compare 5 nothing stays but a table: five extractions and five
plain evaluations in turn, and what extraction adds.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune.analysis.extract import extract
from jaxprune.analysis.identity import SHARD_CLIPS, MelType, describe
from jaxprune.cli import console as cli
from jaxprune.cli.opening import card_for
from jaxprune.cli.options import DataSource
from jaxprune.data.batches import Batches, Workers, eval_batches
from jaxprune.data.records import Split, first_few
from jaxprune.evaluation.evaluate import evaluate
from jaxprune.models import topk
from jaxprune.reduction.policy import DEFAULT_BLOCKS


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
def main(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    data: Annotated[DataSource, tyro.conf.arg(name="")],
    *,
    out: Path,
    split: Split = "test",
    keep_rate: float = 0.7,
    blocks: tuple[int, ...] = DEFAULT_BLOCKS,
    batch: int = 32,
    shard: int = SHARD_CLIPS,
    mel: MelType | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 2,
    unusable: float = 0.01,
    compare: int = 0,
) -> None:
    """Extract what a model makes of one split of a data set, at one keep rate.

    Args:
        checkpoint: a directory that jaxprune convert or jaxprune finetune has written.
        data: which data set, and where.
        out: the folder to write to, or to go on with.
        split: which clips.
        keep_rate: share of the patches kept at each pruning block; 1 prunes nothing.
        blocks: the blocks that prune, counted from 0.
        batch: clips computed together.
        shard: clips in a file, about: whole batches.
        mel: the type in which to keep the spectrograms too; they are most of the bytes.
        dtype: what the model computes in.
        threads: threads that decode.
        unusable: the share of clips that may be damaged or silent.
        compare: extract and evaluate so many times in turn instead, and tell what extraction adds.
    """
    for name, value, lowest in (("batch", batch, 1), ("shard", shard, 1), ("compare", compare, 0)):
        if value < lowest:
            raise ValueError(f"{name} is {value}; it must be at least {lowest}")
    dataset = data.read()
    card = card_for(checkpoint, dataset)
    model = checkpoints.load(checkpoint, dtype=dtype)
    policy = topk(model, dict.fromkeys(blocks, keep_rate))
    clips = len(dataset.clips(split))
    batch = min(batch, clips)
    shard_batches = max(1, shard // batch)

    def batches() -> Batches:
        workers = Workers(threads=threads)
        frames = card.model.frames
        return eval_batches(dataset, split, frames=frames, batch_size=batch, workers=workers, unusable=unusable)

    def extracted(out: Path, watch: Callable[[int], None]) -> dict[str, str]:
        """One extraction; the unusable clips."""
        description = describe(
            model,
            dataset,
            split=split,
            card=card,
            policy=policy,
            batch=batch,
            shard_batches=shard_batches,
            mel=mel,
            checkpoint=checkpoint,
            source={"kind": type(data).__name__, **dataclasses.asdict(data)},
        )
        with batches() as reading:
            found = extract(
                model,
                reading,
                out=out,
                description=description,
                card=card,
                policy=policy,
                mel=mel,
                shard_batches=shard_batches,
                watch=watch,
            )
        return found.manifest["unusable"]

    def evaluated() -> None:
        with batches() as reading:
            policies = {keep_rate: policy}
            evaluate(model, reading, card=card, policies=policies, single_label=dataset.single_label)

    if compare:
        out.parent.mkdir(parents=True, exist_ok=True)
        compared(evaluated, lambda folder: extracted(folder, lambda done: None), beside=out, times=compare, clips=clips)
        return
    with cli.progress("extracting", cli.Rate()) as progress:
        bars = []

        def watch(done: int) -> None:
            """The bar begins where the extraction goes on, so that its speed is this run's."""
            if not bars:
                bars.append(progress.add_task("", total=clips, completed=done))
            progress.update(bars[0], completed=done)

        bad = extracted(out, watch)
    if bad:
        reasons = list(bad.values())
        cli.notice(f"{len(reasons)} of {clips} clips could not be used: {first_few(reasons)}")
    cli.notice(f"{out} holds {clips - len(bad)} clips")


def compared(
    evaluated: Callable[[], object], extracted: Callable[[Path], object], *, beside: Path, times: int, clips: int
) -> None:
    """Times both in turn, after a first pass of each that compiles, and prints what extraction adds.

    The processor's time, of all threads, tells more than the clock's where other programs run too.
    """
    seconds: dict[str, list[tuple[float, float]]] = {"plain evaluation": [], "extraction, writing included": []}
    evaluation, extraction = seconds.values()
    for _ in range(times + 1):
        evaluation.append(timed(evaluated))
        with tempfile.TemporaryDirectory(dir=beside.absolute().parent) as folder:
            extraction.append(timed(lambda to=Path(folder) / "extraction": extracted(to)))
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
    title = f"{clips} clips, {jax.devices()[0].device_kind}; medians"
    cli.print_table(title, ["pass", "time, s", "processor, s", "first time, compiling, s"], rows, notes=notes)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in all threads."""
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]
