"""The benchmark's arithmetic, its watch over the cores, and one run of the program. No test depends on a duration."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import STAGES, random_mel, small

from convert.benchmark import machine, report
from convert.benchmark.referee import Plan, undisturbed
from convert.benchmark.worker import sdpa
from convert.random_checkpoint import random_state
from convert.torch_reference import build

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


def benchmark(*options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True)


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
    assert report.paired_ratio(3 * pace, 4 * pace) == {"ratio": 0.75, "quartiles": [0.75, 0.75]}


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


@pytest.mark.parametrize("keep_rate", [1.0, 0.5])
def test_fused_pytorch_computes_what_eager_does(keep_rate):
    config, rates = small("audiomae"), dict.fromkeys(STAGES, keep_rate)
    plain, fused = build(config), build(config)
    for model in (plain, fused):
        model.load_state_dict(random_state(config, seed=0))
    mel = torch.from_numpy(random_mel(config))
    with torch.inference_mode():
        assert (sdpa(fused)(mel, rates) - plain.logits(mel, rates)).abs().max() < 1e-5


def test_program_reports_what_follows_from_its_samples(tmp_path):
    out = tmp_path / "results.json"
    done = benchmark("--quick", "--family", "ast", "--repeats", 2, "--keep-rates", 0.5, "--out", out)
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
        for name, ratio in row["jax_over"].items():
            assert ratio["ratio"] == pytest.approx(jax["median"] / row["contestants"][name]["median"])


def test_a_training_step_is_the_same_work_in_both_frameworks(tmp_path):
    """The losses compared are those after one update, so they also tell of gradients and optimiser."""
    out = tmp_path / "results.json"
    done = benchmark("--quick", "--work", "step", "--out", out)
    assert done.returncode == 0, done.stderr
    for row in json.loads(out.read_text())["rows"]:
        assert row["work"] == "step"
        assert row["contestants"]["torch-eager"]["difference"] < 1e-4


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
    ],
)
def test_plan_refuses(change, told):
    plan = {"families": ("ast",), "sizes": ("tiny",), "frames": (128,), "batches": (1,), "keep_rates": (1.0,)}
    with pytest.raises(ValueError, match=told):
        Plan(**plan | {"dtypes": ("float32",)} | change)
