"""A run that stops, is killed or goes wrong: what is on disk, and that it ends where an uninterrupted run does."""

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
from training.run_cases import RECIPE_OF_TEST, evaluation, run, shared
from training_runs import STEPS, Poisoned, batches, child_environment, corpus

from jaxprune.parallel.devices import Layout
from jaxprune.training.checkpoints import Checkpoints, Facts, named_arrays
from jaxprune.training.events import NotFinite
from jaxprune.training.step import State

TOTAL = 3 * STEPS


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
from training.run_cases import *
from training_runs import *
from jaxprune.parallel.devices import Layout
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.checkpoints import Checkpoints, Facts, named_arrays, start_or_resume
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


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics/metrics", b""),
        ("metrics/metrics", b"\xff"),
        ("meta/metadata", b"[]"),
        ("meta/metadata", b"{}"),
        ("state/_METADATA", b"[]"),
        ("state/manifest.ocdbt", b""),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(tmp_path, file, content):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(small_state(1), small_facts())
    (tmp_path / "c" / "1" / file).write_bytes(content)
    with (
        pytest.raises(ValueError, match=rf"checkpoint.* {tmp_path}/c.* damaged"),
        Checkpoints(tmp_path / "c") as checkpoints,
    ):
        checkpoints.restore(1, small_state(0))


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
