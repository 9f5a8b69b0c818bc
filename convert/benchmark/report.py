"""What the samples mean: medians, paired ratios, speed-up against arithmetic, and the one table that shows them.

Every figure derived here follows from numbers that stay in the same JSON, samples included.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.files import write_text

NOTES = (
    "ms: median of single calls (interquartile range). ratio: jax's median / torch's, below 1 JAX is faster "
    "(quartiles of the paired samples' ratios).",
    "gain: speed-up over keep rate 1.0 as a share of the MAC ratio; 1.00 means that time follows the arithmetic. "
    "GMACs are per clip, of a training step three times the forward pass's; GFLOP/s 2 x GMACs x batch / time.",
    "peak: memory of one call with weights and input, less what importing the libraries takes; XLA temp: what its "
    "compiled program allocates for itself.",
    "dropped: samples in which other processes used the cores, taken again. Memory allocators are the frameworks' "
    "defaults.",
)


def digest(raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Raw results with their statistics filled in. Every group must hold a result at keep rate 1."""
    unpruned = {group(row): row for row in raw if row["keep_rate"] == 1}
    rows = []
    for row in raw:
        base = unpruned[group(row)]
        mac_ratio = base["gmacs"] / row["gmacs"]
        contestants = {}
        for name, facts in row["contestants"].items():
            spread = summary(facts["seconds"])
            speedup = float(np.median(base["contestants"][name]["seconds"])) / spread["median"]
            contestants[name] = dict(facts) | {
                **spread,
                "gflops": 2 * row["gmacs"] * row["batch"] / spread["median"],
                "speedup": speedup,
                "speedup_per_mac_ratio": speedup / mac_ratio,
            }
        jax = contestants["jax"]["seconds"]
        ratios = {name: paired_ratio(jax, facts["seconds"]) for name, facts in contestants.items() if name != "jax"}
        rows.append(dict(row) | {"mac_ratio": mac_ratio, "contestants": contestants, "jax_over": ratios})
    return rows


def group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What results must share for their speed-ups to be compared."""
    return tuple(row[field] for field in ("work", "family", "size", "frames", "batch", "dtype"))


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Quotient of the medians, and quartiles of the quotients taken pair by pair, in the order of sampling."""
    low, high = np.percentile(np.divide(ours, theirs), [25, 75])
    return {"ratio": float(np.median(ours) / np.median(theirs)), "quartiles": [float(low), float(high)]}


COLUMNS = (
    *("model", "T x batch", "keep", "GMACs", "vs torch", "torch ms", "jax ms", "ratio", "GFLOP/s\ntorch, jax"),
    *("gain\ntorch, jax", "compile\ns", "peak MB\ntorch, jax", "XLA temp\nMB", "dropped"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line for each result and PyTorch variant, under `COLUMNS`."""
    lines = []
    for row in rows:
        jax = row["contestants"]["jax"]
        for name, ratio in row["jax_over"].items():
            torch = row["contestants"][name]
            dropped, contended = (torch[count] + jax[count] for count in ("dropped", "contended"))
            low, high = ratio["quartiles"]
            lines.append(
                [
                    f"{row['family']} {row['size']}\n{row['work']}, {row['dtype']}",
                    f"{row['frames']} x {row['batch']}",
                    f"{row['keep_rate']:g}",
                    f"{row['gmacs']:.2f}",
                    name.removeprefix("torch-"),
                    milliseconds(torch),
                    milliseconds(jax),
                    f"{ratio['ratio']:.3f}\n({low:.2f}-{high:.2f})",
                    f"{torch['gflops']:.0f}, {jax['gflops']:.0f}",
                    f"{torch['speedup_per_mac_ratio']:.2f}, {jax['speedup_per_mac_ratio']:.2f}",
                    f"{jax['compile_seconds']:.1f}",
                    f"{megabytes(torch['peak_bytes'])}, {megabytes(jax['peak_bytes'])}",
                    megabytes(jax["temp_bytes"]),
                    str(dropped) + (f"\n{contended} kept\ncontended" if contended else ""),
                ]
            )
    return lines


def agreement(rows: Sequence[Mapping[str, Any]]) -> str:
    """That the two did the same work, in a sentence."""
    differences = [facts["difference"] for row in rows for facts in row["contestants"].values()]
    return f"The frameworks' numbers (logits; losses of a training step) differ by at most {max(differences):.0e}."


def milliseconds(facts: Mapping[str, Any]) -> str:
    low, high = facts["quartiles"]
    digits = 0 if facts["median"] >= 0.1 else 1
    return f"{facts['median'] * 1e3:.{digits}f}\n({(high - low) * 1e3:.{digits}f})"


def megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f}"


def save(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
