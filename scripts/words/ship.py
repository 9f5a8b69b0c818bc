"""Puts a model that scripts/words/train.py trained, and clips to try it on, where the demo and the tests find them.

    python -m scripts.words.ship runs/words-ast/tuned-1/model --corpus corpus

The model goes into the library in half precision, the clips into tests/words as flac, with a manifest.
"""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import soundfile
import tyro

from jaxprune import checkpoint
from jaxprune.cli import console as cli
from jaxprune.data.published import SpeechCommands
from jaxprune.data.records import Record
from jaxprune.files import whole_directory, write_text

MANIFEST = "words.csv"


def main(
    model: Annotated[Path, tyro.conf.Positional],
    *,
    corpus: Path,
    model_out: Path = checkpoint.SHIPPED / "ast-words",
    clips_out: Path = Path("tests") / "words",
    train: int = 2,
    test: int = 6,
    seed: int = 0,
) -> None:
    """Save a trained model small, and a few clips of every word.

    Args:
        model: the trained checkpoint.
        corpus: what scripts/words/make.py wrote.
        model_out: where the model goes; an older one there is replaced.
        clips_out: where the clips go; older ones there are replaced.
        train: clips of each word from the training split.
        test: clips of each word from the test split.
        seed: decides which clips.
    """
    card = checkpoint.load_card(model)
    card = dataclasses.replace(card, source=card.source.partition(", from ")[0])  # no path of the machine it is from
    checkpoint.save(model_out, checkpoint.load(model), card=card, overwrite=True, dtype=jnp.float16)
    for file in model_out.rglob("commit_success.txt"):  # Orbax names the directory in it; it is there that counts
        write_text(file, "committed\n")
    dataset = SpeechCommands(root=corpus).read()
    chosen = [
        record
        for split, count in (("train", train), ("test", test))
        for record in some(dataset.clips(split), classes=len(dataset.labels), count=count, seed=seed)
    ]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "labels", "split"))
    with whole_directory(clips_out, marker=MANIFEST, overwrite=True) as directory:
        for record in chosen:
            source = Path(record.path)
            path = Path(source.parent.name) / source.with_suffix(".flac").name
            (directory / path).parent.mkdir(exist_ok=True)
            samples, rate = soundfile.read(source, dtype="int16")
            soundfile.write(directory / path, samples, rate, subtype="PCM_16", compression_level=1.0)
            rows.writerow((path, dataset.labels[record.labels[0]], record.split))
        write_text(directory / MANIFEST, table.getvalue())
        for name in ("README.md", "LICENSE"):
            write_text(directory / name, (corpus / name).read_text(encoding="utf-8"))
    for path in (model_out, clips_out):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        cli.notice(f"wrote {path}, {size / 1e6:.2f} MB")


def some(records: tuple[Record, ...], *, classes: int, count: int, seed: int) -> list[Record]:
    """Draws so many records of each class at random."""
    rng = np.random.default_rng(seed)
    found = []
    for label in range(classes):
        of_class = [record for record in records if record.labels == (label,)]
        found += [of_class[i] for i in sorted(rng.choice(len(of_class), count, replace=False))]
    return found


if __name__ == "__main__":
    cli.run(main)
