"""The directory of a run: its log, its result, signals, and the runs it goes on with or refuses."""

import dataclasses
import json
import os
import signal
import time

import pytest
from training.run_cases import evaluation, step
from training_runs import recipe

from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.run_directory import METRICS, RECIPE, RESULT, MetricsLog, clear, finished, open_run, read_metrics


def test_sigterm_only_raises_a_flag_inside_the_context():
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) == before


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


def test_a_run_of_before_a_setting_was_there_has_its_default(tmp_path):
    """A younger setting at its default goes on with the run; at another value it is told as the difference."""
    made = recipe()
    open_run(tmp_path / "run", made, seed=1)
    saved = json.loads((tmp_path / "run" / RECIPE).read_text())
    del saved["augment"]["time_shift"], saved["augment"]["speed"], saved["optimizer"]["clip"]
    (tmp_path / "run" / RECIPE).write_text(json.dumps(saved))
    assert open_run(tmp_path / "run", made, seed=1)
    other = dataclasses.replace(made, augment=dataclasses.replace(made.augment, speed=(0.9, 1.1)))
    with pytest.raises(ValueError, match=r"augment\.speed is \[1.0, 1.0\] there, \[0.9, 1.1\] here"):
        open_run(tmp_path / "run", other, seed=1)
