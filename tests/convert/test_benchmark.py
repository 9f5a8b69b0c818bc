"""The benchmark's arithmetic, its watch over the cores, that all contestants do the same work, and one run of the
program. No test depends on a duration."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from benchmark_cases import a_job, a_plan
from helpers import ROOT, random_mel, small
from jaxprune.convert.benchmark import machine, referee, report
from jaxprune.convert.benchmark.job import Unavailable
from jaxprune.convert.benchmark.referee import undisturbed
from jaxprune.convert.benchmark.torch_side import TORCH, compiled
from jaxprune.convert.benchmark.worker import contestant_for, measure_once
from jaxprune.convert.random_checkpoint import random_state
from quick import quick_compiling  # noqa: F401

from jaxprune.registry import LEARNED, METHODS

SCRIPT = ROOT / "scripts" / "benchmark.py"


def benchmark(*options, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def between(values, share: float) -> float:
    """A quantile by its definition: linear between the order statistics."""
    values = sorted(values)
    at = share * (len(values) - 1)
    below = int(at)
    above = min(below + 1, len(values) - 1)
    return values[below] + (at - below) * (values[above] - values[below])


@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_paired_ratio_is_the_definition(count):
    ours, theirs = np.random.default_rng(count).uniform(1, 2, (2, count)).tolist()
    quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
    found = report.paired_ratio(ours, theirs)
    assert found["ratio"] == pytest.approx(between(ours, 0.5) / between(theirs, 0.5), rel=1e-12)
    assert found["quartiles"] == pytest.approx([between(quotients, 0.25), between(quotients, 0.75)], rel=1e-12)


def test_pairs_cancel_what_slows_both():
    """A machine twice as slow in every other round spreads the samples, not the ratio."""
    pace = np.array([1, 2, 1, 2, 1])
    assert report.paired_ratio((3 * pace).tolist(), (4 * pace).tolist()) == {"ratio": 0.75, "quartiles": [0.75, 0.75]}


def test_undisturbed_takes_again_until_quiet(monkeypatch):
    windows = [machine.Window(0.5, True), machine.Window(0.2, True), machine.Window(0.0, False)]
    monkeypatch.setattr(machine, "watched", lambda take, **_: (take(), windows.pop(0)))
    monkeypatch.setattr(machine, "await_quiet", lambda **_: None)
    seconds = iter([3.0, 2.0, 1.0])
    sample = undisturbed(lambda: next(seconds), cores=[0], ours=[], retries=2)
    assert (sample.seconds, sample.contended, sample.dropped) == (1.0, False, (3.0, 2.0))


def test_undisturbed_gives_up_and_says_so(monkeypatch):
    monkeypatch.setattr(machine, "watched", lambda take, **_: (take(), machine.Window(0.5, True)))
    monkeypatch.setattr(machine, "await_quiet", lambda **_: None)
    sample = undisturbed(lambda: 1.0, cores=[0], ours=[], retries=3)
    assert sample.contended
    assert len(sample.dropped) == 3


@pytest.mark.skipif(not machine.LINUX, reason="reads /proc")
def test_a_strangers_work_is_contention():
    cores = machine.usable_cores(None)
    stranger = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def wait():
        start = machine.own_ticks([stranger.pid])
        while machine.own_ticks([stranger.pid]) < start + 30:
            time.sleep(0.01)

    try:
        _, window = machine.watched(wait, cores=cores, ours=[os.getpid()])
    finally:
        stranger.kill()
        stranger.wait()
    assert window.contended


@pytest.mark.skipif(not machine.LINUX, reason="reads /proc")
def test_our_own_work_is_not_contention(monkeypatch):
    busy, own = iter([1000, 1200]), iter([500, 699])  # 200 ticks passed, 199 of them ours
    monkeypatch.setattr(machine, "busy_ticks", lambda cores: next(busy))
    monkeypatch.setattr(machine, "own_ticks", lambda ours: next(own))
    _, window = machine.watched(lambda: None, cores=[0], ours=[1])
    assert not window.contended


def logits_of(variant, config, *, keep_rate: float, mel) -> torch.Tensor:
    _, logits = variant.build(config, random_state(config, seed=0))
    rates = {1: keep_rate}
    with torch.inference_mode():
        return variant.ready(lambda mel: logits(mel, rates))(mel)


TRACED = dataclasses.replace(TORCH["compile-sdpa"], ready=partial(compiled, backend="eager"))  # no C++ is compiled


@pytest.mark.parametrize(
    ("family", "keep_rate", "variant"),
    [
        ("audiomae", 1.0, TORCH["sdpa"]),
        ("audiomae", 0.5, TORCH["sdpa"]),
        ("audiomae", 0.5, TRACED),
        ("ast", 0.5, TRACED),
        ("ast", 1.0, TORCH["transformers"]),
    ],
)
def test_every_pytorch_computes_what_eager_does(family, keep_rate, variant):
    config = small(family, depth=3)
    mel = torch.from_numpy(random_mel(config))
    found = logits_of(variant, config, keep_rate=keep_rate, mel=mel)
    # transformers has one LayerNorm eps, the official classifier another.
    assert (found - logits_of(TORCH["eager"], config, keep_rate=keep_rate, mel=mel)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("work", "dtype", "tolerance"), [("step", "float32", 1e-4), ("forward", "bfloat16", 0.1)]
)  # of logits and losses near 1; bfloat16 has three digits, and the blocks are twelve
def test_the_same_work_in_both_frameworks(work, dtype, tolerance):
    """The losses compared are those after one update, so they also tell of gradients and optimiser."""
    numbers = {}
    for name in ("jax", "torch-eager"):
        contestant = contestant_for(a_job(contestant=name, work=work, dtype=dtype))
        facts = measure_once(contestant, 0.5, min_seconds=0.0)
        assert facts["calls"] == 1
        assert facts["compile_seconds"] >= 0
        numbers[name] = np.array(facts["numbers"])
        contestant.product(8)()
    assert np.abs(numbers["jax"] - numbers["torch-eager"]).max() < tolerance


class FakeWorker:
    """Answers at once; a product of matrices takes a hundredth of a call's time."""

    SECONDS: ClassVar = {"torch-eager": 8.0, "torch-transformers": 4.0, "jax": 2.0}

    def __init__(self, job):
        self.seconds, self.process = self.SECONDS[job.contestant], SimpleNamespace(pid=os.getpid())

    def reply(self):
        return {"device": "abacus"}

    def ask(self, what, **order):
        return {
            "prepare": {"compile_seconds": 1.0, "temp_bytes": 5, "peak_bytes": 7, "calls": 3, "numbers": [[0.5]]},
            "sample": {"seconds": self.seconds},
            "product": {"seconds": self.seconds / 100},
        }[what]


