"""Collectives read from HLO: by hand, and those of a real step against its number of parameters."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, small
from jax.sharding import PartitionSpec
from training_runs import CLASSES, FRAMES, child_environment

from jaxprune.checkpoint import leaves
from jaxprune.features import sample_count
from jaxprune.models import build
from jaxprune.parallel.devices import divided
from scripts.scaling.collectives import Collective, collectives, totals

HLO = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%body (arg: (s32[], f32[16])) -> (s32[], f32[16]) {
  %arg = (s32[], f32[16]{0}) parameter(0)
  %part = f32[16]{0} get-tuple-element(%arg), index=1
  %all-reduce.9 = f32[16]{0} all-reduce(%part), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[16]{0}) tuple(%arg, %all-reduce.9)
}

%condition (arg.1: (s32[], f32[16])) -> pred[] {
  ROOT %less = pred[] compare(%arg.1, %arg.1), direction=LT
}

%wrapped (p: bf16[4,4]) -> bf16[4,4] {
  ROOT %permuted = bf16[4,4]{1,0} collective-permute(%p), channel_id=4, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main.1 (a: f32[128,64], b: bf16[4,4]) -> f32[128,64] {
  %a = f32[128,64]{1,0} parameter(0)
  %b = bf16[4,4]{1,0} parameter(1)
  %all-reduce = (f32[128,64]{1,0}, /*index=1*/f32[]) all-reduce(%a, %a), channel_id=1, replica_groups=[1,8]<=[8]
  %ag = (f32[16,64]{1,0}, f32[128,64]{1,0}) all-gather-start(%a), replica_groups=[1,8]<=[8], dimensions={0}
  %agd = f32[128,64]{1,0} all-gather-done(%ag)
  %rs = f32[16,64]{1,0:T(8,128)} reduce-scatter(%a), channel_id=3, replica_groups={}, dimensions={0}, to_apply=%add
  %async = ((bf16[4,4]), bf16[4,4]) async-start(%b), calls=%wrapped
  %asyncd = bf16[4,4]{1,0} async-done(%async), calls=%wrapped
  %w = (s32[], f32[16]{0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %fused = f32[] fusion(%all-reduce), kind=kLoop, calls=%add, metadata={op_name="all-reduce(x)"}
  %a2a = (s8[8]{0}, s8[8]{0}) all-to-all(%b, %b), channel_id=6, replica_groups=[4,2]<=[8]
  ROOT %copy = f32[128,64]{1,0} copy(%agd)
}
"""


def test_every_form_is_found_with_its_bytes():
    whole = 128 * 64 * 4
    assert collectives(HLO, devices=8) == (
        Collective(kind="all-reduce", bytes=whole + 4, dtypes=("f32",), devices=8),
        Collective(kind="all-gather", bytes=whole, dtypes=("f32",), devices=8),
        Collective(kind="reduce-scatter", bytes=whole, dtypes=("f32",), devices=8),
        Collective(kind="collective-permute", bytes=32, dtypes=("bf16",), devices=8),
        Collective(kind="all-reduce", bytes=64, dtypes=("f32",), devices=4, times=5),
        Collective(kind="all-to-all", bytes=16, dtypes=("s8",), devices=2),
    )
    found = totals(collectives(HLO, devices=8))
    assert list(found) == ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"]
    assert (found["all-reduce"].count, found["all-reduce"].bytes) == (6, whole + 4 + 5 * 64)
    assert found["all-reduce"].wire_bytes == 2 * 7 / 8 * (whole + 4) + 5 * 2 * 3 / 4 * 64
    assert found["all-gather"].wire_bytes == found["reduce-scatter"].wire_bytes == 7 / 8 * whole
    assert (found["all-to-all"].wire_bytes, found["collective-permute"].wire_bytes) == (8, 32)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="a all-reduce is in a loop whose length XLA does not tell"):
        collectives(HLO.replace("known_trip_count", "unknown"), devices=8)
    scan = HLO.replace("known_trip_count", "unknown").replace("  ROOT %less", "  %n = s32[] constant(5)\n  ROOT %less")
    assert collectives(scan, devices=8) == collectives(HLO, devices=8)
    with pytest.raises(ValueError, match="has no ENTRY"):
        collectives("module @jit_f {}", devices=8)


STEPS = """
import json
from dataclasses import replace
import jax
jax.config.update("jax_num_cpu_devices", 8)
from helpers import ROOT, small
from training_runs import CLASSES, FRAMES, recipe
from scripts.scaling.collectives import compiled_step, totals
from scripts.scaling.projection import steady
from jaxprune.parallel.devices import Layout, divided, whole
config = small("audiomae", depth=2, frames=FRAMES, classes=len(CLASSES))
for spread, accumulate in [(whole, 4), (divided, 1)]:
    made = steady(recipe(), keep_rate=0.5, accumulate=accumulate)
    made = replace(made, augment=replace(made.augment, mixup=0.5))
    program = compiled_step(made, config, layout=Layout(spread=spread), clips=2)
    print(json.dumps({kind: [t.bytes, t.dtypes] for kind, t in totals(program.collectives).items()}))
"""


def test_devices_exchange_gradients_one_clip_and_divided_weights():
    """In steps on 8 virtual devices, with 2 clips each: were they to exchange activations, scores or all clips, these
    bytes could not be told from the model's alone."""
    done = subprocess.run([sys.executable, "-c", STEPS], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts, spread = map(json.loads, done.stdout.splitlines())
    config = small("audiomae", depth=2, frames=FRAMES, classes=len(CLASSES))
    weights = {name: leaf for name, leaf in leaves(build(config)).items() if name != "positions"}
    gradients = 4 * sum(leaf.size for leaf in weights.values())
    clip = 4 * (sample_count(FRAMES) + len(CLASSES))  # for mixup, with its labels
    for found, times in ((parts, 4), (spread, 1)):
        total, dtypes = found.pop("all-reduce")
        assert set(dtypes) <= {"f32", "s32"}
        assert 0 < total - times * gradients <= 64 * times  # the loss, its weights, norms of parts
        assert found.pop("collective-permute") == [times * clip, ["f32"]]
    # What is small stays whole. The table of positions is not trained, but divided, too.
    held = [leaf.size for leaf in leaves(build(config)).values() if PartitionSpec() != divided(leaf.shape, 8)]
    assert (parts, spread) == ({}, {"all-gather": [4 * sum(held), ["f32"]]})


@pytest.mark.parametrize("arguments", [("--devices", 0), ("--recipe", "none"), ("--clips", 0)])
def test_impossible_options_are_refused(run_script, arguments):
    code, _, err = run_script(ROOT / "scripts" / "scaling" / "collectives.py", *arguments)
    assert (code, err.count("\n")) == (2, 1)
