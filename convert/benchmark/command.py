"""How fast the JAX models are next to PyTorch on this machine, and whether pruning saves time as it saves arithmetic.

    jaxprune benchmark --family audiomae ast --batch 1 8 --out results.json
    jaxprune benchmark --family ast --torch eager sdpa compile compile-sdpa transformers --keep-rates 1.0 0.5
    jaxprune benchmark --work forward step --batch 4 --keep-rates 0.7 0.5 --dtype float32 bfloat16
    jaxprune benchmark --quick

Needs PyTorch (`pip install "jaxprune[convert]"`). Give it a machine with nothing else to do: samples during which
other processes used the cores are dropped and counted. Full-size models at batch 8 take some minutes.
"""

import datetime
from pathlib import Path
from typing import Literal

from jaxprune.convert.benchmark import machine, report
from jaxprune.convert.benchmark.job import DEVICES
from jaxprune.convert.benchmark.referee import Plan, run, smallest

from jaxprune.cli import console as cli
from jaxprune.config import Family


def main(
    *,
    family: tuple[Family, ...] = ("audiomae",),
    size: tuple[Literal["micro", "tiny", "small", "base", "large"], ...] | None = None,
    frames: tuple[int, ...] | None = None,
    batch: tuple[int, ...] | None = None,
    keep_rates: tuple[float, ...] | None = None,
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",),
    torch: tuple[Literal["eager", "sdpa", "compile", "compile-sdpa", "transformers"], ...] = ("eager", "sdpa"),
    work: tuple[Literal["forward", "step"], ...] = ("forward",),
    device: Literal["cpu", "gpu"] = "cpu",
    repeats: int | None = None,
    threads: int | None = None,
    out: Path | None = None,
    quick: bool = False,
) -> None:
    """Time the forward pass or a training step in JAX and PyTorch, turn by turn, for every combination of the options.

    Args:
        family: model families.
        size: base, as others published or micro; base unless --quick.
        frames: spectrogram lengths, 10 ms each; 1024 unless --quick.
        batch: clips in a call; 8 unless --quick.
        keep_rates: shares of patches kept at blocks 3, 6 and 9; 1.0 0.7 0.5 unless --quick. 1.0 is always measured.
        dtype: compute types; PyTorch's bfloat16 is autocast.
        torch: PyTorch as the authors ran it (eager), with fused attention in the blocks that do not prune (sdpa),
            either through torch.compile (compile, compile-sdpa), and Hugging Face's unpruned AST (transformers).
        work: the forward pass, or a training step: forward, backward and AdamW, labels at random.
        device: where both frameworks compute.
        repeats: samples of each; 7 unless --quick.
        threads: cores for either framework; all unless given.
        out: where to save everything as JSON, every sample included.
        quick: see that it works, in seconds: smallest size, 128 frames, batch 1, keep rates 1.0 0.5, 2 repeats, each
            unless given. Its times mean little.
    """
    plan = Plan(
        families=family,
        sizes=size or ((smallest(family),) if quick else ("base",)),
        frames=frames or ((128,) if quick else (1024,)),
        batches=batch or ((1,) if quick else (8,)),
        keep_rates=keep_rates or ((1.0, 0.5) if quick else (1.0, 0.7, 0.5)),
        dtypes=dtype,
        torch=torch,
        works=work,
        device=device,
        repeats=repeats if repeats is not None else (2 if quick else 7),
        threads=threads,
        min_seconds=0.0 if quick else 0.25,
        retries=0 if quick else 10,
        side=512 if quick else None,
    )
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: {out.absolute().parent} is not a directory")
    about = machine.describe(machine.usable_cores(threads))
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    raw, rows = [], []
    for result in run(plan, tell=cli.notice):
        raw.append(result)
        rows = report.digest(raw)
        if out is not None:  # after each result, so that what a long run has measured survives it
            report.save(out, {"began": began, "machine": about, "repeats": plan.repeats, "rows": rows})
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    title = (
        f"Timed on {rows[0]['device_name']}, {about['cpu']}, {about['threads']} threads; {versions}; "
        f"commit {about['commit']}; {began}"
    )
    notes = [report.agreement(rows), *plan.remarks(), report.products(rows), *report.NOTES, *DEVICES[device].notes]
    if not about["contention_watched"]:
        notes.append("Use of the cores by other processes was NOT measured (Linux only).")
    cli.print_table(title, report.COLUMNS, report.table(rows), notes=notes)
    if out is not None:
        cli.notice(f"saved {out}")
