"""A run's metrics as TensorBoard event files: the lines of `jaxprune.training.run_directory.MetricsLog`, as curves.

    run/tensorboard/train/         each update: loss, gradient norm, learning rate, keep rate, clips a second
    run/tensorboard/evaluation/    each evaluation: its loss and scores

Written with tensorboardX (the extra `tensorboard`), which is imported only here, on request.
"""

import dataclasses
import math
import os
from pathlib import Path

from jaxprune.training.events import Evaluation, Step

EVENTS = "tensorboard"


class EventLog:
    """Scalars with the names of the fields of a `Step` or an `Evaluation`, at its step. On disk within a second.

    Opened at a resumed step, it notes that in the files. Readers then drop an earlier process's updates from there on,
    which will come again. Numbers that are not finite are left out. Raises `ValueError` if tensorboardX is missing.
    """

    def __init__(self, directory: str | os.PathLike, *, step: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                'TensorBoard files need tensorboardX, which is not installed; pip install "jaxprune[tensorboard]"'
            ) from error
        # The evaluation of step n came before the update of step n. Apart, each can be kept or dropped by its own rule.
        self._writers = {
            kind: SummaryWriter(
                str(Path(directory) / name), purge_step=again, flush_secs=1, filename_suffix=f".{step:09d}"
            )
            for kind, name, again in ((Step, "train", step), (Evaluation, "evaluation", step + 1))
        }

    def write(self, event: Step | Evaluation) -> None:
        """Adds a point to the curve of each number of the event."""
        for name, value in curves(event).items():
            self._writers[type(event)].add_scalar(name, value, event.step)

    def close(self) -> None:
        """Writes what is left and closes the files."""
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def curves(event: Step | Evaluation) -> dict[str, float]:
    """The event's numbers by the names of their curves, with each rate's loss and score if there are several rates."""
    numbers = {name: value for name, value in dataclasses.asdict(event).items() if name != "step"}
    rates = event.rates if isinstance(event, Evaluation) else ()
    if len(rates) > 1:
        numbers |= {f"{name} at {one.keep_rate:g}": getattr(one, name) for one in rates for name in ("loss", "score")}
    return {name: value for name, value in numbers.items() if is_scalar(value)}


def is_scalar(value: object) -> bool:
    """True for a value that makes a point of a curve: a finite number, and no yes or no."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
