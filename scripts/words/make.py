"""Makes a data set out of nothing: the 35 words of Speech Commands v2, spoken by espeak-ng in noise.

    python -m scripts.words.make data/speech_corpus

The folder has the layout of Speech Commands v0.02, with speakers kept apart between train, validation and test. It
needs the program espeak-ng (Debian: apt-get update && apt-get install -y espeak-ng). Interrupt it at will: the same
command goes on where it stopped.
"""

import time
from pathlib import Path
from typing import Annotated

import tyro

from jaxprune.cli import console as cli
from scripts.words import corpus


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    settings: Annotated[corpus.Corpus, tyro.conf.arg(name="")] = corpus.Corpus(),  # noqa: B008, it is frozen
    workers: int = 2,
) -> None:
    """Speaks the corpus into a folder.

    Args:
        folder: where it goes; new, or a corpus of the same settings that was interrupted.
        settings: what decides the clips.
        workers: espeak-ng processes at a time.
    """
    began = time.monotonic()
    with cli.progress("speaking", cli.Rate(digits=0)) as progress:
        bar = progress.add_task("", total=None)
        facts = corpus.make(
            folder,
            settings,
            workers=workers,
            watch=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    cli.print_table(f"{folder}", ("split", "clips"), facts["clips"].items())
    seconds = time.monotonic() - began
    cli.notice(f"{sum(facts['clips'].values())} clips by {facts['speakers']} speakers; this run took {seconds:.0f} s")


if __name__ == "__main__":
    cli.run(main)
