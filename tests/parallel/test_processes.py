"""Two processes that train together, on one machine: equal to one, stopped and resumed, and never left waiting."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretraining.pretraining_cases import manifest, recipe, saved
from quick import quick_compiling  # noqa: F401
from training.test_finetune import EPOCHS, STEPS, clips, short, start  # noqa: F401
from training_runs import child_environment

import jaxprune
from jaxprune.checkpoint import leaves
from jaxprune.parallel.processes import Launch, by_first, gather, joined, together
from jaxprune.pretraining import checkpoint as pretraining_checkpoint
from jaxprune.training.finetune import finetune
from jaxprune.training.pretrain import PretrainingOptions, pretrain
from jaxprune.training.run import Options
from jaxprune.training.run_directory import read_metrics

PATIENCE = 600  # seconds, on a machine that is busy

BEGIN = """
import os, sys, time
from pathlib import Path
import jax
from jaxprune.parallel.processes import Launch, by_first, gather, joined
*arguments, coordinator, index = sys.argv[1:]
me = Launch(coordinator=coordinator, count=2, index=int(index))
"""


def pair(code: str, *arguments: object) -> list[subprocess.Popen]:
    """The code in two processes that can meet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", BEGIN + code, *map(str, arguments), coordinator]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(i)], env=child_environment(), **pipes) for i in range(2)]


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """The output of both, once they have ended well, without what Gloo says of its connections."""
    printed = [process.communicate(timeout=PATIENCE) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors
    lines = [out.splitlines(keepends=True) for out, _ in printed]
    return ["".join(line for line in of_one if not line.startswith("[Gloo]")) for of_one in lines]


TRAIN = """
import parallel.test_processes
train, places, pause = getattr(parallel.test_processes, arguments[0]), map(Path, arguments[1:4]), arguments[4]
with joined(me):
    for event in train(*places, weights="divided"):
        print(type(event).__name__, event.step, flush=True)
        time.sleep(float(pause))
"""


def fine_tuning(data: Path, beginning: Path, out: Path, **options: Any) -> Iterator[Any]:
    return finetune(short(data, beginning), out, seed=7, options=Options(**options))


def pretraining(data: Path, beginning: Path, out: Path, **options: Any) -> Iterator[Any]:
    made = recipe(root=data, start=beginning)
    made = dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, base_lr=3e-2))
    return pretrain(made, out, seed=7, options=PretrainingOptions(**options))


def losses(out: Path) -> list[tuple[str, float]]:
    return [(line["kind"], line["loss"]) for line in read_metrics(out / "metrics.jsonl")]


def stopped_and_resumed(train: str, *places: Path) -> None:
    """A run of two processes with divided weights. SIGTERM goes to the second alone; then both go on."""
    processes = pair(TRAIN, train, *places, 1.0)
    for line in processes[1].stdout:
        if line == "Step 0\n":
            break
    processes[1].send_signal(signal.SIGTERM)
    first, second = ended(processes)
    left = int(first.split()[-1])
    assert first.splitlines()[-1] == second.splitlines()[-1] == f"Outcome {left}"
    assert 1 < left < EPOCHS * STEPS
    assert not (places[-1] / "result.json").exists()

    first, second = ended(pair(TRAIN, train, *places, 0))
    assert first.splitlines()[0] == second.splitlines()[0] == f"Beginning {left}"
    assert first.count("Step") == second.count("Step") == EPOCHS * STEPS - left


def test_two_processes_stop_together_go_on_and_give_what_one_gives(clips, start, tmp_path):  # noqa: F811
    out = tmp_path / "two"
    stopped_and_resumed("fine_tuning", clips, start, out)
    alone = list(fine_tuning(clips, start, tmp_path / "one"))[-1].result
    one, both = losses(tmp_path / "one"), losses(out)
    assert [kind for kind, _ in one] == [kind for kind, _ in both]
    np.testing.assert_allclose([loss for _, loss in one], [loss for _, loss in both], atol=1e-5)
    result = json.loads((out / "result.json").read_text())
    assert result["device"].startswith("2 x")
    for split, scores in result["scores"].items():
        assert scores.pop("loss") == pytest.approx(alone["scores"][split].pop("loss"), abs=1e-5)
        assert scores == alone["scores"][split]
    ours, theirs = (leaves(jaxprune.load(folder / "model")) for folder in (out, tmp_path / "one"))
    for name in ours:
        np.testing.assert_allclose(ours[name][...], theirs[name][...], atol=1e-4, err_msg=name)


