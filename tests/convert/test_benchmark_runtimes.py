"""The benchmark's runtimes: each computes what PyTorch does, and is measured once."""

import subprocess
from typing import get_args, get_type_hints

import numpy as np
import pytest
from benchmark_cases import a_job, a_plan
from jaxprune.convert.benchmark import report
from jaxprune.convert.benchmark.command import Asked
from jaxprune.convert.benchmark.runtime_side import RUNTIMES
from jaxprune.convert.benchmark.torch_side import TORCH
from jaxprune.convert.benchmark.worker import contestant_for, measure_once
from quick import quick_compiling  # noqa: F401

from jaxprune.config import SIZES


@pytest.mark.parametrize(("name", "tolerance"), [("ort", 1e-4), ("openvino-int8", 0.3)])  # of logits near 1
def test_a_runtime_computes_what_pytorch_does(name, tolerance, tmp_path):
    job = {"work": "forward", "dtype": "float32", "frames": 64, "files": str(tmp_path)}
    runtime, eager = (
        contestant_for(a_job(contestant=name, **job)),
        contestant_for(a_job(contestant="torch-eager", **job)),
    )
    facts = measure_once(runtime, 0.5, min_seconds=0.0)
    assert facts["compile_seconds"] > 0
    assert facts["file_bytes"] > 1e6 * (0.5 if name.endswith("int8") else 2)
    expected = measure_once(eager, 0.5, min_seconds=0.0)["numbers"]
    assert 0 < np.abs(np.array(facts["numbers"]) - expected).max() < tolerance


@pytest.mark.parametrize(
    ("dtypes", "beside"),
    [
        (("float32", "bfloat16"), ("float32", "bfloat16", "float32")),
        (("bfloat16", "float32"), ("float32", "bfloat16", "bfloat16")),
        (("bfloat16",), ("bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_a_runtime_is_measured_once_beside_its_own_precision(dtypes, beside):
    runtimes = ("ort", "openvino-bfloat16", "openvino-int8")
    plan = a_plan(dtypes=dtypes, torch=("transformers",), runtimes=runtimes)
    for dtype in dtypes:
        expected = [name for name, place in zip(runtimes, beside, strict=True) if place == dtype]
        assert plan.contestants("ast", 0.5, dtype=dtype) == [*expected, "jax"]


def test_runtimes_share_a_file(tmp_path, monkeypatch):
    job = {"work": "forward", "dtype": "float32", "frames": 64, "files": str(tmp_path)}
    first, second = (contestant_for(a_job(contestant=name, **job)) for name in ("ort", "openvino"))
    written = first.prepare(0.5)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("exported again"))
    assert second.prepare(0.5)["file_bytes"] == written["file_bytes"] > 0
    assert np.abs(first.call(0.5) - second.call(0.5)).max() < 1e-4


@pytest.mark.parametrize(("option", "table"), [("size", SIZES), ("torch", TORCH), ("runtimes", RUNTIMES)])
def test_the_command_offers_all_there_is(option, table):
    assert set(choices(get_type_hints(Asked)[option])) == set(table)


def choices(kind) -> list[str]:
    """The strings of the literals in a type."""
    return [found for part in get_args(kind) for found in ([part] if isinstance(part, str) else choices(part))]


def test_differences_are_told_by_precision():
    float32 = {"dtype": "float32", "contestants": {"ort": {"difference": 2e-6}, "openvino-int8": {"difference": 0.3}}}
    bfloat16 = {"dtype": "bfloat16", "contestants": {"openvino-bfloat16": {"difference": 0.04}}}
    told = report.agreement([float32, bfloat16])
    assert "2e-06 in float32, 3e-01 in int8 (from float32), 4e-02 in bfloat16" in told
