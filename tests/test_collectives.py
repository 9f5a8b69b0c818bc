"""Collectives read from HLO: by hand, and those of a real step against its number of parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import small
from training import CLASSES, FRAMES, child_environment

from jaxprune.checkpoint import leaves
from jaxprune.collectives import Collective, collectives, totals
from jaxprune.models import build

SCRIPTS = Path(__file__).parent.parent / "scripts"

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
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from helpers import small
from training import CLASSES, FRAMES, recipe
from jaxprune.collectives import compiled_step, totals
from jaxprune.scaling import steady
from jaxprune.sharding import Layout, divided, whole
config = small("audiomae", depth=2, frames=FRAMES, classes=len(CLASSES))
for name, spread, clips, accumulate in [("whole", whole, 1, 1), ("more clips", whole, 2, 1), ("parts", whole, 1, 4),
                                        ("divided", divided, 1, 1), ("divided, more clips", divided, 2, 1)]:
    made = steady(recipe(), keep_rate=0.5, accumulate=accumulate)
    program = compiled_step(made, config, layout=Layout(spread=spread), clips=clips)
    found = {kind: [t.count, t.bytes, t.dtypes] for kind, t in totals(program.collectives).items()}
    print(json.dumps([name, program.parameters, found]), flush=True)
"""


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, list]]:
    """Small steps on 8 virtual devices, in a process that has them: count, bytes and formats of each kind."""
    done = subprocess.run([sys.executable, "-c", STEPS], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {parameters for _, parameters, _ in lines} == {PARAMETERS}
    return {name: found for name, _, found in lines}


CONFIG = small("audiomae", depth=2, frames=FRAMES, classes=len(CLASSES))
PARAMETERS = sum(leaf.size for name, leaf in leaves(build(CONFIG)).items() if name != "positions")


def test_a_step_of_whole_weights_exchanges_gradients_alone(steps):
    """Four bytes a parameter, the loss, its weights and no more: nothing grows with the clips or is gathered."""
    assert list(steps["whole"]) == ["all-reduce"]
    _, total, dtypes = steps["whole"]["all-reduce"]
    assert dtypes == ["f32"]
    assert 0 < total - 4 * PARAMETERS <= 64
    assert steps["more clips"] == steps["whole"]


def test_parts_of_a_batch_exchange_no_other_kind(steps):
    assert list(steps["parts"]) == ["all-reduce"]


def test_a_step_of_divided_weights_exchanges_no_more_for_more_clips(steps):
    """Weights are gathered, not activations."""
    one, two = steps["divided"], steps["divided, more clips"]
    assert {kind: total for kind, (_, total, _) in one.items()} == {kind: total for kind, (_, total, _) in two.items()}


@pytest.mark.parametrize("arguments", [("--devices", 0), ("--recipe", "none"), ("--clips", 0)])
def test_impossible_options_are_refused(run_script, arguments):
    code, _, err = run_script(SCRIPTS / "collectives.py", *arguments)
    assert (code, err.count("\n")) == (2, 1)
