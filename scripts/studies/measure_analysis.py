"""Times the analysis against a per-clip pairwise loop in PyTorch, in one run, on an extraction of random numbers.

python -m scripts.studies.measure_analysis --clips 2000 --timed 10

Both compute Kendall's correlation by the published definition for two signals in every block. The loop comes in two
forms: a step per patch (all its later partners at once), and a step per clip and block (all pairs at once, on one
thread, which is the faster way for matrices this small). Each runs on `timed` clips between repeats of ours and is
scaled to all; the values must agree. The whole analysis, with everything else and its intervals, is timed beside it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from jaxprune.analysis.analyze import SIGNALS, analyze, patch_values
from jaxprune.analysis.extraction import Extraction, read_extraction
from jaxprune.analysis.kendall import pair_counts
from jaxprune.config import ModelConfig
from tests.extractions import write_random


def ours(extraction: Extraction) -> np.ndarray:
    """(signals, blocks, clips), with everything it takes from the files on: reading, clusters, ranks, counts."""
    found = []
    for name in SIGNALS:
        signal = extraction.column(name)
        clusters = patch_values(signal).clusters
        ranks = clusters.ranks(signal)
        for block in range(extraction.config.depth):
            ids = extraction.scored(block).astype(np.intp)
            here = np.take_along_axis(ranks, ids, axis=1)
            counts = pair_counts(extraction.score(block), here, levels=len(clusters.centres))
            found.append(counts.agreement / counts.pairs)
    return np.array(found).reshape(len(SIGNALS), extraction.config.depth, -1)


def loop(extraction: Extraction, tau, clips: int) -> tuple[np.ndarray, float]:
    """The same for the first clips, one at a time, and the seconds a clip; reading and clusters are not timed."""
    inputs = []
    for name in SIGNALS:
        signal = extraction.column(name)
        ranks = patch_values(signal).clusters.ranks(signal)
        for block in range(extraction.config.depth):
            ids = extraction.scored(block)[:clips].astype(np.intp)
            here = np.take_along_axis(ranks[:clips], ids, axis=1)
            inputs.append((torch.tensor(extraction.score(block)[:clips]), torch.tensor(here, dtype=torch.float32)))
    began = time.perf_counter()
    found = [[tau(score[clip], rank[clip]) for score, rank in inputs] for clip in range(clips)]
    seconds = time.perf_counter() - began
    return np.array(found).T.reshape(len(SIGNALS), extraction.config.depth, clips), seconds / clips


def by_patch(score: torch.Tensor, rank: torch.Tensor) -> float:
    agreement, pairs = 0, 0
    for i in range(len(score) - 1):
        product = (score[i] - score[i + 1 :]) * (rank[i] - rank[i + 1 :])
        agreement += (product >= 0).sum().item() - (product < 0).sum().item()
        pairs += len(product)
    return agreement / pairs


def by_matrix(score: torch.Tensor, rank: torch.Tensor) -> float:
    n = len(score)
    product = (score[:, None] - score[None]) * (rank[:, None] - rank[None])
    discordant = (product < 0).sum().item() / 2
    return 1 - 2 * discordant / (n * (n - 1) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--timed", type=int, default=10, help="clips that the loops see in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = ModelConfig.of_size("audiomae", "base", classes=50, frames=512)
    loops = {"a step per patch": by_patch, "a step per clip and block": by_matrix}
    times: dict[str, list[float]] = {name: [] for name in ("ours", *loops)}
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_random(Path(folder, name), config, clips=args.clips, keep=keep)
            for name, keep in (("unpruned", {}), ("pruned", dict.fromkeys((3, 6, 9), 0.7)))
        ]
        unpruned, pruned = map(read_extraction, paths)
        ours(unpruned)
        for _ in range(args.repeats):
            began = time.perf_counter()
            expected = ours(unpruned)
            times["ours"].append(time.perf_counter() - began)
            for name, tau in loops.items():
                found, seconds = loop(unpruned, tau, args.timed)
                np.testing.assert_allclose(found, expected[:, :, : args.timed], atol=1e-12)
                times[name].append(seconds * args.clips)
        began = time.perf_counter()
        analyze(unpruned)
        middle = time.perf_counter()
        analyze(pruned, unpruned=unpruned)
        ended = time.perf_counter()
    print(f"{args.clips} clips, {config.patches} patches, {config.depth} blocks, 2 signals; medians of {args.repeats}")
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"Kendall, ours: {median['ours']:.2f} s (with reading and clusters)")
    for name in loops:
        ratio = median[name] / median["ours"]
        print(f"Kendall, PyTorch, {name}: {median[name]:.1f} s, scaled from {args.timed} clips: {ratio:.0f} times ours")
    print(f"whole analysis, unpruned: {middle - began:.1f} s; pruned, beside the unpruned: {ended - middle:.1f} s")


if __name__ == "__main__":
    main()
