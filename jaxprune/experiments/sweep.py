"""Measures accuracy, multiply-accumulates and time over keep rates, block sets, scores and batch sizes.

A sweep lives in one JSON file, written after every few settings. What the file holds is not measured again. Accuracy
does not depend on the batch size, and time hardly depends on the weights. So each is measured once for what it does
depend on, and `jaxprune.experiments.sweep_points` joins them. Answers come from `jaxprune.evaluation.per_clip`,
settings from `jaxprune.experiments.ablation`. `jaxprune sweep` is the command.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import msgspec
import numpy as np

from jaxprune.config import Card
from jaxprune.data.batches import Batches
from jaxprune.evaluation.per_clip import answer
from jaxprune.evaluation.timing import interleaved
from jaxprune.experiments.ablation import Setting, unpruned
from jaxprune.files import write_text
from jaxprune.json_files import fit, read_json
from jaxprune.models import Classifier

KIND, VERSION = "jaxprune sweep", 1
TOGETHER = 8  # settings measured between two savings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to sweep. `weights` tells it from others: `jaxprune.analysis.identity.model_digest`."""

    name: str
    weights: str
    model: Classifier
    card: Card


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answers:
    """The answers under one setting. `right` is one bit per clip in hexadecimal, None if clips have several classes."""

    metrics: Annotated[dict[str, float], msgspec.Meta(min_length=1)]
    clips: int
    unusable: int
    right: str | None

    def __post_init__(self):
        if self.right is not None and not 0 <= 8 * len(bytes.fromhex(self.right)) - self.clips < 8:
            raise ValueError(f"{len(self.right)} digits do not fit {self.clips} clips")


Seconds = Annotated[list[Annotated[float, msgspec.Meta(gt=0)]], msgspec.Meta(min_length=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Times:
    """Seconds of each call under one setting, and of the unpruned model's calls between them."""

    seconds: Seconds
    unpruned_seconds: Seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """A sweep's file."""

    about: dict[str, Any]
    quality: dict[str, _Answers]
    seconds: dict[str, _Times]


class Store:
    """The measurements so far, in a file that is whole after every change.

    `about` lists what must be equal for numbers to compare. Opening raises `ValueError` if the file is no sweep, or one
    with another `about`.
    """

    def __init__(self, path: Path, *, about: Mapping[str, Any]):
        self.path = path
        about = json.loads(json.dumps(about, default=str))
        self._content = {"kind": KIND, "version": VERSION, "about": about, "quality": {}, "seconds": {}}
        if not path.exists():
            return
        content = read_json(path)
        if not isinstance(content, dict) or (content.get("kind"), content.get("version")) != (KIND, VERSION):
            raise ValueError(f"{path} is not a sweep of version {VERSION}; choose another folder")
        try:
            fit(content, _Stored)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); choose another folder") from error
        for name, here in about.items():
            there = content["about"].get(name)
            if there != here:
                raise ValueError(f"{path} is a sweep with another {name}, {there}, not {here}; choose another folder")
        self._content = content

    @property
    def quality(self) -> dict[str, dict[str, Any]]:
        """Metrics by `quality_key`."""
        return self._content["quality"]

    @property
    def seconds(self) -> dict[str, dict[str, list[float]]]:
        """Measured times by `time_key`."""
        return self._content["seconds"]

    def save(self) -> None:
        """Writes the file whole."""
        write_text(self.path, json.dumps(self._content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def measure_quality(
    store: Store,
    candidate: Candidate,
    *,
    settings: Sequence[Setting],
    batches: Callable[[], Batches],
    single_label: bool,
    together: int = TOGETHER,
    watch: Callable[[int, int], None] = lambda settings, clips: None,
) -> int:
    """Answers the clips under the settings that the store lacks. Returns the number of settings measured.

    Each pass over new `batches()` takes `together` settings beside the unpruned model, and is saved. `watch` gets the
    number of settings in this pass and of clips done. Raises as `answer` does.
    """
    missing = [one for one in with_unpruned(candidate, settings) if quality_key(candidate, one) not in store.quality]
    for group in _groups(missing, together):
        asked = len(group)
        with batches() as reading:
            found = answer(
                candidate.model,
                reading,
                card=candidate.card,
                policies={setting.name: setting.policy_for for setting in group},
                single_label=single_label,
                watch=lambda done, asked=asked: watch(asked, done),
            )
        for setting in group:
            right = (found.ranks[setting.name] < 1) if single_label else None
            store.quality[quality_key(candidate, setting)] = {
                "metrics": found.metrics(setting.name),
                "clips": found.clips,
                "unusable": len(found.unusable),
                "right": None if right is None else np.packbits(right).tobytes().hex(),
            }
        store.save()
    return len(missing)


def measure_time(
    store: Store,
    candidate: Candidate,
    *,
    settings: Sequence[Setting],
    batch: int,
    rounds: int,
    device: str,
    together: int = TOGETHER,
    watch: Callable[[int], None] = lambda settings: None,
) -> int:
    """Times the settings that the store lacks for this batch size and `device`. Returns the number timed.

    Settings take turns with the unpruned model. Each group of `together` settings is saved. `watch` gets the number of
    settings done.
    """
    every = with_unpruned(candidate, settings)
    missing = [one for one in every if time_key(one, batch=batch, device=device) not in store.seconds]
    for number, group in enumerate(_groups(missing, together)):
        none = unpruned(candidate.model)
        asked = {one.name: one for one in [none, *group]}
        found = timed(candidate.model, list(asked.values()), batch=batch, rounds=rounds)
        for one in group:
            times = {"seconds": found[one.name], "unpruned_seconds": found[none.name]}
            store.seconds[time_key(one, batch=batch, device=device)] = times
        store.save()
        watch(number * together + len(group))
    return len(missing)


def timed(model: Classifier, settings: Sequence[Setting], *, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of `rounds` calls under each setting, by name, in turn (`jaxprune.evaluation.timing.interleaved`)."""
    policies = {one.name: one.policy_for(jnp.arange(batch), {}) for one in settings}
    return interleaved(model, policies, batch=batch, rounds=rounds)


def with_unpruned(candidate: Candidate, settings: Sequence[Setting]) -> list[Setting]:
    """The unpruned model's setting, then all others."""
    return [unpruned(candidate.model), *settings]


def _groups(settings: Sequence[Setting], size: int) -> list[Sequence[Setting]]:
    return [settings[first : first + size] for first in range(0, len(settings), size)]


def quality_key(candidate: Candidate, setting: Setting) -> str:
    """The key of answers: everything they depend on."""
    return f"{candidate.weights[:16]}: {setting.name}"


def time_key(setting: Setting, *, batch: int, device: str) -> str:
    """The key of times: everything they depend on."""
    return f"{device}, batch {batch}: {setting.name}"