@pytest.fixture
def digested(monkeypatch):
    """The verdicts of the referee and the report on such workers."""
    monkeypatch.setattr(referee, "started", lambda job: nullcontext(FakeWorker(job)))
    plan = a_plan(keep_rates=(0.5,), torch=("eager", "transformers"), repeats=2, retries=0, side=100)
    assert plan.remarks() == [TORCH["transformers"].remark]
    return report.digest(list(referee.run(plan, tell=lambda line: None)))


def test_a_variant_is_measured_where_it_can_be(digested):
    full, pruned = digested
    assert set(full["contestants"]) == {"torch-eager", "torch-transformers", "jax"}
    assert set(pruned["contestants"]) == {"torch-eager", "jax"}
    plan = a_plan(families=("audiomae",), torch=("transformers",))
    assert plan.contestants("audiomae", 1.0, dtype="float32") == ["jax"]


def test_jax_is_compared_with_each_pytorch_and_the_fastest(digested):
    full, pruned = digested
    assert {name: ratio["ratio"] for name, ratio in full["jax_over"].items()} == {
        "torch-eager": 0.25,
        "torch-transformers": 0.5,
    }
    assert (full["best"], pruned["best"]) == ("torch-transformers", "torch-eager")
    lines = report.table(digested)
    assert [line[4] for line in lines] == ["eager", "transformers *", "jax", "eager *", "jax"]
    assert [line[6].split("\n")[0] for line in lines] == ["0.250", "0.500", "0.500", "0.250", "0.250"]
    assert all(len(line) == len(report.COLUMNS) for line in lines)


def test_every_method_has_a_plan():
    for method in (*METHODS, LEARNED):
        plan = a_plan(keep_rates=(0.5,), method=method)
        (job,) = plan.jobs()
        assert plan.contestants("ast", 0.5, dtype="float32") == (
            ["torch-eager", "jax"] if method == "topk" else ["jax"]
        )
        assert job.config().predictors == ((3, 6, 9) if method == LEARNED else ())


def test_learned_pruning_is_timed_with_the_weights_that_pytorch_has():
    """And with predictors, which choose patches at 0.5 and none at 1."""
    jax, eager = (
        contestant_for(a_job(contestant=name, work="forward", dtype="float32", method=LEARNED))
        for name in ("jax", "torch-eager")
    )
    whole, pruned = (np.array(measure_once(jax, rate, min_seconds=0.0)["numbers"]) for rate in (1.0, 0.5))
    expected = np.array(measure_once(eager, 1.0, min_seconds=0.0)["numbers"])
    assert np.abs(whole - expected).max() < 1e-4 < np.abs(pruned - expected).max()
    step = contestant_for(a_job(contestant="jax", work="step", dtype="float32", method=LEARNED))
    for rate in (1.0, 0.5):  # the first gives away the weights that the second starts from
        assert np.isfinite(measure_once(step, rate, min_seconds=0.0)["numbers"]).all()


