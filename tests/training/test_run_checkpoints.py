"""A run that stops, is killed or goes wrong: what is on disk, and that it ends where an uninterrupted run does."""

import dataclasses
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from quick import quick_compiling  # noqa: F401
from training_runs import STEPS, Poisoned, Rewound, batches, child_environment, corpus, recipe, training

from jaxprune.parallel.devices import Layout
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.checkpoints import Checkpoints, Facts, named_arrays, start_or_resume
from jaxprune.training.events import Evaluation, NotFinite, Step
from jaxprune.training.run_directory import METRICS, RECIPE, RESULT, MetricsLog, clear, finished, open_run, read_metrics
from jaxprune.training.step import State

# One compiled size, so that these tests are about saving; the schedule's are in test_train.
RECIPE_OF_TEST = recipe(prune=dataclasses.replace(recipe().prune, keep_rate=1.0))
RECIPE_OF_TEST = dataclasses.replace(RECIPE_OF_TEST, loop=dataclasses.replace(RECIPE_OF_TEST.loop, epochs=3))
TOTAL = 3 * STEPS


@functools.cache
def shared() -> Rewound:
    """Compiled once for this process; that a new process goes on as well, the test of signals shows."""
    return Rewound(training(RECIPE_OF_TEST))


def run(dataset, folder: Path, *, stop_at: int | None = None, **options):
    """A run with a checkpoint a step, from wherever `folder` stands; its last state and the losses it saw."""
    made = RECIPE_OF_TEST
    trained = shared().training()
    losses = {}
    with Checkpoints(folder, **options) as checkpoints, batches(dataset, made) as loader:
        trained.put(start_or_resume(checkpoints, trained.state, loader))

        def save(done, evaluation):
            facts = Facts(recipe=made, labels=dataset.labels, seed=7, place=loader.get_state())
            checkpoints.save(trained.state, facts, evaluation=evaluation)

        def stopping():
            return stop_at is not None and int(trained.state.step) >= stop_at

        for event in trained.fit(loader, save=save, save_every=1, stop=stopping):
            losses[event.step] = event.loss
    return trained.state, losses


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    return run(dataset, tmp_path_factory.mktemp("whole") / "checkpoints")


def same(one, other) -> None:
    one, other = named_arrays(one), named_arrays(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def evaluation(step: int, score: float) -> Evaluation:
    return Evaluation(
        step=step, keep_rate=0.5, clips=4, loss=1.0, top1=score, top5=1.0, mean_average_precision=None, auc=None,
        d_prime=None, metric="accuracy", score=score,
    )  # fmt: skip


def test_a_run_stopped_after_any_step_ends_as_if_it_had_not_been(dataset, whole, tmp_path):
    """Stopped after every single step, and all of it taken from the disk again."""
    losses = {}
    for step in range(1, TOTAL + 1):
        state, seen = run(dataset, tmp_path / "checkpoints", stop_at=step)
        assert int(state.step) == step
        assert list(seen) == [step - 1]
        losses |= seen
    assert losses == whole[1]
    same(state, whole[0])


def test_a_checkpoint_holds_the_state_and_everything_beside_it(dataset, whole, tmp_path):
    state = whole[0]
    facts = Facts(recipe=RECIPE_OF_TEST, labels=dataset.labels, seed=7, place={"place": {"next": 3}, "unusable": {}})
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(state, facts)
        checkpoints.wait()
        blank = jax.tree.map(lambda leaf: leaf * 0, state)
        restored, found = checkpoints.restore(TOTAL, blank)
    same(restored, state)
    assert found == facts
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_the_latest_and_the_best_stay(dataset, whole, tmp_path):
    facts = Facts(recipe=RECIPE_OF_TEST, labels=dataset.labels, seed=7, place={})
    scores = {1: 0.1, 2: 0.8, 3: None, 4: 0.8, 5: float("nan"), 6: 0.3, 7: None}
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (None, None)
        for step, score in scores.items():
            state = whole[0].replace(step=jax.numpy.int32(step))
            checkpoints.save(state, facts, evaluation=None if score is None else evaluation(step, score))
        checkpoints.wait()
        assert checkpoints.steps == (2, 6, 7)
        assert (checkpoints.latest, checkpoints.best) == (7, 2)
    with Checkpoints(tmp_path / "c", keep=2) as again:
        assert (again.steps, again.latest, again.best) == ((2, 6, 7), 7, 2)
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path / "d", keep=0)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint_untouched(dataset, whole, tmp_path):
    made, trained = RECIPE_OF_TEST, shared().training()
    with Checkpoints(tmp_path / "c") as checkpoints, batches(dataset, made) as loader:

        def save(done, found):
            facts = Facts(recipe=made, labels=dataset.labels, seed=7, place=loader.get_state())
            checkpoints.save(trained.state, facts)

        poisoned = Poisoned(loader, number=4)
        with pytest.raises(NotFinite) as error:
            list(trained.fit(poisoned, save=save))
        checkpoints.wait()
        assert (error.value.step, error.value.clips) == (3, poisoned.bad)
        assert checkpoints.steps == (2,)
    state, losses = run(dataset, tmp_path / "c")
    assert losses == {step: whole[1][step] for step in range(2, TOTAL)}
    same(state, whole[0])


