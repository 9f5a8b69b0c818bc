"""Sound of any length to events: features once a frame, a window every hop, scores smoothed over time.

Blocks of samples go in, from a file, a microphone or a pipe, and memory does not grow with them. `segments` gives the
model's scores for one stretch of time after the other, `events` joins stretches of one label, `stream` is both. The
command is `jaxprune listen`, for files as well. Windows one by one are `jaxprune.inference`'.
"""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxprune.amounts import Amount
from jaxprune.checkpoint import load, load_card
from jaxprune.config import Card, MethodName
from jaxprune.features import HOP, SAMPLE_RATE, WINDOW, fit_frames, frame_count, log_mel, normalize, sample_count
from jaxprune.models import Classifier
from jaxprune.reduction.policy import Policy
from jaxprune.registry import reduced
from jaxprune.window_program import ACTIVATIONS

FRAME_SECONDS = HOP / SAMPLE_RATE  # from one frame to the next


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listening:
    """Settings of listening. Raises `ValueError` for what no sound can be listened to with."""

    hop: float = 0.0
    """seconds from one window to the next; 0: half a window."""
    smooth: int = 1
    """windows whose scores are averaged, the present one and those before it; 1 averages nothing."""
    threshold: float = 0.5
    """score at which an event begins; it ends below half of that."""
    shortest: float = 0.0
    """seconds that an event must last to be told."""
    batch: int = 1
    """windows computed together: 1 answers soonest, more are faster on files."""

    def __post_init__(self):
        if not 0 <= self.hop < float("inf"):
            raise ValueError(f"hop is {self.hop} s; it must be positive, or 0 for half a window")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be above 0 and at most 1")
        if not 0 <= self.shortest < float("inf"):
            raise ValueError(f"shortest is {self.shortest} s; it must be at least 0")
        for name in ("smooth", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def hop_frames(self, frames: int) -> int:
        """The hop in frames of 10 ms, for windows of so many frames."""
        if not self.hop:
            return max(1, frames // 2)
        hop = round(self.hop / FRAME_SECONDS)
        if not 1 <= hop <= frames:
            raise ValueError(
                f"hop is {self.hop:g} s; it must be from {FRAME_SECONDS:g} s to the model's window of "
                f"{frames * FRAME_SECONDS:g} s, so that nothing is skipped"
            )
        return hop


DEFAULT = Listening()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """The smoothed scores `(y)` of the stretch from `begin` to `end`, in seconds: the middle of one window.

    A window's middle is as long as the hop. The first stretch begins with the sound, the last one ends with it.
    """

    begin: float
    end: float
    scores: Float[np.ndarray, "y"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A label heard from `begin` to `end`, in seconds, and the highest score in that time."""

    begin: float
    end: float
    label: str
    score: float


def stream(
    model: Classifier | str | os.PathLike[str],
    blocks: Iterable[Float[np.ndarray, "_"]],
    *,
    card: Card | None = None,
    keep_rate: Amount = 1.0,
    method: MethodName | None = None,
    listening: Listening = DEFAULT,
) -> Iterator[Event]:
    """Events in a sound that comes in blocks, each told when it is over: `for event in stream("ast-words", blocks)`.

    `model` is a checkpoint's directory or name, or a loaded model with its `card`. `blocks` are 16 kHz mono, full scale
    at 1, of any lengths. `keep_rate` and `method` are as in `jaxprune.classify`. Raises `ValueError` as `segments`.
    """
    if not isinstance(model, Classifier):
        model, card = load(model), load_card(model)
    if card is None:
        raise ValueError("a loaded model was given without its card; pass card=jaxprune.load_card(...)")
    heard = segments(model, blocks, card=card, keep_rate=keep_rate, method=method, listening=listening)
    return events(heard, labels=names(card), listening=listening)


def names(card: Card) -> tuple[str, ...]:
    """The labels of the classes, or their numbers where the card has none."""
    return card.labels or tuple(map(str, range(card.model.classes)))


def events(heard: Iterable[Segment], *, labels: tuple[str, ...], listening: Listening = DEFAULT) -> Iterator[Event]:
    """Joins segments to events: a label's begins at the threshold and ends below half of it, or with the sound.

    Events are told in the order of their ends, then in the order of the labels.
    """
    open_events: dict[int, Event] = {}
    for segment in heard:
        for y in np.flatnonzero(segment.scores < listening.threshold / 2):
            if int(y) in open_events:
                yield from _told(open_events.pop(int(y)), listening)
        loud = segment.scores >= listening.threshold
        for y in sorted({*map(int, np.flatnonzero(loud)), *open_events}):
            score = float(segment.scores[y])
            before = open_events.get(y, Event(begin=segment.begin, end=segment.end, label=labels[y], score=score))
            open_events[y] = dataclasses.replace(before, end=segment.end, score=max(before.score, score))
    for y in sorted(open_events):
        yield from _told(open_events[y], listening)


def _told(event: Event, listening: Listening) -> Iterator[Event]:
    if event.end - event.begin >= listening.shortest - 1e-9:
        yield event


def segments(
    model: Classifier,
    blocks: Iterable[Float[np.ndarray, "_"]],
    *,
    card: Card,
    keep_rate: Amount = 1.0,
    method: MethodName | None = None,
    listening: Listening = DEFAULT,
) -> Iterator[Segment]:
    """The scores of one stretch after the other, as soon as the sound for them is there.

    Raises `ValueError` for a sound under 25 ms, samples or scores that are not finite, and a hop beyond the window.
    """
    config, batch = model.config, listening.batch
    hop = listening.hop_frames(config.frames)
    graph, state = nnx.split(model)
    run, policy = _program(graph, card=card, hop=hop, batch=batch), reduced(model, method or card.method, keep_rate)
    sound = _Sound(blocks, mels=config.mels, chunk=hop * batch)
    latest: deque[np.ndarray] = deque(maxlen=listening.smooth)
    begin = 0.0
    for window, scores in _scored(
        sound, lambda mel, valid: run(state, mel, valid, policy), frames=config.frames, hop=hop, batch=batch
    ):
        if not np.isfinite(scores).all():
            raise ValueError(
                f"the model's scores at {window * hop * FRAME_SECONDS:g} s are not finite numbers; check the checkpoint"
            )
        latest.append(scores)
        end = min((window * hop + (config.frames + hop) / 2) * FRAME_SECONDS, sound.seconds)
        yield Segment(begin=begin, end=end, scores=np.mean(latest, axis=0))
        begin = end
    if begin < sound.seconds:
        yield Segment(begin=begin, end=sound.seconds, scores=np.mean(latest, axis=0))


_log_mel = jax.jit(log_mel, static_argnames="mels")


class _Sound:
    """The log-mel frames of a sound that comes in blocks: each is computed once, `chunk` of them together."""

    def __init__(self, blocks: Iterable[Float[np.ndarray, "_"]], *, mels: int, chunk: int):
        self._blocks, self._chunk = iter(blocks), chunk
        self._mels = mels
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Length of the sound so far."""
        return self.samples / SAMPLE_RATE

    def __iter__(self) -> Iterator[Float[np.ndarray, "t f"]]:
        """Yields chunks of unnormalised frames. The last may be shorter."""
        need, held = sample_count(self._chunk), np.zeros(0, np.float32)
        for block in self._blocks:
            if not np.isfinite(block).all():
                raise ValueError(f"the samples after {self.seconds:g} s are not all finite numbers")
            self.samples += len(block)
            held = np.concatenate([held, np.asarray(block, np.float32)])
            while len(held) >= need:
                yield np.asarray(_log_mel(held[:need], mels=self._mels))
                held = held[self._chunk * HOP :]
        if self.samples < WINDOW:
            lasts = f"{1000 * self.seconds:.3g} ms"
            raise ValueError(f"the sound lasts {lasts}, which is too short; at least one frame of 25 ms is needed")
        if left := frame_count(len(held)):
            yield np.asarray(_log_mel(np.pad(held, (0, need - len(held))), mels=self._mels))[:left]


def _scored(
    sound: _Sound, program: Callable[..., Float[Array, "b y"]], *, frames: int, hop: int, batch: int
) -> Iterator[tuple[int, Float[np.ndarray, "y"]]]:
    """Each window's number and scores. A window after the first shows at least one frame that the one before does not.

    The sound's last windows may be shorter, and the first one is where the sound is shorter than it.
    """
    need = frames + (batch - 1) * hop  # frames of a batch of windows
    held, window = np.zeros((0, 0), np.float32), 0

    def run(count: int) -> Iterator[tuple[int, Float[np.ndarray, "y"]]]:
        mel = np.pad(held[:need], ((0, max(0, need - len(held))), (0, 0)))
        valid = np.clip(len(held) - hop * np.arange(batch), 1, frames).astype(np.int32)
        scores = np.asarray(program(mel, valid))
        return ((window + i, scores[i]) for i in range(count))

    for chunk in sound:
        held = np.concatenate([held, chunk]) if len(held) else chunk
        while len(held) >= need:
            yield from run(batch)
            held, window = held[batch * hop :], window + batch
    left = -(-(len(held) - frames) // hop) + 1  # windows that show a new frame; never more than a batch
    yield from run(max(left, 1 if window == 0 else 0))


@functools.lru_cache(maxsize=8)
def _program(graph: nnx.GraphDef, *, card: Card, hop: int, batch: int) -> Callable[..., Float[Array, "b y"]]:
    """`(state, mel, valid, policy) -> scores` of `batch` windows a hop apart, for every model of this structure.

    `valid` counts the frames of each window that hold sound.
    """
    frames, activation = card.model.frames, ACTIVATIONS[card.activation]

    @jax.jit
    def run(state: Any, mel: Float[Array, "t f"], valid: Int[Array, "b"], policy: Policy) -> Float[Array, "b y"]:
        cut = jnp.stack([mel[i * hop : i * hop + frames] for i in range(batch)])  # b t f
        fitted = fit_frames(cut, frames=frames, valid=valid, padding=card.padding)
        output = nnx.merge(graph, state)(normalize(fitted, mean=card.mean, std=card.std), policy)
        return activation(output.logits)

    return run
