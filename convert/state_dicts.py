"""Finds the model's state dict in what a file holds: below wrappers, behind a prefix, beside others.

Training programs save a model bare, or under a name such as `model` or `checkpoint.model`. Averaged weights (EMA) may
lie beside it. Modules that wrap it (DataParallel, torch.compile, Lightning) put a prefix in front of all keys; those
that wrap a part of it (FSDP, a compiled block) put a word within keys.
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
AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged?|polyak)(_|$)")  # names of averaged weights
WITHIN = re.compile(r"(?<=\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
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
    """The weights in a file. `tensors` are by key, without what wraps them; `prefix` is what all have in the file.

    `wrapped` are the keys in the file behind the prefix, by those that are left, where they differ. `beside` maps what
    lay next to the weights to the reason why it is left out. `strange` describes entries among the weights that are no
    tensors. `notes` tell what was chosen.
    """

    form: Format
    tensors: Mapping[str, torch.Tensor]
    prefix: str
    wrapped: Mapping[str, str]
    beside: Mapping[str, str]
    strange: tuple[str, ...]
    notes: tuple[str, ...]

    def original(self, key: str) -> str:
        """A key as it is in the file."""
        return self.prefix + self.wrapped.get(key, key)


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
        models = _in_parts(places)
        if key is None:
            raise CheckpointError(path, _no_model(places, parts=models))
    fitting = [place for place in models if key in (None, ".".join(place))]
    if not fitting:
        there = ", ".join(map(_named, models)) or "none"
        raise CheckpointError(path, f"has no AST or AudioMAE under the key {shown(key)}; its models are: {there}")
    place = min(fitting, key=lambda place: (_averaged(place), len(place)))
    prefix, form = models[place]
    inside = places[place] if place in places else places[place[:-1]]
    tensors = {
        name.removeprefix(prefix): value
        for name, value in _tensors(inside).items()
        if name != COUNTER and name.startswith(prefix)
    }
    bare = _without_words(tensors)
    return StateDict(
        form=form,
        tensors={name: tensors[wrapped] for name, wrapped in bare.items()},
        prefix=prefix,
        wrapped={name: wrapped for name, wrapped in bare.items() if name != wrapped},
        beside=_beside(places, place),
        strange=tuple(
            f"{shown(name)}: is of type {_kind(value)}, not a tensor"
            for name, value in inside.items()
            if not (isinstance(name, str) and isinstance(value, torch.Tensor))
        ),
        notes=(*_notes(place, prefix, others=[other for other in models if other != place]), *_words_noted(bare)),
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
    while keys and not (form := recognised(WITHIN.sub("", key) for key in keys)):
        first, dot, _ = keys[0].partition(".")
        if not dot or not all(key.startswith(first + dot) for key in keys):
            return "", None
        prefix += first + dot
        keys = [key.removeprefix(first + dot) for key in keys]
    return (prefix, form) if keys else ("", None)


def _in_parts(places: Mapping[Place, Mapping]) -> dict[Place, tuple[str, Format]]:
    """The models whose keys share a prefix that others beside them lack: by the place and that prefix's first word.

    Such are a model and its averaged copy in one state dict, or a model beside a loss that has weights.
    """
    found = {}
    for place, inside in places.items():
        for first in dict.fromkeys(key.partition(".")[0] for key in _tensors(inside) if "." in key):
            part = {key: value for key, value in _tensors(inside).items() if key.startswith(f"{first}.")}
            prefix, form = _without_prefix(part)
            if form:
                found[(*place, first)] = prefix, form
    return found


def _without_words(keys: Iterable[str]) -> dict[str, str]:
    """The keys by themselves without the words of wrapped parts; by themselves alone where two would be one."""
    keys = list(keys)
    bare = {WITHIN.sub("", key): key for key in keys}
    return bare if len(bare) == len(keys) else {key: key for key in keys}


def _words_noted(bare: Mapping[str, str]) -> Iterator[str]:
    words = sorted({word for name, wrapped in bare.items() if name != wrapped for word in WITHIN.findall(wrapped)})
    if words:
        yield f"The names of wrapped parts were taken out of the keys: {', '.join(words)}."


def _averaged(place: Place) -> bool:
    return any(AVERAGED.search(part) for part in place)


def _beside(places: Mapping[Place, Mapping], place: Place) -> dict[str, str]:
    """Everything next to the chosen weights on every level, by dotted name, and the reason why it is left out."""
    counted = COUNTER in places.get(place, ())
    beside = {COUNTER: "counts averaged updates, not part of the model"} if counted else {}
    for level, chosen in enumerate(place):
        outer = place[:level]
        beside |= {
            ".".join([*outer, shown(key)]): "stored beside the weights, not part of the model"
            for key in places[outer]
            if key != chosen and (chosen in places[outer] or not str(key).startswith(f"{chosen}."))
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


def _no_model(places: Mapping[Place, Mapping], *, parts: Iterable[Place]) -> str:
    """The reason why none of the mappings is a model. It continues a sentence that begins with the path."""
    if named := ", ".join(map(_named, parts)):
        return f"holds other tensors beside its model, or two models; choose with --key: {named}"
    largest = max(places.values(), key=lambda inside: len(_tensors(inside)))
    keys = sorted(_tensors(largest))
    if not keys:
        entries = ", ".join(shown(key) for key in list(places[()])[:10])
        return f"holds no tensors by name; its entries are: {entries or 'none'}"
    found = f"{len(keys)} tensors such as {', '.join(map(shown, keys[:5]))}"
    return f"is not an AST or AudioMAE checkpoint; it holds {found}"


def _kind(value: Any) -> str:
    return "a foreign class" if isinstance(value, Blank) else type(value).__name__
