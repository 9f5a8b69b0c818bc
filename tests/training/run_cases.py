"""A short recipe and its evaluation that tests of a run share."""

import dataclasses
import functools
from pathlib import Path

from training_runs import Rewound, batches, recipe, training

from jaxprune.training.checkpoints import Checkpoints, Facts, start_or_resume
from jaxprune.training.events import Evaluation, Step

# One compiled size, so that these tests are about saving; the schedule's are in test_train.
RECIPE_OF_TEST = recipe(
    prune=dataclasses.replace(recipe().prune, keep_rate=1.0),
    augment=dataclasses.replace(recipe().augment, time_shift=0.05, speed=(0.9, 1.1), pitch=(0.9, 1.1)),
)
RECIPE_OF_TEST = dataclasses.replace(
    RECIPE_OF_TEST, loop=dataclasses.replace(RECIPE_OF_TEST.loop, epochs=3, ema=0.9, label_smoothing=0.1)
)


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


def evaluation(step: int, score: float) -> Evaluation:
    return Evaluation(
        step=step, keep_rate=0.5, clips=4, loss=1.0, top1=score, top5=1.0, mean_average_precision=None, auc=None,
        d_prime=None, metric="accuracy", score=score,
    )  # fmt: skip


def step(number: int) -> Step:
    return Step(
        step=number, epoch=0, loss=1.0, gradient=1.0, lr=0.1, keep_rate=1.0, seconds=1.0, clips_per_second=8.0,
        waiting=0.0, compiled=False,
    )  # fmt: skip
