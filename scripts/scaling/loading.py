"""Measures what it costs to read clips: sound files against shards, in CPU time, through the loader that trains.

python -m scripts.scaling.loading --out docs/scaling/loading.json

Makes noise in a temporary folder as wav (16 and 44.1 kHz) and flac, decodes it into shards (scripts/shard.py), and
reads every kind in turn. Everything is in the page cache, so a disk's own speed is not in the figures. CPU time does
not mind a busy machine much.
"""

import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from jaxprune.cli import console as cli
from jaxprune.data import shard_writer, shards
from jaxprune.data.batches import Workers, eval_batches
from jaxprune.data.records import Dataset, Record
from jaxprune.features import SAMPLE_RATE, frame_count
from jaxprune.files import write_text

KINDS = {"wav, 16 kHz": ("wav", 16000), "wav, 44.1 kHz": ("wav", 44100), "flac, 16 kHz": ("flac", 16000)}
SHARDS = "shards, int16"


def main(*, seconds: tuple[int, ...] = (10, 1), clips: int = 256, rounds: int = 3, out: Path | None = None) -> None:
    """Time the loader on each kind of clip, turn by turn, with one thread.

    Args:
        seconds: lengths of the clips.
        clips: clips of each kind.
        rounds: passes over each kind; the median counts.
        out: where to save the figures as JSON.
    """
    if min(*seconds, clips, rounds, 1) < 1:
        raise ValueError(f"seconds {seconds}, clips {clips} and rounds {rounds} must be at least 1")
    found = []
    for length in seconds:
        with tempfile.TemporaryDirectory() as folder:
            sets = {kind: noise(Path(folder) / kind, *KINDS[kind], seconds=length, clips=clips) for kind in KINDS}
            shard_writer.write(sets["wav, 16 kHz"], Path(folder) / "shards")
            sets[SHARDS] = shards.Shards(root=Path(folder) / "shards").read()
            spent = {kind: [] for kind in sets}
            for _ in range(rounds):
                for kind, dataset in sets.items():
                    spent[kind].append(read(dataset, seconds=length))
        for kind, times in spent.items():
            cpu, wall = (statistics.median(one[i] for one in times) for i in (0, 1))
            found.append({"seconds": length, "kind": kind, "cpu_ms": 1e3 * cpu / clips, "wall_ms": 1e3 * wall / clips})
    rows = [(f["kind"], f["seconds"], f"{f['cpu_ms']:.3f}", f"{1e3 / f['cpu_ms']:.0f}") for f in found]
    cli.print_table(
        f"{clips} clips, medians of {rounds}", ("kind", "seconds", "CPU ms a clip", "clips a CPU second"), rows
    )
    if out is not None:
        content = {"processor": platform.processor() or platform.machine(), "clips": clips, "rounds": rounds}
        write_text(out, json.dumps(content | {"loading": found}, indent=1) + "\n")
        cli.notice(f"saved {out}")


def noise(folder: Path, suffix: str, rate: int, *, seconds: int, clips: int) -> Dataset:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(clips):
        path = folder / f"{i:05d}.{suffix}"
        soundfile.write(path, rng.normal(0, 0.05, seconds * rate), rate, "PCM_16")
        records.append(Record(path=str(path), labels=(0,), split="test"))
    return Dataset(name="noise", labels=("noise",), records=tuple(records))


def read(dataset: Dataset, *, seconds: int) -> tuple[float, float]:
    """CPU and wall-clock seconds of one pass."""
    frames = frame_count(seconds * SAMPLE_RATE)
    cpu, wall = time.process_time(), time.perf_counter()
    with eval_batches(dataset, frames=frames, batch_size=16, workers=Workers(threads=1, ahead=1)) as batches:
        for _ in batches:
            pass
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    cli.run(main)
