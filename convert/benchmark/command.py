"""The command `jaxprune benchmark`: the JAX models next to PyTorch on this machine, in time and in arithmetic.

    jaxprune benchmark --family audiomae ast --batch 1 8 --out results.json
    jaxprune benchmark --family ast --torch eager sdpa compile compile-sdpa transformers --keep-rates 1.0 0.5
    jaxprune benchmark --work forward step --batch 4 --keep-rates 0.7 0.5 --dtype float32 bfloat16
    jaxprune benchmark --method tome --work forward step
    jaxprune benchmark --family ast --batch 1 8 --dtype float32 bfloat16 --torch transformers \
        --runtimes ort ort-int8 openvino openvino-bfloat16 openvino-int8
    jaxprune benchmark --quick

It needs PyTorch (`pip install "jaxprune[convert]"`) and a machine with nothing else to do. Samples during which other
processes used the cores are dropped and counted. Full-size models at batch 8 take some minutes.
"""

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxprune.amounts import Saving
from jaxprune.cli import console as cli
from jaxprune.cli.options import held
from jaxprune.config import Family, ModelConfig, Size
from jaxprune.registry import MethodName, rates_for

from . import machine, report
from .job import DEVICES
from .referee import CLASSES, Plan, run, smallest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The plan's values where an option is not given. `size` is of all the families."""

    size: Callable[[Sequence[str]], str]
    frames: int
    batch: int
    keep_rates: tuple[float, ...]
    repeats: int
    min_seconds: float
    retries: int
    side: int | None


FULL = Scale(
    size=lambda families: "base",
    frames=1024,
    batch=8,
    keep_rates=(1.0, 0.7, 0.5),
    repeats=7,
    min_seconds=0.25,
    retries=10,
    side=None,
)
QUICK = Scale(
    size=smallest,
    frames=128,
    batch=1,
    keep_rates=(1.0, 0.5),
    repeats=2,
    min_seconds=0.0,
    retries=0,
    side=512,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Every combination of these is measured."""

    family: tuple[Family, ...] = ("audiomae",)
    """model families."""
    size: tuple[Size, ...] | None = None
    """as published, or micro or mini; base unless --quick."""
    frames: tuple[int, ...] | None = None
    """spectrogram lengths, 10 ms each; 1024 unless --quick."""
    batch: tuple[int, ...] | None = None
    """clips in a call; 8 unless --quick."""
    keep_rates: tuple[float, ...] | None = None
    """shares of patches kept at blocks 3, 6 and 9; 1.0 0.7 0.5 unless --quick. 1.0 is always measured."""
    savings: tuple[float, ...] = ()
    """shares of the arithmetic to save, beside or in place of keep rates: each is the keep rate at which topk saves it,
    so that all methods and PyTorch cost the same. For one family, size and length."""
    method: MethodName = "topk"
    """the way to reduce tokens; tome and pool cost as much as topk does at a keep rate. PyTorch has topk alone.
    dynamic has random predictors."""
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """compute types; PyTorch's bfloat16 is autocast."""
    torch: tuple[Literal["eager", "sdpa", "compile", "compile-sdpa", "transformers"], ...] = ("eager", "sdpa")
    """PyTorch as the authors ran it (eager), with fused attention in the blocks that do not prune (sdpa), either of
    them through torch.compile (compile, compile-sdpa), and Hugging Face's unpruned AST (transformers). None after the
    option measures JAX alone."""
    runtimes: tuple[Literal["ort", "ort-int8", "openvino", "openvino-bfloat16", "openvino-int8"], ...] = ()
    """runtimes that run our exported files, each in its own precision: measured once, beside that --dtype, or beside
    the first where it is not asked for; forward pass only."""
    work: tuple[Literal["forward", "step"], ...] = ("forward",)
    """the forward pass, or a training step: forward, backward and AdamW, labels at random."""
    device: Literal["cpu", "gpu"] = "cpu"
    """where both frameworks compute."""
    repeats: int | None = None
    """samples of each; 7 unless --quick."""
    threads: int | None = None
    """cores for either framework; all unless given."""
    quick: bool = False
    """see that it works, in seconds: smallest size, 128 frames, batch 1, keep rates 1.0 0.5, 2 repeats, each unless
    given. Its times mean little."""

    def plan(self) -> Plan:
        """The options with the defaults filled in. Raises `ValueError` as `Plan`."""
        scale = QUICK if self.quick else FULL
        sizes, frames = self.size or (scale.size(self.family),), self.frames or (scale.frames,)
        rates = self.keep_rates or (() if self.savings else scale.keep_rates)
        return Plan(
            families=self.family,
            sizes=sizes,
            frames=frames,
            batches=self.batch or (scale.batch,),
            keep_rates=(*rates, *self.rates_for_savings(sizes, frames)),
            dtypes=self.dtype,
            torch=self.torch,
            runtimes=self.runtimes,
            works=self.work,
            device=self.device,
            method=self.method,
            repeats=scale.repeats if self.repeats is None else self.repeats,
            threads=self.threads,
            min_seconds=scale.min_seconds,
            retries=scale.retries,
            side=scale.side,
        )

    def rates_for_savings(self, sizes: Sequence[str], frames: Sequence[int]) -> tuple[float, ...]:
        """The keep rates of top-k for the savings. Raises `ValueError` for several geometries, whose rates differ."""
        if not self.savings:
            return ()
        if len(self.family) * len(sizes) * len(frames) > 1:
            raise ValueError("--savings are for one family, size and length; measure others apart, or give keep rates")
        config = ModelConfig.of_size(self.family[0], sizes[0], frames=frames[0], classes=CLASSES)
        return tuple(next(iter(rates_for(config, Saving(saving)).values())) for saving in self.savings)


def main(*, asked: Annotated[Asked, tyro.conf.arg(name="")] = Asked(), out: Path | None = None) -> None:
    """Time the forward pass or a training step in JAX and PyTorch, turn by turn, for every combination of the options.

    Args:
        asked: what to measure.
        out: where to save everything as JSON, every sample included.
    """
    plan = asked.plan()
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: {out.absolute().parent} is not a directory")
    with held(out):
        about = machine.describe(machine.usable_cores(plan.threads))
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        raw, rows = [], []
        for result in run(plan, tell=cli.notice):
            raw.append(result)
            rows = report.digest(raw)
            if out is not None:  # after each result, so that what a long run has measured survives it
                report.save(out, {"began": began, "machine": about, "repeats": plan.repeats, "rows": rows})
        show(rows, plan, about=about, began=began)
        if out is not None:
            cli.notice(f"saved {out}")


def show(rows: Sequence[Mapping[str, Any]], plan: Plan, *, about: Mapping[str, Any], began: str) -> None:
    """Prints the table, and the machine and versions behind it."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    title = (
        f"Timed on {rows[0]['device_name']}, {about['cpu']}, {about['threads']} threads; {versions}; "
        f"commit {about['commit']}; {began}"
    )
    notes = [report.agreement(rows), *plan.remarks(), report.products(rows), *report.NOTES, *DEVICES[plan.device].notes]
    if not about["contention_watched"]:
        notes.append("Use of the cores by other processes was NOT measured (Linux only).")
    cli.print_table(title, report.COLUMNS, report.table(rows), notes=notes)
