"""The statistics of the samples: medians, paired ratios, speed-up against arithmetic, and the table of them.

Every figure derived here follows from numbers that stay in the same JSON, samples included.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.files import write_text

from .runtime_side import RUNTIMES

NOTES = (
    "ms: median of calls, each right after one of the same (interquartile range). jax/it: jax's median over that "
    "contestant's, below 1 JAX is faster (quartiles of the paired samples' ratios); on jax's line the ratio to the "
    "fastest PyTorch, which is marked *.",
    "gain: speed-up over keep rate 1.0 as a share of the MAC ratio; 1.00 means that time follows the arithmetic. "
    "GMACs are per clip, of a training step three times the forward pass's; GFLOP/s 2 x GMACs x batch / time.",
    "compile: of PyTorch what the first call took above a later one, of runtimes loading the file; no cache is used. "
    "peak: memory of one call with weights and input, on a CPU less what importing the libraries takes (of it what "
    "XLA's program itself holds; the rest is mostly what the compiler leaves, of all keep rates so far).",
    "dropped: samples in which other processes used the cores, taken again (of those kept, how many were contended all "
    "the same). Memory allocators are the frameworks' defaults.",
)


def digest(raw: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Raw results with their statistics filled in. Every group must hold a result at keep rate 1.

    `peak_gflops` is the matrix product's, the best of all rounds and both frameworks, and `peak_share` what a
    contestant reaches of it. `jax_over` holds JAX's ratio to each other contestant, `best` names the fastest PyTorch,
    None where none was measured.
    """
    unpruned = {group(row): row for row in raw if row["keep_rate"] == 1}
    rows = []
    for row in raw:
        base = unpruned[group(row)]
        mac_ratio = base["gmacs"] / row["gmacs"]
        peak = peak_gflops(row["product"])
        contestants = {}
        for name, facts in row["contestants"].items():
            spread = summary(facts["seconds"])
            gflops = 2 * row["gmacs"] * row["batch"] / spread["median"]
            speedup = float(np.median(base["contestants"][name]["seconds"])) / spread["median"]
            contestants[name] = dict(facts) | {
                **spread,
                "gflops": gflops,
                "peak_share": gflops / peak,
                "speedup": speedup,
                "speedup_per_mac_ratio": speedup / mac_ratio,
            }
        jax = contestants["jax"]["seconds"]
        ratios = {name: paired_ratio(jax, facts["seconds"]) for name, facts in contestants.items() if name != "jax"}
        torch = [name for name in ratios if name.startswith("torch-")]
        best = max(torch, key=lambda name: ratios[name]["ratio"], default=None)
        facts = {"mac_ratio": mac_ratio, "peak_gflops": peak, "contestants": contestants, "jax_over": ratios}
        rows.append(dict(row) | facts | {"best": best})
    return rows


def peak_gflops(product: Mapping[str, Any]) -> float:
    """The best speed of multiplying square matrices, in either framework."""
    fastest = min(min(seconds) for name, seconds in product.items() if name != "side")
    return 2 * product["side"] ** 3 / fastest / 1e9


def group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The fields that results must share for their speed-ups to be compared."""
    return tuple(row[field] for field in ("work", "family", "size", "frames", "batch", "dtype", "device"))


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {"median": float(median), "quartiles": [float(low), float(high)]}


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Quotient of the medians, and quartiles of the quotients taken pair by pair, in the order of sampling."""
    low, high = np.percentile(np.divide(ours, theirs), [25, 75])
    return {"ratio": float(np.median(ours) / np.median(theirs)), "quartiles": [float(low), float(high)]}


COLUMNS = (
    *("model", "T x batch", "keep", "GMACs", "framework", "ms", "jax/it", "GFLOP/s", "of peak", "gain"),
    *("compile s", "peak MB", "dropped"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line for each result and contestant, under `COLUMNS`."""
    lines = []
    for row in rows:
        what = [
            f"{row['family']} {row['size']}, {row.get('method', 'topk')}\n{row['work']}, {row['dtype']}",
            f"{row['frames']} x {row['batch']}",
            f"{row['keep_rate']:g}",
            f"{row['gmacs']:.2f}",
        ]
        for name, facts in row["contestants"].items():
            against = row["jax_over"].get(name if name != "jax" else row["best"])
            contended = f"\n{facts['contended']} kept\ncontended" if facts["contended"] else ""
            lines.append(
                [
                    *what,
                    name.removeprefix("torch-") + (" *" if name == row["best"] else ""),
                    milliseconds(facts),
                    "-"
                    if against is None
                    else "{:.3f}\n({:.2f}-{:.2f})".format(against["ratio"], *against["quartiles"]),
                    f"{facts['gflops']:.0f}",
                    f"{facts['peak_share']:.0%}",
                    f"{facts['speedup_per_mac_ratio']:.2f}",
                    f"{facts['compile_seconds']:.1f}",
                    megabytes(facts["peak_bytes"])
                    + (f"\n({megabytes(facts['program_bytes'])})" if "program_bytes" in facts else ""),
                    f"{facts['dropped']}{contended}",
                ]
            )
            what = ["", "", "", ""]
    return lines


def products(rows: Sequence[Mapping[str, Any]]) -> str:
    """The device's peak in each dtype, the best of its groups, in a sentence."""
    peaks: dict[str, float] = {}
    for row in rows:
        peaks[row["dtype"]] = max(row["peak_gflops"], peaks.get(row["dtype"], 0.0))
    side = rows[0]["product"]["side"]
    found = ", ".join(f"{peak:.0f} GFLOP/s in {dtype}" for dtype, peak in peaks.items())
    return f"peak: {found}, of a {side} x {side} matrix product in the same rounds, the faster framework's best."


def agreement(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on how closely the frameworks' numbers agree."""
    worst: dict[str, float] = {}
    for row in rows:
        for name, facts in row["contestants"].items():
            precision = RUNTIMES[name].precision if name in RUNTIMES else row["dtype"]
            pair = precision if precision == row["dtype"] else f"{precision} (from {row['dtype']})"
            if name != "jax":
                worst[pair] = max(facts["difference"], worst.get(pair, 0.0))
    if not worst:
        return "JAX alone was measured; nothing was compared."
    found = ", ".join(f"{difference:.0e} in {pair}" for pair, difference in worst.items())
    return f"Numbers (logits; losses of a training step) differ from JAX's by at most {found}."


def milliseconds(facts: Mapping[str, Any]) -> str:
    low, high = facts["quartiles"]
    digits = 0 if facts["median"] >= 0.1 else 1
    return f"{facts['median'] * 1e3:.{digits}f}\n({(high - low) * 1e3:.{digits}f})"


def megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f}"


def save(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
