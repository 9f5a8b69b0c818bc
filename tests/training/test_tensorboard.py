"""Event files read back with TensorBoard's own reader: the log's numbers at the log's steps, none twice."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxprune.training.events import Evaluation, Step
from jaxprune.training.run_directory import MetricsLog, read_metrics
from jaxprune.training.tensorboard import EventLog

KINDS = {"step": "train", "evaluation": "evaluation"}


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar, as TensorBoard shows them."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def step(number: int, *, loss: float) -> Step:
    return Step(
        step=number,
        epoch=number // 2,
        loss=loss,
        gradient=2.0 * loss,
        lr=1e-3 / (number + 1),
        keep_rate=0.75,
        seconds=0.5,
        clips_per_second=16.0,
        waiting=0.0,
        compiled=number == 0,
    )


def evaluation(number: int, *, score: float) -> Evaluation:
    rest = dict.fromkeys(("mean_average_precision", "auc", "d_prime"))
    return Evaluation(
        step=number, keep_rate=0.5, clips=9, loss=1.5, top1=score, top5=1.0, metric="accuracy", score=score, **rest
    )


def train(run: Path, *, first: int, last: int, salt: float) -> None:
    """Updates `first` to `last` - 1, with an evaluation after every second one, into both logs."""
    with MetricsLog(run / "metrics.jsonl", step=first) as lines, EventLog(run / "tensorboard", step=first) as events:
        for number in range(first, last):
            for log in (lines, events):
                log.write(step(number, loss=number + salt))
                if number % 2:
                    log.write(evaluation(number + 1, score=0.01 * number + 0.1 * salt))


SESSIONS = (
    [(0, 6)],
    [(0, 5), (5, 6)],
    [(0, 5), (4, 6)],  # the evaluation of step 4 stays, the update of step 4 comes again
    [(0, 1), (0, 6)],
    [(0, 5), (2, 3), (2, 6)],
)


@pytest.mark.parametrize("sessions", SESSIONS, ids=str)
def test_tensorboard_shows_what_the_log_says_however_often_a_run_goes_on(tmp_path, sessions):
    for i, (first, last) in enumerate(sessions):
        train(tmp_path, first=first, last=last, salt=0.25 * i)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    for kind, name in KINDS.items():
        found = curves(tmp_path / "tensorboard" / name)
        mine = [line for line in lines if line["kind"] == kind]
        assert [line["step"] for line in mine] == {"step": [0, 1, 2, 3, 4, 5], "evaluation": [2, 4, 6]}[kind]
        tags = {tag for tag, value in mine[0].items() if type(value) in (int, float)} - {"step"}
        assert found.keys() == tags
        for tag in tags:
            assert [number for number, _ in found[tag]] == [line["step"] for line in mine], tag
            np.testing.assert_array_equal(
                np.float32([value for _, value in found[tag]]), np.float32([line[tag] for line in mine]), err_msg=tag
            )
    assert {"loss", "gradient", "lr", "keep_rate", "clips_per_second"} <= curves(tmp_path / "tensorboard/train").keys()
    assert {"loss", "top1", "top5", "score"} <= curves(tmp_path / "tensorboard/evaluation").keys()


def test_what_is_not_a_finite_number_is_left_out(tmp_path):
    with EventLog(tmp_path) as log:
        log.write(dataclasses.replace(evaluation(2, score=0.5), loss=math.nan, auc=math.inf))
    found = curves(tmp_path / "evaluation")
    assert found["score"] == [(2, 0.5)]
    assert not {"loss", "auc", "d_prime", "metric"} & found.keys()


def test_a_missing_library_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        ValueError, match=r'^TensorBoard files need tensorboardX.*pip install "jaxprune\[tensorboard\]"$'
    ):
        EventLog(tmp_path / "run")
    assert not (tmp_path / "run").exists()
