"""The runtimes' contestants: `RUNTIMES` lists ONNX Runtime and OpenVINO in each precision, on our exported files.

A file is written by a process of its own (`exported`), so that the measured one holds the runtime and no compiler of
JAX's. Runtimes share it. Loading a file counts as compiling it.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import machine
from .job import Job, Unavailable


@dataclasses.dataclass(frozen=True)
class Variant:
    """A runtime, by its name in `jaxprune.export.runtimes`, and the precision it computes in."""

    runtime: str
    precision: str

    def missing(self) -> str:
        """The sentence for packages that this machine lacks, or nothing."""
        quantiser = ("onnxruntime",) if self.precision == "int8" else ()
        needed = dict.fromkeys(("onnx", *quantiser, self.runtime))
        absent = [name for name in needed if importlib.util.find_spec(name) is None]
        return f'{" and ".join(absent)} is not installed; pip install "jaxprune[export]"' if absent else ""


RUNTIMES: Mapping[str, Variant] = {
    "ort": Variant("onnxruntime", "float32"),
    "ort-int8": Variant("onnxruntime", "int8"),
    "openvino": Variant("openvino", "float32"),
    "openvino-bfloat16": Variant("openvino", "bfloat16"),
    "openvino-int8": Variant("openvino", "int8"),
}


class Exported:
    """The forward pass of an exported file."""

    def __init__(self, job: Job):
        from jaxprune.export.runtimes import RUNTIMES as RUNS

        if job.device != "cpu":
            raise Unavailable(f"exported files are measured on a CPU, not on a {job.device}")
        self.job, self.variant = job, RUNTIMES[job.contestant]
        self.opens = RUNS[self.variant.runtime].opens
        self.name = "cpu"
        self.mel, self.calls = job.mel(), {}
        PACKAGES[self.variant.runtime]()

    def prepare(self, keep_rate: float) -> dict[str, Any]:
        int8 = self.variant.precision == "int8"
        path = Path(self.job.files, f"{keep_rate!r}{'-int8' if int8 else ''}.onnx")
        if not path.exists():
            what = json.dumps([dataclasses.asdict(self.job), keep_rate, int8, str(path)])
            subprocess.run([sys.executable, "-m", f"{__package__}.exported", what], check=True, stdout=sys.stderr)
        self.memory_before = machine.resident_bytes()  # each file brings its own weights
        began = time.perf_counter()
        run = self.opens(path, precision=self.variant.precision, threads=len(self.job.cores))
        seconds = time.perf_counter() - began
        self.calls[keep_rate] = lambda: run({"mel": self.mel})["logits"]
        return {"compile_seconds": seconds, "file_bytes": path.stat().st_size}

    def call(self, keep_rate: float) -> Any:
        return self.calls[keep_rate]()

    def peak(self, keep_rate: float) -> tuple[Any, int | None]:
        return machine.process_peak(lambda: self.call(keep_rate), before=self.memory_before)

    def product(self, side: int) -> Any:
        raise Unavailable("matrix products are JAX's and PyTorch's to time")


def _import_onnxruntime() -> None:
    import onnxruntime  # noqa: F401


def _import_openvino() -> None:
    from jaxprune.export.runtimes import import_openvino

    import_openvino()


PACKAGES = {"onnxruntime": _import_onnxruntime, "openvino": _import_openvino}  # imported before memory is counted
