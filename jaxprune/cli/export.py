"""Writes a pruned model as a folder that runs without jaxprune: ONNX, OpenVINO or StableHLO.

    jaxprune export ast-words exported --format onnx --keep-rate 0.7
    jaxprune export CHECKPOINT OUT --format huggingface --upload ORG/NAME --results evaluation.json
    jaxprune export CHECKPOINT OUT --format openvino --input waveform --precision int8 --calibrate SOUNDS

What was written is run and compared with the model before the command ends.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import tyro

from jaxprune import checkpoint as checkpoints
from jaxprune.amounts import Amount, in_words
from jaxprune.audio import load_audio
from jaxprune.cli import console as cli
from jaxprune.cli.classify import RANDOM
from jaxprune.cli.options import tell_if_slower
from jaxprune.cli.reducing import UNTOLD, One, OneReduction
from jaxprune.data import folders
from jaxprune.data.own import Manifest
from jaxprune.export.check import Agreement
from jaxprune.export.export import FACTS, Format, Platform, Settings, export
from jaxprune.export.runtimes import RUNTIMES, Precision
from jaxprune.features import sample_count
from jaxprune.files import check_free, locked
from jaxprune.registry import reduced

CALIBRATING = 64  # clips
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """The model card of a Hugging Face directory, and the directory's place on the hub."""

    results: tuple[Path, ...] = ()
    """files of jaxprune evaluate --out that the model card tells."""
    upload: str = ""
    """the repository on the hub, ORG/NAME, that the directory is sent to."""
    private: bool = False
    """make that repository private if it is new."""


UNPUBLISHED = Publication()


def main(
    checkpoint: Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    format: Format | Literal["huggingface"],
    how: OneReduction = UNTOLD,
    batch: int | Literal["free"] = "free",
    input: Literal["mel", "waveform"] = "mel",
    precision: Precision = "float32",
    calibrate: Path | None = None,
    sounds: tuple[Path, ...] = (),
    platforms: tuple[Platform, ...] = ("cpu", "cuda", "tpu"),
    publication: Annotated[Publication, tyro.conf.arg(name="")] = UNPUBLISHED,
    overwrite: bool = False,
) -> None:
    """Write a model with its keep rate fixed for another runtime, and prove that it computes the same.

    Or write it unpruned as a Hugging Face directory with a model card, and upload it.

    Args:
        checkpoint: a directory of jaxprune convert or jaxprune finetune, or the name of a shipped model.
        out: the folder to write: the model, export.json with the facts about it, and run.py, which runs it.
        format: onnx for ONNX Runtime and others, openvino for Intel's and AMD's CPUs, stablehlo for JAX and XLA;
            huggingface for transformers, which does not prune.
        how: the reduction that is fixed in the file; none unless told.
        batch: clips in a call; any number if free.
        input: mel, the normalised log-mel as jaxprune features --checkpoint saves it; or waveform, 16 kHz samples, the
            features and the padding of short clips then being part of the file.
        precision: what the runtime computes in; bfloat16 is for openvino and stablehlo, int8 for onnx and openvino.
        calibrate: recordings to find the ranges of int8 on: a manifest, as of jaxprune evaluate, or a folder of sounds.
        sounds: recordings to compare on, besides four made ones (their first window).
        platforms: platforms that a stablehlo file runs on.
        publication: a huggingface directory's model card, and where it is sent.
        overwrite: replace an export that is there.
    """
    if format == "huggingface":
        check_unused(locals())
        convert = importlib.import_module("jaxprune.convert.publish")  # needs PyTorch, which nothing else here does
        return convert.publish(checkpoint, out, **vars(publication), overwrite=overwrite)
    if publication != UNPUBLISHED:
        raise ValueError("--results, --upload and --private are for --format huggingface; leave them out")
    clips = None if batch == "free" else batch
    settings = Settings(format=format, precision=precision, sound=input, batch=clips, platforms=platforms)
    check_options(out, settings, calibrate=calibrate)
    card = checkpoints.load_card(checkpoint)
    how = how.of(card)
    amount = how.amount(default=1.0, depth=card.model.depth)
    with locked(out):
        check_free(out, marker=FACTS, overwrite=overwrite)  # before the work, not after it
        recorded = {"sounds": sounds, "calibrate": calibrate, "overwrite": overwrite}
        found = write(checkpoint, out, how=how, amount=amount, settings=settings, **recorded)
    if not card.trained:
        cli.notice(f"{checkpoint}: {RANDOM}")
    for remark in how.remarks(checkpoint, card, amount):
        cli.notice(remark)
    print_agreement(found, title=f"{out}: {format}, {precision}, {how.method}, {in_words(amount)}")


