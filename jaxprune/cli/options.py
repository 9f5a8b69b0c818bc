"""Options that several commands share: a data set, and a checkpoint that runs on it.

They are written for tyro: a field is an option, the sentence below it its help.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune import files
from jaxprune.amounts import Amount, in_words
from jaxprune.cli import console as cli
from jaxprune.config import Card
from jaxprune.data.batches import Batches, Workers, eval_batches
from jaxprune.data.published import (
    ESC50,
    ArabicSpeechCommands,
    AudioSet,
    Folder,
    Manifest,
    Shards,
    SpeechCommands,
    VoxCeleb1,
)
from jaxprune.data.records import Dataset, Split, first_few
from jaxprune.models import Classifier

# A data set a subcommand, its fields as options.
DataSource = Annotated[
    Annotated[ArabicSpeechCommands, tyro.conf.subcommand("arabic-speech-commands")]
    | Annotated[ESC50, tyro.conf.subcommand("esc50")]
    | Annotated[SpeechCommands, tyro.conf.subcommand("speech-commands")]
    | Annotated[AudioSet, tyro.conf.subcommand("audioset")]
    | Annotated[VoxCeleb1, tyro.conf.subcommand("voxceleb1")]
    | Annotated[Folder, tyro.conf.subcommand("folder")]
    | Annotated[Manifest, tyro.conf.subcommand("manifest")]
    | Annotated[Shards, tyro.conf.subcommand("shards")],
    tyro.conf.arg(name=""),
]
RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # that a model is measured at
DType = Literal["float32", "bfloat16"]
SLOWER = (
    "this CPU is not known to multiply in bfloat16, so bfloat16 may be slower here than float32; "
    "jaxprune benchmark --dtype float32 bfloat16 measures it"
)
MULTIPLIES_BFLOAT16 = "avx512_bf16"  # the flag of the CPUs that gained by it where it was measured
# Commands with a data set take the options of either side of it, before it or after.
with_data = tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnDataset:
    """A checkpoint, and the clips of a data set that it runs on."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """a directory of jaxprune convert or jaxprune finetune, or the name of a shipped model."""
    data: DataSource
    """which data set, and where."""
    split: Split = "test"
    """which clips."""
    dtype: DType = "float32"
    """what the model computes in."""
    threads: int = 2
    """threads that decode."""
    unusable: float = 0.01
    """the share of clips that may be damaged or silent."""

    @property
    def source(self) -> dict[str, Any]:
        """The data set's kind and options, for a file that says where numbers are from."""
        return source(self.data)

    def read(self) -> Dataset:
        """The data set. Raises `ValueError` where the split has no clips, and as the data set's reader."""
        tell_if_slower(self.dtype)
        dataset = read(self.data)
        dataset.clips(self.split)
        return dataset

    def card(self, dataset: Dataset, *, checkpoint: Path | None = None) -> Card:
        """The card of the checkpoint, or of another one for the same clips. Raises as `card_for`."""
        return card_for(checkpoint or self.checkpoint, dataset)

    def model(self, checkpoint: Path | None = None) -> Classifier:
        """The model of the checkpoint, or of another one. Raises `ValueError` as `jaxprune.load`."""
        return checkpoints.load(checkpoint or self.checkpoint, dtype=self.dtype)

    def batches(self, dataset: Dataset, model: Classifier, *, batch: int) -> Batches:
        """The split's clips in batches of at most `batch`, as long as the model's spectrogram. Raises `ValueError`."""
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1")
        return eval_batches(
            dataset,
            self.split,
            frames=model.config.frames,
            batch_size=min(batch, len(dataset.clips(self.split))),
            workers=Workers(threads=self.threads),
            unusable=self.unusable,
        )


# Flattened: its fields are options of the command.
Subject = Annotated[OnDataset, tyro.conf.arg(name="")]


def read(data: Any) -> Dataset:
    """Reads a data source's clips. Says on stderr what was skipped or assumed on the way. Raises as the source does."""
    dataset = data.read()
    for told in dataset.notices:
        cli.notice(told)
    return dataset


