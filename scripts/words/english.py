"""Trains the English model that comes with jaxprune: the shipped Arabic one learns the words of the spoken corpus.

    python -m scripts.words.make corpus
    python -m scripts.words.english corpus --out runs/english
    python -m scripts.words.ship runs/english audiomae-english-words --corpus corpus

The same command goes on where it was cut off. Each step draws how much ToMe saves, so that one model serves any saving.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.cli import console as cli
from jaxprune.parallel.processes import StopOnSignal
from jaxprune.training.recipes import recipe
from jaxprune.training.settings import Recipe
from scripts.studies.pieces import STOPPED, Run, done
from scripts.words.voices import WORDS

START = "audiomae-arabic-words"  # the recipe's name, and the shipped model's


def main(corpus: Annotated[Path, tyro.conf.Positional], *, out: Path, epochs: int = 30, seed: int = 0) -> int:
    """Train it.

    Args:
        corpus: what scripts/words/make.py wrote.
        out: directory of the run; the same one goes on.
        epochs: passes over the training clips.
        seed: decides the head's first weights, the order and the augmentation.
    """
    with StopOnSignal() as stop:
        run = Run(name=out.name, recipe=english(corpus, epochs=epochs))
        return 0 if done(run, out.parent, seed=seed, stop=stop) else STOPPED


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


if __name__ == "__main__":
    cli.run(main)
