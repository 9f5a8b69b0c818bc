"""Estimates for many accelerators, by hand and as the page prints them; a measurement of weak scaling."""

import dataclasses
import json
import os

import pytest
from helpers import ROOT, small
from quick import QUICK

from jaxprune.cli import console
from jaxprune.config import ModelConfig
from jaxprune.training.recipes import recipe
from jaxprune.training.schedules import keep_rate_schedule
from jaxprune.training.settings import Recipe
from scripts.scaling import weak_scaling
from scripts.scaling.projection import Accelerator, Assumptions, StepTime, cores, reduced_bytes, steady, step_time
from scripts.scaling.weak_scaling import ALONE, AT_ONCE, TOGETHER, WeakScaling, measure

SLOW = Accelerator(name="slow", flops=1e12, node=8, inside=1e9, across=1e8, source="made up")
BASE = ModelConfig.of_size("audiomae", "base", classes=527, frames=1024)
IDEAL = Assumptions(utilisation=1.0, link=1.0)


def test_a_step_is_three_forward_passes_and_a_ring():
    at = {"clips": 2, "reduced_bytes": 10**9, "accelerator": SLOW, "assumptions": IDEAL}
    step = step_time(BASE, 1.0, devices=8, **at)
    assert step.compute == pytest.approx(6 * 2 * 48.52e9 / 1e12, rel=1e-3)  # the published multiply-accumulates
    assert step.communication == pytest.approx(2 * 7 / 8)
    assert step.sequential == step.compute + step.communication
    assert step.overlapped == pytest.approx(step.communication + step.compute / 3)
    assert step.clips_per_second == pytest.approx(16 / step.overlapped)
    assert step_time(BASE, 1.0, devices=16, **at).communication == pytest.approx(2 * 15 / 16 * 10)
    half = step_time(BASE, 1.0, devices=8, **at | {"assumptions": Assumptions(utilisation=0.5, link=0.5)})
    assert (half.compute, half.communication) == pytest.approx((2 * step.compute, 2 * step.communication))
    pruned = step_time(BASE, 0.7, devices=8, **at)
    assert pruned.compute / step.compute == pytest.approx(31.19 / 48.52, rel=1e-3)
    assert pruned.communication == step.communication
    assert all(less < more for less, more in zip(pruned.efficiency, step.efficiency, strict=True))
    assert StepTime(devices=8, clips=1, compute=3, communication=2).efficiency == (1, 0.6)


@pytest.mark.parametrize("changes", [{"utilisation": 0.0}, {"link": 1.1}])
def test_shares_are_shares(changes):
    with pytest.raises(ValueError, match="both must be above 0 and at most 1"):
        Assumptions(**changes)


def test_bytes_must_be_the_same_everywhere():
    def step(count, **changes):
        made = {"recipe": "a", "weights": "whole", "collectives": {"all-reduce": {"bytes": count}}}
        return made | changes

    assert (
        reduced_bytes([step(10**6), step(10**6 + 4), step(1, recipe="b"), step(5, weights="divided")], "a") == 10**6 + 4
    )
    for steps, said in (
        ([], "no step of a with whole weights"),
        ([step(1000), step(2000)], r"the bytes of a are \[1000, 2000\]"),
        ([step(1, collectives={"all-gather": {}})], "also has all-gather"),
    ):
        with pytest.raises(ValueError, match=said):
            reduced_bytes(steps, "a")
    assert (cores(1000, 2.0), cores(1000, 2.1)) == (2, 3)


@pytest.mark.parametrize("name", ["audiomae-as20k", "ast-as20k"])
def test_steady_recipes_stay_at_their_rate(name):
    made = steady(recipe(name), keep_rate=0.7, size="small")
    assert keep_rate_schedule(made.prune, steps_per_epoch=10)(0) == 0.7
    assert (made.augment.patch_mask, made.start.size) == (0, "small")


@pytest.mark.skipif(
    not (ROOT / "docs" / "scaling" / "collectives.json").exists(),
    reason="scripts/scaling/collectives.py has not been run yet",
)
def test_the_page_holds_what_the_script_prints(run_script):
    code, printed, _ = run_script(ROOT / "scripts" / "scaling" / "page.py")
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert code == 0
    assert printed.strip() in page


def test_the_script_refuses(run_script, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for arguments in (("--collectives", tmp_path / "bad.json"), ("--accelerators", "abacus"), ("--clips", 0)):
        code, _, err = run_script(ROOT / "scripts" / "scaling" / "page.py", *arguments)
        assert (code, err.count("\n")) == (2, 1)


needs_two_cores = pytest.mark.skipif(len(getattr(os, "sched_getaffinity", set)(0)) < 2, reason="needs two cores")


def micro(depth: int) -> tuple[Recipe, ModelConfig]:
    made = steady(recipe("audiomae-words"), keep_rate=0.7)
    made = dataclasses.replace(made, prune=dataclasses.replace(made.prune, blocks=(1,)))
    return made, small("audiomae", depth=depth, frames=made.data.frames, classes=made.data.classes)


@needs_two_cores
def test_four_processes_take_turns(monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    cores, turns = tuple(sorted(os.sched_getaffinity(0))[:2]), []
    found = measure(*micro(depth=2), clips=2, cores=cores, rounds=2, steps=2, watch=turns.append)
    assert turns == [1, 2]
    assert {kind: len(times) for kind, times in found.seconds.items()} == {ALONE: 8, AT_ONCE: 8, TOGETHER: 4}
    assert all(0 < time < 60 for times in found.seconds.values() for time in times)


def test_weak_scaling_is_told_and_saved(capsys, tmp_path, monkeypatch):
    given = {}

    def measured(recipe, config, **rest):
        given.update(rest, size=recipe.start.size, depth=config.depth)
        rest["watch"](1)
        return WeakScaling(seconds={ALONE: (1.0, 9.0, 2.0), AT_ONCE: (3.0,), TOGETHER: (4.0, 5.0)})

    monkeypatch.setattr(weak_scaling, "measure", measured)
    out = tmp_path / "weak.json"
    with pytest.raises(SystemExit, match="0"):
        console.run(weak_scaling.main, arguments=["--quick", "--clips", "3", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "efficiency 44.4%; two processes that do not talk reach 66.7%" in " ".join(printed.split())
    found = json.loads(out.read_text())
    assert (found["efficiency"], found["medians"]["together"], found["clips"]) == (2 / 4.5, 4.5, 3)
    assert (given["size"], given["depth"], given["clips"], given["rounds"], given["steps"]) == ("micro", 12, 3, 2, 2)


def test_weak_scaling_refuses():
    for changes, said in (
        ({"clips": 0}, "clips is 0"),
        ({"cores": (0, 0)}, r"cores are \(0, 0\); they must be two of"),
        ({"cores": (0, 10**6)}, "they must be two of"),
    ):
        with pytest.raises(ValueError, match=said):
            measure(*micro(depth=2), **{"clips": 1} | changes)


@needs_two_cores
def test_a_process_that_fails_says_why():
    with pytest.raises(ValueError, match=r"ended with code 1: .*blocks \[1\] cannot prune"):
        measure(*micro(depth=1), clips=1, cores=tuple(sorted(os.sched_getaffinity(0))[:2]))