def test_two_processes_pretrain_stop_together_go_on_and_give_what_one_gives(tmp_path):
    """The masks of a clip are those of its number in the run, whichever process draws them."""
    data, beginning, out = manifest(tmp_path / "tones"), saved(tmp_path / "start"), tmp_path / "two"
    stopped_and_resumed("pretraining", data, beginning, out)
    *_, alone = pretraining(data, beginning, tmp_path / "one")
    one, both = losses(tmp_path / "one"), losses(out)
    assert [kind for kind, _ in one] == [kind for kind, _ in both]
    np.testing.assert_allclose([loss for _, loss in one], [loss for _, loss in both], rtol=1e-5)
    result = json.loads((out / "result.json").read_text())
    assert result["device"].startswith("2 x")
    held_out = [one["scores"]["validation"]["loss"] for one in (result, alone.result)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)
    ours, theirs, before = (leaves(pretraining_checkpoint.load(place)) for place in (out, tmp_path / "one", beginning))
    for name in ours:
        np.testing.assert_allclose(ours[name][...], theirs[name][...], atol=1e-4, err_msg=name)
    assert max(float(abs(ours[name][...] - before[name][...]).max()) for name in ours) > 2e-3


AGREE = """
import json
import numpy as np
from jaxprune.parallel.devices import Layout, divided, on_host
with joined(me):
    layout, mine = Layout(spread=divided), np.arange(4) + 4 * me.index
    rows = layout.share(mine)
    matrix = layout.put({"w": np.arange(4096.0).reshape(64, 64)})["w"]
    assert matrix.addressable_shards[0].data.shape == (32, 64)
    assert (on_host(matrix) == np.arange(4096.0).reshape(64, 64)).all()
    def refuse():
        raise OSError("the disk is full")
    try:
        by_first(refuse)
    except (OSError, ValueError) as error:
        said = str(error)
    done = by_first(lambda: me.index), gather({"of": "é" * me.index})
    print(json.dumps([on_host(rows).tolist(), *done, said]), flush=True)
    gather(0)
    if me.index == int(arguments[0]):
        raise ValueError("mine alone")
    gather(1)
"""


@pytest.mark.parametrize("index", [0, 1])
def test_processes_agree_and_an_error_in_one_ends_both(index):
    processes = pair(AGREE, index)
    printed, errors = processes[index].communicate(timeout=PATIENCE)
    began = time.perf_counter()
    others, _ = processes[1 - index].communicate(timeout=PATIENCE)
    assert time.perf_counter() - began < 60  # JAX alone would take 100 s
    assert [process.returncode == 0 for process in processes] == [False, False]
    assert "ValueError: mine alone" in errors
    for of_one in (printed, others):
        (line,) = (line for line in of_one.splitlines() if line.startswith("[["))
        rows, first, gathered, said = json.loads(line)
        assert rows == list(range(8))
        assert first == 0
        assert gathered == [{"of": ""}, {"of": "é"}]
        assert said == "the disk is full"


def test_one_process_has_nobody_to_wait_for():
    with joined(Launch()):
        assert gather({"a": [1, None]}) == [{"a": [1, None]}]
        assert by_first(lambda: "done") == "done"
        with pytest.raises(OSError, match="mine"):
            by_first(lambda: os.stat("/nowhere/mine"))
        assert together(stop := lambda: True, done=3) is stop


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"count": 2, "index": 2}, "process 2 of 2 does not exist"),
        ({"count": 2}, "the 2 processes have no place to meet"),
        ({"coordinator": "here"}, "the coordinator is 'here'; it must be host:port or auto"),
    ],
)
def test_impossible_launches_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Launch(**fields)
