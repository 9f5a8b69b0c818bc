"""Trains the English model that comes with jaxprune: the shipped Arabic one learns the words of the spoken corpus.

    python -m scripts.words.make corpus
    python -m scripts.words.english corpus --out runs/english
    python -m scripts.words.ship runs/english/dynamic audiomae-english-words --corpus corpus

First each step draws how much ToMe saves. Then predictors learn which patches to prune, and the model with them. The
same command goes on where it was cut off.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.cli import console as cli
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.recipes import recipe
from jaxprune.training.settings import Recipe
from scripts.studies.pieces import STOPPED, Run, done, learning, second_stage
from scripts.words.voices import WORDS

START = "audiomae-arabic-words"  # the recipe's name, and the shipped model's
SAVING = 0.45  # that the predictors learn; below it they lose less, beyond it they break down


def main(
    corpus: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    epochs: int = 20,
    learned_epochs: int = 10,
    seed: int = 0,
) -> int:
    """Train it.

    Args:
        corpus: what scripts/words/make.py wrote.
        out: directory of both runs; the same one goes on.
        epochs: passes over the training clips while tokens are merged.
        learned_epochs: passes while the predictors learn.
        seed: decides first weights, the order and the augmentation.
    """
    merging = english(corpus, epochs=epochs)
    with StopOnSignal() as stop:
        for run in (
            Run(name="tome", recipe=merging),
            Run(name="dynamic", recipe=learned(merging, epochs=learned_epochs), start="tome"),
        ):
            if not done(run, out, seed=seed, stop=stop):
                return STOPPED
    return 0


def english(corpus: Path, *, epochs: int) -> Recipe:
    """The Arabic recipe at the savings of 0, 15, 30 and 45 %, with voices changed more: those of espeak-ng differ more.

    It begins with a model that was trained for such savings, so it needs no stage without any, and it reads clips
    normalised as that one does. The spectrogram is not masked: masks cost accuracy where much is saved.
    """
    arabic = recipe(START)
    return dataclasses.replace(
        arabic,
        name="audiomae-english-words",
        source="ours, not published: the settings of audiomae-arabic-words, and little chosen beside",
        start=dataclasses.replace(arabic.start, checkpoint=START),
        data=dataclasses.replace(arabic.data, dataset="speechcommands", root=str(corpus), classes=len(WORDS)),
        augment=dataclasses.replace(arabic.augment, pitch=(0.85, 1.18), time_mask=0, freq_mask=0),
        schedule=dataclasses.replace(arabic.schedule, warmup_epochs=2),
        prune=dataclasses.replace(arabic.prune, method="tome", sample=("1", "0.876", "0.73", "0.556")),
        loop=dataclasses.replace(arabic.loop, epochs=epochs, evaluate_every=5),
    )


def learned(merging: Recipe, *, epochs: int) -> Recipe:
    """The second stage: predictors learn to save 45 %. The first stage's model teaches."""
    short = dataclasses.replace(second_stage(merging, epochs=epochs), name=f"{merging.name}-dynamic")
    return learning(short, merging.model(), blocks=merging.prune.blocks, saving=SAVING)


if __name__ == "__main__":
    cli.run(main)