CHILD = """
import sys, time
from pathlib import Path
from training.test_run_checkpoints import *
data, folder = Path(sys.argv[1]), Path(sys.argv[2])
made, dataset = RECIPE_OF_TEST, corpus(data)
trained = training(made)
stop = StopOnSignal()
with stop, Checkpoints(folder) as checkpoints, batches(dataset, made) as loader:
    trained.put(start_or_resume(checkpoints, trained.state, loader))
    def save(done, found):
        facts = Facts(recipe=made, labels=dataset.labels, seed=7, place=loader.get_state())
        checkpoints.save(trained.state, facts)
    for event in trained.fit(loader, save=save, save_every=1, stop=stop):
        print("step", event.step, flush=True)
        time.sleep(0.05)
print("left at", int(trained.state.step), flush=True)
"""


def child(data: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(data), str(folder)]
    return subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen, line: str) -> None:
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(process.stderr.read())


def test_sigkill_in_the_middle_and_on_to_the_same_end(dataset, whole, tmp_path):
    """Killed while a checkpoint of each step is being written, as like as not; then once more by SIGTERM."""
    folder = tmp_path / "checkpoints"
    killed = child(tmp_path / "tones", folder)
    until(killed, "step 2")
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    stopped = child(tmp_path / "tones", folder)
    stopped.stdout.readline()
    stopped.send_signal(signal.SIGTERM)
    out, errors = stopped.communicate()
    assert stopped.returncode == 0, errors
    left = int(out.split()[-1])
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest == left
    state, losses = run(corpus(tmp_path / "tones"), folder)
    same(state, whole[0])
    assert losses == {step: whole[1][step] for step in range(left, TOTAL)}


def small_state(step: int, layout: Layout | None = None) -> State:
    numbers = jax.numpy.arange(64 * 96, dtype=jax.numpy.float32).reshape(64, 96)
    state = State({"kernel": numbers + step, "bias": numbers[0]}, {}, (numbers * step,), jax.numpy.int32(step))
    return (layout or Layout()).put(state)


def small_facts() -> Facts:
    return Facts(recipe=RECIPE_OF_TEST, labels=("a",), seed=0, place={})


@pytest.mark.parametrize(
    ("module", "call", "left"),
    [
        (os, "mkdir", 1),  # of the new one's temporary name
        (os, "rename", 1),  # of what was written to its own name
        (shutil, "rmtree", 2),  # of the old one
    ],
)
def test_a_save_cut_off_at_a_bad_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, module, call, left):
    """SIGKILL just before the call would leave what is on the disk then; that is copied, and the save goes on."""
    folder, found = tmp_path / "saved", tmp_path / "as left"
    real = getattr(module, call)

    def copied_before(path, *arguments, **options):
        if str(path).startswith(str(folder)) and not found.exists():
            shutil.copytree(folder, found)
        return real(path, *arguments, **options)

    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(small_state(1), small_facts())
        checkpoints.wait()
        monkeypatch.setattr(module, call, copied_before)
        checkpoints.save(small_state(2), small_facts())
        checkpoints.wait()
        assert checkpoints.steps == (2,)
    monkeypatch.undo()
    with Checkpoints(found, keep=1) as checkpoints:
        assert checkpoints.latest == left
        assert checkpoints.best is None
        same(checkpoints.restore(left, small_state(0))[0], small_state(left))
        checkpoints.save(small_state(3), small_facts())
        checkpoints.wait()
        assert checkpoints.steps == (3,)
    assert [path.name for path in found.iterdir()] == ["3"]


ON_EIGHT = """
import sys
from pathlib import Path
from training.test_run_checkpoints import *
from jaxprune.parallel.devices import Layout, divided
folder, layout = Path(sys.argv[1]), Layout(spread=divided)
with Checkpoints(folder / "one") as checkpoints:
    state, _ = checkpoints.restore(1, small_state(0, layout))
assert state.params["kernel"].addressable_shards[0].data.shape == (64, 12)
assert state.params["bias"].addressable_shards[0].data.shape == (96,)
same(state, small_state(1))
with Checkpoints(folder / "eight") as checkpoints:
    checkpoints.save(state.replace(step=jax.numpy.int32(2)), small_facts())
"""


