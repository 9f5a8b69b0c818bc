"""The command `jaxprune convert SOURCE OUT`: a PyTorch checkpoint to a jaxprune one, or with `--to-torch` back again.

`read.py` reads, `mapping.py` takes tensors to leaves. This module joins them and reports.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from jaxprune import checkpoint
from jaxprune.cli.console import notice, print_table
from jaxprune.config import PADDING_IN_WORDS, Card
from jaxprune.files import check_free, locked
from jaxprune.models import Classifier
from jaxprune.positions import adapt_positions, released_audiomae_cut

from . import export, mapping
from .about import About
from .errors import shown
from .hub import open_source
from .huggingface_config import own_facts
from .model_card import read_measured, readme
from .pretraining import has_decoder, read_pretraining
from .pretraining_command import pretraining_tensors, save_pretraining
from .read import TorchCheckpoint, read_torch

NOTHING_TOLD = About()


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    *,
    to_torch: Literal["official", "huggingface"] | None = None,
    frames: int | None = None,
    positions: Literal["right", "released"] = "right",
    decoder_heads: int | None = None,
    about: Annotated[About, tyro.conf.arg(name="")] = NOTHING_TOLD,
    origin: str = "",
    overwrite: bool = False,
) -> None:
    """Convert a checkpoint between PyTorch and JAX; every number arrives, or nothing is written.

    Args:
        source: AST .pth, AudioMAE .pth, .safetensors, Hugging Face directory, or hf:ORG/NAME on the hub (or
            hf:ORG/NAME@REVISION, hf:ORG/NAME/FILE.pth); with --to-torch a jaxprune checkpoint.
        out: the jaxprune checkpoint directory to write; with --to-torch a .pth file or a Hugging Face directory.
        to_torch: convert a jaxprune checkpoint back, to the authors' layout or to Hugging Face's.
        frames: adapt the position table to spectrograms of this many frames (10 ms each).
        positions: how --frames shortens AudioMAE's table: right keeps each patch's own row; released repeats the
            published code, which scrambles them.
        decoder_heads: attention heads of a pretrained AudioMAE's plain decoder, if not 16. The decoder is kept unless
            --classes or --labels ask for a classifier.
        about: facts about the source.
        origin: a remark on where the weights come from, kept in the card beside the file name.
        overwrite: replace an existing output.
    """
    with locked(out):
        if to_torch is not None:
            export_checkpoint(source, out, layout=to_torch, overwrite=overwrite)
            return
        check_free(out, marker=checkpoint.CARD, overwrite=overwrite)  # before the work, not after it
        container = open_source(source, key=about.key)
        if has_decoder(container) and about.classes is None and about.labels is None:
            heads = {"num_heads": about.num_heads, "decoder_heads": decoder_heads}
            name = "; ".join(filter(None, (container.name, origin)))
            model = read_pretraining(container, **heads, grid=about.grid)
            save_pretraining(model, out, about=about, source=name, frames=frames, overwrite=overwrite)
            return
        read = read_torch(source, container=container, **vars(about))
        card, state = with_origin(read.card, origin), dict(read.state)
        if frames is not None:
            card, state = adapted(card, state, frames=frames, positions=positions)
        model = mapping.to_flax(state, card.model)
        checkpoint.save(out, model, card=card, overwrite=overwrite)
        check_saved(out, model)
        report(read, card=card, model=model, out=out)


def export_checkpoint(
    source: Path,
    out: Path,
    *,
    layout: Literal["official", "huggingface"],
    overwrite: bool = False,
    results: Sequence[Path] = (),
    name: str = "",
) -> None:
    """Writes a jaxprune checkpoint in a PyTorch layout and says what was written.

    The README of Hugging Face's tells `results`, files of `jaxprune evaluate`; `name` is its heading.
    """
    card = checkpoint.load_card(source)
    measured = [read_measured(path, card) for path in results]
    write = {
        "official": export_official,
        "huggingface": functools.partial(
            export_huggingface, readme=readme(card, name=name or out.name, results=measured)
        ),
    }[layout]
    tensors = mapping.to_torch(checkpoint.load(source)) if card.decoder is None else pretraining_tensors(source)
    state = {key: torch.tensor(value) for key, value in tensors.items()}
    write(out, state, card, overwrite=overwrite)
    numbers = sum(value.numel() for value in state.values())
    print(f"wrote {out}: {card.model.family}, {layout} layout, {len(state)} tensors, {numbers:,} numbers")


def export_official(out: Path, state: Mapping[str, torch.Tensor], card: Card, *, overwrite: bool) -> None:
    """Writes the authors' `.pth`."""
    if out.exists() and not (overwrite and out.is_file()):
        raise ValueError(f"{out} already exists; choose another name or ask to overwrite it (--overwrite)")
    export.write_official(out, state, card.model)
    notice(f"the .pth does not tell how short clips are padded; this model takes {PADDING_IN_WORDS[card.padding]}")


