"""Decodes and resamples a data set once, into array_record shards that every other command reads in its place.

    jaxprune shard speech-commands --root data/speech_commands_v0.02 --out shards/speech
    jaxprune finetune ast-speechcommands --data.root shards/speech
    jaxprune evaluate CHECKPOINT shards --root shards/speech

The same command goes on where it was cut off. Batches are those of the original files. jaxprune/data/shard_files.py
says what is in a shard.
"""

import time
from pathlib import Path

from jaxprune.cli import console as cli
from jaxprune.cli.options import DataSource, left_out, read, source, with_data
from jaxprune.data.shard_files import Samples
from jaxprune.data.shard_writer import write


@with_data
def main(
    data: DataSource,
    *,
    out: Path,
    clips: int = 4096,
    samples: Samples = "int16",
    workers: int = 2,
    unusable: float = 0.01,
) -> None:
    """Decode every clip of a data set into a folder of shards.

    Args:
        data: which data set, and where. Folds are kept: the one to test on is chosen when the shards are read.
        out: the folder; new, or one in which the same command was interrupted.
        clips: clips a shard; 4096 of 10 s are 1.3 GB in int16.
        samples: int16 takes half the room and is exact for 16-bit sound at 16 kHz; float32 is exact for all.
        workers: threads that decode.
        unusable: the share of clips that may be damaged or silent.
    """
    dataset = read(data)
    began = time.perf_counter()
    with cli.progress("decoding", cli.Rate(digits=0)) as progress:
        bar = progress.add_task("", total=len(dataset.records))
        index = write(
            dataset,
            out,
            clips=clips,
            samples=samples,
            source=source(data),
            workers=workers,
            unusable=unusable,
            watch=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    size = sum(shard["bytes"] for shard in index["shards"])
    notes = [
        f"{len(index['shards'])} shards, {size / 1e6:.1f} MB of {samples}; "
        f"this run took {time.perf_counter() - began:.0f} s."
    ]
    if index["inexact"]:
        notes.append(f"{index['inexact']} clips were rounded to 16 bits (--samples float32 keeps every bit).")
    notes += left_out([f"{name}: {reason}" for name, reason in index["unusable"].items()])
    cli.print_table(f"{dataset.name}: {out}", ("split", "clips"), index["sizes"].items(), notes=notes)
