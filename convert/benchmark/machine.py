"""The machine a benchmark runs on: its description, other users of its cores, and the memory a process took.

Reads Linux's /proc. Elsewhere the unknown is None.
"""

import contextlib
import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CONTENDED_SHARE = 0.03  # of the cores' time, spent by others during a sample
CONTENDED_TICKS = 3  # below this many clock ticks the kernel's own accounting is no better than a guess
LINUX = platform.system() == "Linux"


@dataclass(frozen=True)
class Window:
    """One watched stretch of time.

    `share` of the cores' time went to other processes or to the hypervisor; None where that cannot be told.
    `contended` is true where it is enough to spoil a measurement.
    """

    share: float | None
    contended: bool


def watched(work: Callable[[], T], *, cores: Collection[int], ours: Iterable[int]) -> tuple[T, Window]:
    """The result of `work`, and the use that processes other than `ours` (ids) made of `cores` meanwhile."""
    if not LINUX:
        return work(), Window(None, False)
    ours = tuple(ours)
    began, busy, own = time.perf_counter(), busy_ticks(cores), own_ticks(ours)
    result = work()
    elapsed = time.perf_counter() - began
    others = max(0, (busy_ticks(cores) - busy) - (own_ticks(ours) - own))
    share = others / os.sysconf("SC_CLK_TCK") / (elapsed * len(cores))
    return result, Window(share, share > CONTENDED_SHARE and others >= CONTENDED_TICKS)


def await_quiet(*, cores: Collection[int], ours: Iterable[int], patience: float) -> None:
    """Sleeps until others leave the cores alone for half a second, `patience` seconds at most."""
    ours, give_up = tuple(ours), time.monotonic() + patience
    while time.monotonic() < give_up:
        _, window = watched(lambda: time.sleep(0.5), cores=cores, ours=ours)
        if not window.contended:
            return


def busy_ticks(cores: Collection[int]) -> int:
    """Ticks in which these cores did anything, or would have but for the hypervisor."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total


def own_ticks(ours: Iterable[int]) -> int:
    """Ticks these processes have used, all their threads together."""
    total = 0
    for pid in ours:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
        total += int(fields[11]) + int(fields[12])  # user, system
    return total


def usable_cores(threads: int | None) -> list[int]:
    """The first `threads` cores this process may run on, or all of them.

    Raises `ValueError` for more threads than cores, and for fewer where processes cannot be pinned.
    """
    if not hasattr(os, "sched_getaffinity"):
        count = os.cpu_count() or 1
        if threads not in (None, count):
            raise ValueError(f"threads is {threads}, but this system cannot limit JAX to fewer than its {count} cores")
        return list(range(count))
    allowed = sorted(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= len(allowed):
        raise ValueError(f"threads is {threads}; this process may use 1 to {len(allowed)} cores")
    return allowed[:threads]


def pin(cores: Collection[int]) -> None:
    """Keeps this process on `cores`. XLA sizes its thread pool by it, so call it before JAX's first computation."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def resident_bytes() -> int | None:
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """The most memory this process has held since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Gives freed memory back to the system and starts the peak anew."""
    if LINUX:
        with contextlib.suppress(AttributeError):  # not glibc: the peak may then include what earlier calls left
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def process_peak(work: Callable[[], T], *, before: int | None) -> tuple[T, int | None]:
    """The result of `work`, and the most memory this process held meanwhile, less the `before` it held once."""
    reset_peak()
    result, peak = work(), peak_bytes()
    return result, None if peak is None or before is None else peak - before


def _status(field: str) -> int | None:
    if not LINUX:
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def describe(cores: Collection[int]) -> dict[str, Any]:
    """Processor, cores, memory, versions and commit: a figure means nothing without them."""
    packages = ("jaxprune", "jax", "jaxlib", "flax", "torch", "transformers", "numpy", "onnxruntime", "openvino")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": len(cores),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if LINUX else None,
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": commit(),
        "contention_watched": LINUX,
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name, with the vector instructions that decide its speed, since clouds blank out the name."""
    if not LINUX:
        return platform.processor() or platform.machine()
    info = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        if ":" in line
    )
    vectors = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"}
    found = [flag for flag in (info.get("flags") or info.get("Features") or "").split() if flag in vectors]
    family = f"family {info['cpu family']} model {info['model']}" if "cpu family" in info else platform.machine()
    return ", ".join((info.get("model name", "unknown CPU"), family, *sorted(found)))


def commit() -> str | None:
    """The checkout's commit, with -dirty where tracked files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
