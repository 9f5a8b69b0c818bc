"""The README.md of a model on the hub: what the model is, what it was pruned for, and what was measured of it.

It says what the checkpoint's card and the files of `jaxprune evaluate` hold, and nothing else.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune.cli.evaluate import COLUMNS
from jaxprune.config import PADDING_IN_WORDS, Card
from jaxprune.json_files import fit, read_json

from .errors import printable
from .hub import PREFIX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """The file that `jaxprune evaluate --out` wrote, as far as the README tells it."""

    source: str
    data: dict[str, Any]
    split: str
    method: str
    blocks: list[int]
    dtype: str
    device: str
    rates: list[dict[str, float | None]]


def read_measured(path: Path, card: Card) -> Measured:
    """Reads one. Raises `ValueError` for another file, and for one about another model than the card's."""
    try:
        measured = fit(read_json(path), Measured)
    except ValueError as error:
        raise ValueError(f"{path} is not a result of jaxprune evaluate --out: {error}") from error
    if measured.source != card.source:
        raise ValueError(
            f"{path} was measured on another model: its source is {measured.source!r:.120}, this one's is "
            f"{card.source!r:.120}"
        )
    if lacking := {"keep_rate", "gmacs", "saving", "clips"} - set.intersection(*map(set, measured.rates or [{}])):
        raise ValueError(f"{path} is not a result of jaxprune evaluate --out: its rows have no {min(lacking)}")
    return measured


def readme(card: Card, *, name: str, results: Sequence[Measured] = ()) -> str:
    """The text. `name` is its heading."""
    config = card.model
    classes = f"{config.classes} classes, named in config.json" if card.labels else f"{config.classes} classes"
    parts = [
        _front(card),
        f"# {_plain(name)}",
        f"An audio spectrogram transformer (AST): width {config.width}, {config.depth} blocks, {config.heads} heads, "
        f"{config.patches} patches of {config.frames} frames x {config.mels} mel bins, {classes}.",
        f"Weights: {_code(card.source or 'of unknown origin')}."
        + ("" if card.trained else " **Some weights are random. The labels mean nothing.**"),
        f"Input: log-mel of 16 kHz mono, normalised as (x - {card.mean:g}) / (2 x {card.std:g}). Training filled short "
        f"clips with {PADDING_IN_WORDS[card.padding]}.",
        "## Pruning",
        *_pruning(card),
        "## Measured",
        *(_table(result) for result in results),
        *([] if results else ["No measurement came with this model."]),
    ]
    return "\n\n".join(parts) + "\n"


def _front(card: Card) -> str:
    """The block that the hub reads."""
    base = card.source.partition("@")[0].removeprefix(PREFIX) if card.source.startswith(PREFIX) else ""
    lines = [
        "library_name: transformers",
        "pipeline_tag: audio-classification",
        "tags:",
        "- audio-spectrogram-transformer",
        "- token-pruning",
        "- jaxprune",
        *([f"base_model: {base}"] if base else []),
    ]
    return "\n".join(["---", *lines, "---"])


def _pruning(card: Card) -> list[str]:
    rates = " ".join(f"{rate:g}" for rate in card.keep_rates)
    trained = (
        f"Trained for keep rates (the share of patches that a pruning block keeps): {rates}."
        if rates
        else "The card names no keep rate that the model was trained for."
    )
    trained += "" if card.method == "topk" else f" The method is {card.method}, which costs as much as top-k at them."
    how = f"jaxprune convert {PREFIX}ORG/NAME model\njaxprune classify model SOUND.wav --keep-rate "
    rate = f"{min(card.keep_rates, default=0.7):g}"
    return [
        f"{trained} transformers runs the model without pruning. jaxprune prunes it:",
        f"```bash\n{how}{rate}\n```",
    ]


def _table(result: Measured) -> str:
    """A result: the data that were measured on, and a row for each keep rate."""
    metrics = [name for name in COLUMNS if all(name in row for row in result.rates)]
    head = ["keep rate", "GMACs", "saved", *(COLUMNS[name][0] for name in metrics), "clips"]
    rows = [[_cell(row, name) for name in ("keep_rate", "gmacs", "saving", *metrics, "clips")] for row in result.rates]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    blocks = " ".join(map(str, result.blocks))
    pruned = f", {result.method} at blocks {blocks}" if result.blocks else ""
    about = f"Data: {_code(_data(result.data))}, {result.split}{pruned}. Computed in {result.dtype} on {result.device}."
    return f"{_plain(about)}\n\n{table}"


def _cell(row: Mapping[str, float | None], name: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    digits = {"keep_rate": "g", "clips": ".0f", "gmacs": ".3f"}.get(name, ".1f")
    if name == "saving":
        return f"{100 * value:.1f} %"
    return f"{COLUMNS[name][1] * value if name in COLUMNS else value:{digits}}"


def _data(data: Mapping[str, Any]) -> str:
    """The kind of data set and its options, without the folders of the machine that measured."""
    told = {key: value for key, value in data.items() if isinstance(value, int | float | bool) and key != "kind"}
    return " ".join([str(data.get("kind", "data")), *(f"{key}={value}" for key, value in told.items())])


def _code(text: str) -> str:
    return f"`{_plain(text).replace('`', '')}`"


def _plain(text: str) -> str:
    """Text that stays on its line and breaks no table."""
    return printable(text).replace("|", "/").replace("<", "(").replace(">", ")")