def write(
    checkpoint: Path,
    out: Path,
    *,
    how: One,
    amount: Amount,
    settings: Settings,
    sounds: Sequence[Path],
    calibrate: Path | None,
    overwrite: bool,
) -> dict[str, Agreement]:
    """Exports a checkpoint under one reduction, checked and calibrated on recordings."""
    card, model = checkpoints.load_card(checkpoint), checkpoints.load(checkpoint)
    return export(
        out,
        model,
        policy=reduced(model, how.method, amount),
        card=card,
        settings=settings,
        sounds=[load_audio(path).waveform for path in sounds],
        calibrate=[] if calibrate is None else recordings(calibrate, samples=sample_count(card.model.frames)),
        overwrite=overwrite,
    )


def check_unused(given: Mapping[str, Any]) -> None:
    """Raises `ValueError` for options of other formats that were given for Hugging Face's; `given` are `main`'s."""
    defaults = {name: option.default for name, option in inspect.signature(main).parameters.items()}
    others = [
        name for name in defaults if name not in ("checkpoint", "out", "format", "how", "publication", "overwrite")
    ]
    changed = [name for name, value in vars(given["how"]).items() if value != getattr(UNTOLD, name)]
    changed += [name for name in others if given[name] != defaults[name]]
    if unused := [f"--{name.replace('_', '-')}" for name in changed]:
        raise ValueError(
            f"{' and '.join(unused)} cannot be used with --format huggingface: transformers runs the whole model, "
            "unpruned, in float32"
        )


def check_options(out: Path, settings: Settings, *, calibrate: Path | None) -> None:
    """Raises `ValueError` for options that do not go together, and where OUT is named as a file is.

    A precision that is slower here than float32 is said on stderr.
    """
    if out.suffix in (".onnx", ".xml", ".stablehlo"):
        raise ValueError(f"{out} looks like a file; OUT is the folder that export writes, model and program in it")
    if (settings.precision == "int8") != (calibrate is not None):
        raise ValueError("--precision int8 and --calibrate go together: int8 needs recordings to find its ranges on")
    if settings.format == "stablehlo":
        tell_if_slower(settings.precision)


def recordings(path: Path, *, samples: int, clips: int = CALIBRATING) -> list[np.ndarray]:
    """The beginnings of so many recordings of a folder or manifest, evenly spread over it.

    Of a manifest the training clips are taken, if there are any. Raises `ValueError` where there is no sound.
    """
    if path.is_dir():
        files = [file for _, file in folders.find(path).files]
    else:
        records = Manifest(path=path).read().records
        files = [record.path for record in records if record.split == "train"] or [record.path for record in records]
    if not files:
        raise ValueError(f"{path} holds no sounds to calibrate on")
    return [load_audio(file).waveform[:samples] for file in spread(files, clips)]


def spread(items: Sequence[T], count: int) -> list[T]:
    """Picks at most so many of the items, evenly spread over them."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def print_agreement(found: dict[str, Agreement], *, title: str) -> None:
    """A row for each runtime that ran the file."""
    rows = [
        (
            RUNTIMES[name].name,
            f"{one.difference:.1e}",
            f"{100 * one.overlap:.1f} %",
            f"{100 * one.same_label:.0f} %",
            one.clips,
            one.ties,
        )
        for name, one in found.items()
    ]
    columns = ["run by", "logits differ by", "same patches", "same label", "clips", "ties"]
    cli.print_table(title, columns, rows, notes=["Compared with the model in JAX, float32."])
