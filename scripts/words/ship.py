"""Puts a finished run's model into the library, and clips to try it on where the demo and the tests find them.

    python -m scripts.words.ship runs/tome audiomae-arabic-words
    python -m scripts.words.ship runs/english audiomae-english-words --corpus corpus

The model goes in half precision. It must label the validation and the test clips of its run as well as before. Its card
tells what it was trained on, for which method, and how well it labels the test clips. Clips are written as flac, with a
manifest.
"""

import csv
import dataclasses
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import soundfile
import tyro

from jaxprune import checkpoint
from jaxprune.amounts import Saving
from jaxprune.cli import console as cli
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.data.published import SpeechCommands
from jaxprune.data.records import Dataset, Record
from jaxprune.files import whole_directory, write_text
from jaxprune.reduction.policy import Policy
from jaxprune.registry import reduced
from jaxprune.training.settings import Recipe
from jaxprune.training.start import Sources
from scripts.studies.pieces import correct, located, recipe_of

MANIFEST = "words.csv"
WORSE = 0.001  # of accuracy that half precision may lose or gain
# What models are trained on, by the beginning of their recipe's name.
DATA = {
    **dict.fromkeys(
        ("audiomae-arabic", "ast-arabic"),
        "Arabic Speech Commands by Ghandoura, Hjabo and Al Dakkak (2021), real recordings of 40 words by 30 speakers, "
        "licence CC BY 4.0",
    ),
    **dict.fromkeys(
        ("audiomae-english-words", "audiomae-words", "ast-words"),
        "35 English words spoken by espeak-ng in artificial noise (scripts.words.make), licence CC0 1.0",
    ),
}


def main(
    run: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    *,
    root: Path | None = None,
    savings: tuple[float, ...] = (0.15, 0.34, 0.45),
    corpus: Path | None = None,
    clips_out: Path = Path("tests") / "words",
    shipped: Path = checkpoint.SHIPPED,
) -> None:
    """Save the model of a run small under a name, and a few clips of every word.

    Args:
        run: the directory of the finished run.
        name: the name to load it by; an older model of this name is replaced.
        root: where the run's clips are, if not where the run had them.
        savings: shares of arithmetic to measure the model at, besides none.
        corpus: what scripts/words/make.py wrote, to take clips from; none are written without it.
        clips_out: where the clips go; older ones there are replaced.
        shipped: where the model goes.
    """
    recipe = recipe_of(run)
    if root is not None:
        recipe = located(recipe, root)
    model, card = checkpoint.load(run), checkpoint.load_card(run)
    card = dataclasses.replace(card, method=recipe.prune.method)  # which the cards of older runs do not tell
    policies = {0.0: reduced(model, card.method, 1.0)}
    policies |= {saving: reduced(model, card.method, Saving(saving)) for saving in savings}
    with tempfile.TemporaryDirectory() as folder:
        small = checkpoint.save(Path(folder) / name, model, card=card, dtype=jnp.float16)
        told = measured(Sources().of(recipe).read(), card, policies, whole=run, half=small)
    card = dataclasses.replace(card, source=f"{history(run, card)}. Data: {origin(recipe)}. {told}")
    path = checkpoint.save(shipped / name, model, card=card, overwrite=True, dtype=jnp.float16)
    for file in path.rglob("commit_success.txt"):  # Orbax names the directory in it; it is there that counts
        write_text(file, "committed\n")
    cli.notice(card.source)
    for written in (path, *([] if corpus is None else [write_clips(corpus, clips_out)])):
        size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
        cli.notice(f"wrote {written}, {size / 1e6:.2f} MB")


def origin(recipe: Recipe) -> str:
    """The data that a recipe is for. Raises `ValueError` where the table above lacks it."""
    for beginning, data in DATA.items():
        if recipe.name.startswith(beginning):
            return data
    raise ValueError(f"the data of the recipe {recipe.name} and their licence are not known here; add them to DATA")


def history(run: Path, card: Card) -> str:
    """The sources of a run's model and of those that it started from, without paths of the machine."""
    found = re.search(r", from (?!scratch)(.+?)(?=, weights averaged|$)", card.source)
    if found is None:
        return card.source
    own, start = card.source.replace(found[0], ""), Path(found[1])
    if (checkpoint.SHIPPED / start.name).is_dir() and start == Path(start.name):
        return f"{own}; it began as {start.name}"
    try:
        before = checkpoint.load_card(start)
    except (ValueError, OSError):
        return f"{own}; it began as another model"
    return f"{own}; it began as a model {history(start, before)}"


def measured(dataset: Dataset, card: Card, policies: Mapping[float, Policy], *, whole: Path, half: Path) -> str:
    """The accuracy in half precision on the test clips, in words.

    Raises `ValueError` where it is not that in whole precision, on the validation clips too.
    """
    models = {path: checkpoint.load(path) for path in (whole, half)}
    rows = []
    for split in ("validation", "test"):
        before, after = (
            {saving: float(right.mean()) for saving, right in found.items()}
            for found in (correct(dataset, split, model=one, card=card, policies=policies) for one in models.values())
        )
        rows += [(split, f"{at:g}", f"{100 * before[at]:.2f}", f"{100 * after[at]:.2f}") for at in policies]
        if worst := [at for at in policies if abs(after[at] - before[at]) > WORSE]:
            raise ValueError(f"half precision changes the accuracy of the {split} clips at a saving of {worst[0]:g}")
    cli.print_table("Top-1 %", ("clips", "saving", "whole precision", "half"), rows)
    unpruned = macs(models[half], policies[0.0])
    at = [
        f"{100 * accuracy:.1f} % at {100 * (1 - macs(models[half], policies[saving]) / unpruned):.0f} % saved"
        for saving, accuracy in after.items()
    ]
    return f"Accuracy on its {len(dataset.clips('test')):,} test clips by {card.method}: {', '.join(at)}"


def write_clips(corpus: Path, out: Path, *, train: int = 2, test: int = 6, seed: int = 0) -> Path:
    """Writes so many clips of each word as flac, with a manifest. The folder is whole or not there."""
    dataset = SpeechCommands(root=corpus).read()
    chosen = [
        record
        for split, count in (("train", train), ("test", test))
        for record in some(dataset.clips(split), classes=len(dataset.labels), count=count, seed=seed)
    ]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "labels", "split"))
    with whole_directory(out, marker=MANIFEST, overwrite=True) as directory:
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
    return out


def some(records: Sequence[Record], *, classes: int, count: int, seed: int) -> list[Record]:
    """Draws so many records of each class at random."""
    rng = np.random.default_rng(seed)
    found = []
    for label in range(classes):
        of_class = [record for record in records if record.labels == (label,)]
        found += [of_class[i] for i in sorted(rng.choice(len(of_class), count, replace=False))]
    return found


if __name__ == "__main__":
    cli.run(main)