def export_huggingface(
    out: Path, state: Mapping[str, torch.Tensor], card: Card, *, readme: str, overwrite: bool
) -> None:
    """Writes a Hugging Face directory. Its one LayerNorm eps is the blocks'.

    The configuration also holds what only jaxprune knows, so that the model comes back as it was.
    """
    if card.decoder is not None:
        raise ValueError("Hugging Face's transformers has no pretraining AudioMAE; write it as official instead")
    config = card.model
    if card.padding != "zero":
        notice(
            "this model pads short clips with their minimum, but Hugging Face's ASTFeatureExtractor can only pad with "
            f"log-mel 0: there, clips under {config.frames} frames ({config.frames / 100:g} s) get other answers"
        )
    if config.norm_eps != config.head_norm_eps:
        notice(
            f"Hugging Face has one LayerNorm eps: the classifier's {config.head_norm_eps:g} becomes "
            f"{config.norm_eps:g}, which moves logits by about 1e-5 of their size"
        )
        config = dataclasses.replace(config, head_norm_eps=config.norm_eps)
    statistics = {"mean": card.mean, "std": card.std, "labels": card.labels}
    export.write_huggingface(out, state, config, **statistics, told=own_facts(card), readme=readme, overwrite=overwrite)


def with_origin(card: Card, origin: str) -> Card:
    """The card, whose source has the remark as well, and says where the head is new."""
    head = "" if card.trained else "random weights in its new head"
    return dataclasses.replace(card, source="; ".join(filter(None, (card.source, origin, head))))


def adapted(
    card: Card, state: dict[str, np.ndarray], *, frames: int, positions: Literal["right", "released"]
) -> tuple[Card, dict[str, np.ndarray]]:
    """The card and official tensors for spectrograms of another length."""
    key = next(key for key in state if key.endswith("pos_embed"))
    adapt = {"right": adapt_positions, "released": released_audiomae_cut}[positions]
    state[key] = adapt(state[key][0], card.model, frames=frames)[None]
    return dataclasses.replace(card, model=dataclasses.replace(card.model, frames=frames)), state


def check_saved(out: Path, model: Classifier) -> None:
    """Loads what was written, as a user would, and compares every number. Raises `ValueError` if one differs."""
    saved, expected = checkpoint.leaves(checkpoint.load(out)), checkpoint.leaves(model)
    wrong = [name for name, leaf in expected.items() if not np.array_equal(saved[name][...], leaf[...])]
    if wrong:
        raise ValueError(f"{out} does not hold what was converted ({', '.join(wrong)}); is the disk sound?")


def report(read: TorchCheckpoint, *, card: Card, model: Classifier, out: Path) -> None:
    """Prints which tensors were mapped, ignored and missing. Those that differ in the block number share a row."""
    leaves = checkpoint.leaves(model)
    mapped = []
    for pair in mapping.pairs(card.model):
        if all(key in read.state for key in pair.official):
            theirs = [name for key in pair.official for name in read.names[key]]
            mapped.append((" + ".join(map(fold, theirs)), fold(pair.leaf), leaves[pair.leaf].shape))
    rows = [[theirs, ours, " x ".join(map(str, shape)), count] for (theirs, ours, shape), count in counted(mapped)]
    print_table(f"Mapped from {read.layout}", ["PyTorch", "JAX", "shape", "times"], rows)
    for title, what in (("Ignored", read.ignored), ("Missing", read.missing)):
        if what:
            folded = counted((fold(key), reason) for key, reason in what.items())
            print_table(
                title,
                ["PyTorch", "why" if title == "Ignored" else "what is done", "times"],
                [[key, reason, count] for (key, reason), count in folded],
            )
    for note in read.notes:
        notice(note)
    config = card.model
    numbers = sum(leaf.size for leaf in leaves.values())
    print(
        f"wrote {out}: {config.family}, width {config.width}, depth {config.depth}, {config.heads} heads, "
        f"{config.frames} frames x {config.mels} mel bins, "
        f"stride {config.time_stride} x {config.freq_stride}, {config.patches} patches, "
        f"{config.classes} classes, {numbers:,} numbers; reloaded and compared, all equal"
    )


def fold(name: str) -> str:
    """A tensor's name without its block number, fit to print."""
    name = shown(name)
    return re.sub(r"\.\d+\.(?=.*\.)", ".*.", name) if "layer" in name or "blocks" in name else name


def counted(items: Iterable) -> list[tuple]:
    """Each different item once, in order, and how often it came."""
    counts: dict = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return list(counts.items())