def test_a_checkpoint_goes_from_one_device_to_eight_that_divide_it_and_back(tmp_path):
    with Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(small_state(1), small_facts())
    env = child_environment(XLA_FLAGS="--xla_force_host_platform_device_count=8")
    command = [sys.executable, "-c", ON_EIGHT, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Checkpoints(tmp_path / "eight") as checkpoints:
        found, facts = checkpoints.restore(2, small_state(0))
    same(found.replace(step=jax.numpy.int32(1)), small_state(1))
    assert facts == small_facts()


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_an_error_and_leaves_the_one_before(dataset, whole, tmp_path):
    """A limit on file sizes stands in for a full disk."""
    made, trained = RECIPE_OF_TEST, shared().training()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def until_full():
        with Checkpoints(tmp_path / "c") as checkpoints, batches(dataset, made) as loader:

            def save(done, found):
                facts = Facts(recipe=made, labels=dataset.labels, seed=7, place=loader.get_state())
                if done == 2:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
                checkpoints.save(trained.state, facts)
                checkpoints.wait()

            list(trained.fit(loader, save=save, save_every=1))

    try:
        with pytest.raises(OSError, match=r"a checkpoint could not be written \(.*\); those of steps 1 are whole"):
            until_full()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    time.sleep(1)  # threads of this process, which would have ended, may still be writing
    state, losses = run(dataset, tmp_path / "c")
    assert min(losses) == 1
    same(state, whole[0])


def test_sigterm_only_raises_a_flag_inside_the_context():
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) == before


def step(number: int) -> Step:
    return Step(
        step=number, epoch=0, loss=1.0, gradient=1.0, lr=0.1, keep_rate=1.0, seconds=1.0, clips_per_second=8.0,
        waiting=0.0, compiled=False,
    )  # fmt: skip


def test_the_log_goes_on_where_the_state_does(tmp_path):
    path = tmp_path / METRICS
    with MetricsLog(path) as log:
        for event in (step(0), step(1), evaluation(2, float("nan")), step(2), step(3), evaluation(4, 0.5)):
            log.write(event)
    with path.open("a") as file:
        file.write('{"kind": "st')
    with MetricsLog(path, step=2) as log:
        log.write(step(2))
    lines = read_metrics(path)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 0), ("step", 1), ("evaluation", 2), ("step", 2),
    ]  # fmt: skip
    assert lines[2]["score"] is None
    assert lines[3] == {"kind": "step"} | dataclasses.asdict(step(2))


def result(made) -> dict:
    """A result.json with what is read again."""
    score = dataclasses.asdict(evaluation(3, 0.5))
    whole = {"steps": 3, "saved_step": 3, "macs": 1, "unpruned_macs": 2, "compilations": 1, "best_score": None}
    words = {name: "x" for name in ("data_set", "saved", "device", "model")}
    return {"recipe": made.to_json(), "scores": {"test": score}} | whole | words


@pytest.mark.parametrize(
    "line", ["7", "{}", '{"kind": "step"}', '{"kind": "other", "step": 1}', "[[[", '{"step": "1"}']
)
def test_a_line_that_is_none_of_a_log_is_refused_but_a_last_one_that_was_cut_off(tmp_path, line):
    good = json.dumps({"kind": "step", "step": 0})
    (tmp_path / "log").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match="line 2 is none of a metrics log"):
        read_metrics(tmp_path / "log")
    (tmp_path / "log").write_text(f"{good}\n{line}")
    assert read_metrics(tmp_path / "log") == [{"kind": "step", "step": 0}]


def test_a_directory_is_a_new_run_an_unfinished_one_or_refused(tmp_path):
    made = recipe()
    assert not open_run(tmp_path / "a", made, seed=1)
    assert open_run(tmp_path / "a", made, seed=1)
    assert json.loads((tmp_path / "a" / RECIPE).read_text())["seed"] == 1
    with pytest.raises(ValueError, match=r"other settings \(seed is 1 there, 2 here\)"):
        open_run(tmp_path / "a", made, seed=2)
    assert open_run(tmp_path / "a", dataclasses.replace(made, source="in other words"), seed=1)
    other = dataclasses.replace(made, loop=dataclasses.replace(made.loop, epochs=9))
    with pytest.raises(ValueError, match=r"loop\.epochs is 6 there, 9 here"):
        open_run(tmp_path / "a", other, seed=1)
    assert finished(tmp_path / "a", made, seed=1) is None
    (tmp_path / "a" / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no finished run, so its checkpoints are still needed"):
        clear(tmp_path / "a")
    found = json.loads(json.dumps(result(made)))
    (tmp_path / "a" / RESULT).write_text(json.dumps(found))
    with pytest.raises(ValueError, match="holds a finished run"):
        open_run(tmp_path / "a", made, seed=1)
    assert finished(tmp_path / "a", made, seed=1) == found
    with pytest.raises(ValueError, match=r"a finished run with other settings \(loop\.epochs is 6 there, 9 here\)"):
        finished(tmp_path / "a", other, seed=1)
    clear(tmp_path / "a")
    clear(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [RECIPE, RESULT]
    damaged = ["{", "[]", "5", "[" * 10**5, *(json.dumps(found | {name: {}}) for name in found)]
    damaged += [json.dumps({other: found[other] for other in found if other != name}) for name in found]
    for text in damaged:
        (tmp_path / "a" / RESULT).write_text(text)
        with pytest.raises(ValueError, match="a finished run that cannot be read"):
            finished(tmp_path / "a", made, seed=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="exists and is no run"):
        open_run(tmp_path / "b", made, seed=1)