def tell_if_slower(dtype: str) -> None:
    """Says so where bfloat16 was chosen and JAX computes on a CPU that may lose by it."""
    if dtype == "bfloat16" and jax.default_backend() == "cpu" and MULTIPLIES_BFLOAT16 not in cpu_flags():
        cli.notice(SLOWER)


def cpu_flags(facts: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The flags of the CPU's abilities, as Linux tells them; none elsewhere."""
    if not facts.exists():
        return []
    lines = facts.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])


def source(data: Any) -> dict[str, Any]:
    """A data source's kind and options."""
    return {"kind": type(data).__name__, **dataclasses.asdict(data)}


def check_folder(out: Path | None) -> None:
    """Raises `ValueError` where `--out`, if given, names a file and not a folder."""
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")


def check_file(out: Path | None) -> None:
    """Makes the folder of the file that `--out` names, if given. Raises `ValueError` where it names a folder."""
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"{out} is a directory; --out names a file")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)


def held(out: Path | None) -> AbstractContextManager[None]:
    """Holds the output that `--out` names, if given, against other processes. Raises as `jaxprune.files.locked`."""
    return nullcontext() if out is None else files.locked(out)


def left_out(reasons: Collection[str]) -> list[str]:
    """A sentence on the clips that were left out, and why. It is empty if there are none."""
    clips = "1 clip" if len(reasons) == 1 else f"{len(reasons)} clips"
    return [f"{clips} could not be used: {first_few(list(reasons))}"] if reasons else []


def card_for(checkpoint: str | os.PathLike, dataset: Dataset) -> Card:
    """Reads the card of a checkpoint whose classes are the data set's. Says on stderr what the user should doubt.

    Raises `ValueError` as `load_card` and `check_labels` do.
    """
    card = checkpoints.load_card(checkpoint)
    check_labels(card, dataset)
    if not card.labels:
        cli.notice(f"{checkpoint} names no classes: its {card.model.classes} are taken to be in the data set's order")
    if not card.trained:
        cli.notice(f"{checkpoint} has random weights, so what is measured means nothing")
    return card


def rates_to_measure(cards: Iterable[Card]) -> tuple[float, ...]:
    """The keep rates to measure models at, falling: those of the models that were trained for several, else `RATES`."""
    trained = {rate for card in cards if len(card.keep_rates) > 1 for rate in card.keep_rates}
    return tuple(sorted(trained, reverse=True)) or RATES


def marked(amount: Amount, card: Card) -> str:
    """An amount in a table, marked where it is a keep rate that the model was not trained for."""
    outside = isinstance(amount, float) and not card.covers(amount)
    return in_words(amount) + (" (not trained for)" if outside else "")


def trained_for(card: Card) -> str:
    """The keep rates of a card that has some, and its method if that is not top-k, in words."""
    several = len(card.keep_rates) > 1
    rates = f"{'the keep rates' if several else 'keep rate'} {' '.join(f'{rate:g}' for rate in card.keep_rates)}"
    return rates if card.method == "topk" else f"{card.method} at {rates}"


def check_labels(card: Card, dataset: Dataset) -> None:
    """Raises `ValueError` unless a model's outputs mean the data set's classes: the same names in the same order.

    A card without names passes on the number of classes alone.
    """
    if card.model.classes != len(dataset.labels):
        raise ValueError(f"the checkpoint has {card.model.classes} classes, but {dataset.name} {len(dataset.labels)}")
    if not card.labels or card.labels == dataset.labels:
        return
    pairs = zip(card.labels, dataset.labels, strict=True)
    different = [f"{y} is {mine!r}, not {theirs!r}" for y, (mine, theirs) in enumerate(pairs) if mine != theirs]
    if sorted(card.labels) == sorted(dataset.labels):
        why = "has the same classes in another order (a label file in the checkpoint's order mends that)"
    else:
        why = "has other classes"
    raise ValueError(f"{dataset.name} {why}; in the checkpoint class {first_few(different)}")