def test_jax_alone_is_compared_with_nothing(monkeypatch):
    monkeypatch.setattr(referee, "started", lambda job: nullcontext(FakeWorker(job)))
    plan = a_plan(keep_rates=(0.5,), torch=(), repeats=2, retries=0, side=100)
    rows = report.digest(list(referee.run(plan, tell=lambda line: None)))
    assert [set(row["contestants"]) for row in rows] == [{"jax"}, {"jax"}]
    assert "nothing was compared" in report.agreement(rows)
    assert [line[6] for line in report.table(rows)] == ["-", "-"]


def test_peak_is_the_best_matrix_product_of_the_run(digested):
    for row in digested:
        assert row["peak_gflops"] == pytest.approx(2 * 100**3 / 0.02 / 1e9)
        for facts in row["contestants"].values():
            assert facts["peak_share"] == pytest.approx(facts["gflops"] / row["peak_gflops"])
    assert f"{digested[0]['peak_gflops']:.0f} GFLOP/s in float32" in report.products(digested)


def test_program_reports_what_follows_from_its_samples(tmp_path):
    out = tmp_path / "results.json"
    options = ["--family", "ast", "--torch", "eager", "--keep-rates", 0.5, "--repeats", 2, "--out", out]
    done = benchmark("--quick", *options, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert set(saved["machine"]["versions"]) >= {"jax", "jaxlib", "flax", "torch"}
    full, pruned = saved["rows"]
    assert (full["family"], full["size"], full["frames"], full["batch"]) == ("ast", "micro", 128, 1)
    assert (full["keep_rate"], pruned["keep_rate"]) == (1.0, 0.5)  # 1.0 is measured unasked
    for row in saved["rows"]:
        assert set(row["contestants"]) == {"jax", "torch-eager"}
        assert row["mac_ratio"] == pytest.approx(full["gmacs"] / row["gmacs"])
        jax = row["contestants"]["jax"]
        assert jax["compile_seconds"] > 0
        assert row["best"] == "torch-eager"
        for name, facts in row["contestants"].items():
            assert len(facts["seconds"]) == saved["repeats"] == 2
            assert facts["median"] == pytest.approx(np.mean(facts["seconds"]))  # of two
            assert facts["gflops"] == pytest.approx(2 * row["gmacs"] / facts["median"])
            speedup = full["contestants"][name]["median"] / facts["median"]
            assert facts["speedup"] == pytest.approx(speedup)
            assert facts["speedup_per_mac_ratio"] == pytest.approx(speedup / row["mac_ratio"])
            # Logits of size 1; every contestant computes the same model on the same input.
            assert facts["difference"] < 1e-4
            if machine.LINUX:
                assert facts["peak_bytes"] > 4 * 0.6e6  # at least the micro AST's weights
        assert 4 * 0.6e6 < jax["program_bytes"] < jax["peak_bytes"]
        for name, ratio in row["jax_over"].items():
            assert ratio["ratio"] == pytest.approx(jax["median"] / row["contestants"][name]["median"])


def test_a_device_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match=r"PyTorch .* has no gpu here"):
        contestant_for(a_job(contestant="torch-eager", work="forward", dtype="float32", device="gpu"))


def test_what_a_variant_lacks_is_told_before_the_work(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and there is no g\+\+ here"):
        a_plan(torch=("eager", "compile"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or None)
    with pytest.raises(ValueError, match=r"onnx and openvino is not installed; pip install .jaxprune.export"):
        a_plan(runtimes=("openvino",))
    with pytest.raises(ValueError, match="pip install transformers"):
        a_plan(torch=("transformers",))


def test_program_refuses_in_one_sentence():
    done = benchmark("--quick", "--out", "/nowhere/results.json")
    assert done.returncode == 2
    assert "not a directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"keep_rates": (1.2,)}, "keep rate 1.2"),
        ({"sizes": ("large",)}, "no ast of size 'large'"),
        ({"frames": (8,)}, "8 frames"),
        ({"batches": (0,)}, "batch is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"threads": 10**6}, "threads is 1000000"),
        ({"torch": ("triton",)}, "no PyTorch variant 'triton'"),
        ({"runtimes": ("tensorrt",)}, "no runtime 'tensorrt'"),
        ({"runtimes": ("ort",), "works": ("step",)}, "forward pass on a CPU"),
        ({"runtimes": ("ort",), "device": "gpu"}, "forward pass on a CPU"),
    ],
)
def test_plan_refuses(change, told):
    with pytest.raises(ValueError, match=told):
        a_plan(**change)
