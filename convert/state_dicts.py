"""Finds the model's state dict in what a file holds: below wrappers, behind a prefix, beside others.

Training programs save a model bare, or under a name such as `model` or `checkpoint.model`. Averaged weights (EMA) may
lie beside it. Modules that wrap it (DataParallel, torch.compile, Lightning) put a prefix in front of all keys.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, shown
from .formats import Format, recognised

Place = tuple[str, ...]  # the keys that lead to a mapping inside another

DEEPEST = 3  # wrappers in wrappers that are looked into
MOST_PLACES = 100  # on each level
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")  # names of averaged weights
COUNTER = "n_averaged"  # that torch's AveragedModel keeps beside its `module.` keys
USUAL = ((), ("model",))  # where the published checkpoints have their weights: not worth a note
USUAL_PREFIXES = ("", "module.")


class Blank:
    """A stand-in for a foreign object beside the weights. It takes any arguments and state, and keeps nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "Blank":
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any):
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateDict:
    """The weights in a file. `tensors` are by key, without the `prefix` that all of them have in the file.

    `beside` maps what lay next to the weights to the reason why it is left out. `strange` describes entries among the
    weights that are no tensors. `notes` tell what was chosen.
    """

    form: Format
    tensors: Mapping[str, torch.Tensor]
    prefix: str
    beside: Mapping[str, str]
    strange: tuple[str, ...]
    notes: tuple[str, ...]


def find_state_dict(content: Any, path: Path, *, key: str | None = None) -> StateDict:
    """The one model in `content`, or the one under `key`, a dotted name. Raises `CheckpointError` if there is none.

    Of several, averaged weights come last, then the outermost comes first, then the first in the file.
    """
    if not isinstance(content, Mapping):
        kind = "saved arguments or numpy values" if isinstance(content, Blank) else f"a {type(content).__name__}"
        raise CheckpointError(path, f"holds {kind}, not a state dict")
    places = dict(_places(content))
    models = {place: found for place, inside in places.items() if (found := _without_prefix(inside))[1]}
    if not models:
        raise CheckpointError(path, _no_model(places))
    fitting = [place for place in models if key in (None, ".".join(place))]
    if not fitting:
        there = ", ".join(map(_named, models))
        raise CheckpointError(path, f"has no AST or AudioMAE under the key {shown(key)}; its models are: {there}")
    place = min(fitting, key=lambda place: (_averaged(place), len(place)))
    prefix, form = models[place]
    inside = places[place]
    tensors = {name.removeprefix(prefix): value for name, value in _tensors(inside).items() if name != COUNTER}
    return StateDict(
        form=form,
        tensors=tensors,
        prefix=prefix,
        beside=_beside(places, place),
        strange=tuple(
            f"{shown(name)}: is of type {_kind(value)}, not a tensor"
            for name, value in inside.items()
            if not (isinstance(name, str) and isinstance(value, torch.Tensor))
        ),
        notes=tuple(_notes(place, prefix, others=[other for other in models if other != place])),
    )


def _places(content: Mapping, place: Place = ()) -> Iterator[tuple[Place, Mapping]]:
    """Every mapping in the content and the keys that lead to it, from the outside in."""
    yield place, content
    inner = [(key, value) for key, value in content.items() if isinstance(key, str) and isinstance(value, Mapping)]
    for key, value in inner[:MOST_PLACES] if len(place) < DEEPEST else ():
        yield from _places(value, (*place, key))


def _tensors(inside: Mapping) -> dict[str, torch.Tensor]:
    return {key: value for key, value in inside.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def _without_prefix(inside: Mapping) -> tuple[str, Format | None]:
    """The prefix of all keys behind which they are of a known format, and that format or None."""
    keys = [key for key in _tensors(inside) if key != COUNTER]
    prefix = ""
    while keys and not (form := recognised(keys)):
        first, dot, _ = keys[0].partition(".")
        if not dot or not all(key.startswith(first + dot) for key in keys):
            return "", None
        prefix += first + dot
        keys = [key.removeprefix(first + dot) for key in keys]
    return (prefix, form) if keys else ("", None)


def _averaged(place: Place) -> bool:
    return any(AVERAGED.search(part) for part in place)


def _beside(places: Mapping[Place, Mapping], place: Place) -> dict[str, str]:
    """Everything next to the chosen weights on every level, by dotted name, and the reason why it is left out."""
    beside = {COUNTER: "counts averaged updates, not part of the model"} if COUNTER in places[place] else {}
    for level, chosen in enumerate(place):
        outer = place[:level]
        beside |= {
            ".".join([*outer, shown(key)]): "stored beside the weights, not part of the model"
            for key in places[outer]
            if key != chosen
        }
    return beside


def _notes(place: Place, prefix: str, *, others: Iterable[Place]) -> Iterator[str]:
    also = ", ".join(map(_named, others))
    if also:
        yield f"The weights were taken from {_named(place)}; the file also has {also}: choose with --key."
    elif place not in USUAL:
        yield f"The weights were taken from {_named(place)}."
    if prefix not in USUAL_PREFIXES:
        yield f"The prefix {shown(prefix)} was taken off all keys."


def _named(place: Place) -> str:
    return shown(".".join(place)) or "the outermost level"


def _no_model(places: Mapping[Place, Mapping]) -> str:
    """The reason why none of the mappings is a model. It continues a sentence that begins with the path."""
    largest = max(places.values(), key=lambda inside: len(_tensors(inside)))
    keys = sorted(_tensors(largest))
    if not keys:
        entries = ", ".join(shown(key) for key in list(places[()])[:10])
        return f"holds no tensors by name; its entries are: {entries or 'none'}"
    found = f"{len(keys)} tensors such as {', '.join(map(shown, keys[:5]))}"
    return f"is not an AST or AudioMAE checkpoint; it holds {found}"


def _kind(value: Any) -> str:
    return "a foreign class" if isinstance(value, Blank) else type(value).__name__
