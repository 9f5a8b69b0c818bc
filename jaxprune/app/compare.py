"""One window of a sound by the whole model and by several ways to reduce its tokens, each timed."""

import dataclasses
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxprune.audio import Window, sound_header, windows_of
from jaxprune.checkpoint import load, load_card
from jaxprune.features import SAMPLE_RATE, WINDOW, sample_count
from jaxprune.inference import Prepared, Report
from jaxprune.reduction.policy import stage_rates
from jaxprune.registry import LEARNED, METHODS, MethodName, by_name

WHOLE = "the whole model"
MOST = 4  # ways compared at once
_RUNS = 6  # of a window; the first is not counted
_PREPARED = 32  # compiled programs that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """A method to reduce tokens, at a keep rate."""

    method: MethodName
    keep_rate: float

    @classmethod
    def parse(cls, text: str) -> "Way":
        """Reads `topk:0.7`. Raises `ValueError` for anything else."""
        method, colon, rate = text.partition(":")
        try:
            keep_rate = float(rate)
        except ValueError:
            keep_rate = 0.0
        if not colon or not 0 < keep_rate <= 1:
            raise ValueError(f"{text!r:.80} is no way to reduce tokens; they look like topk:0.7")
        if method != LEARNED:
            by_name(method)
        return cls(method=method, keep_rate=keep_rate)

    def __str__(self) -> str:
        return f"{self.method} at keep rate {self.keep_rate:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """The window's reports by way, the whole model's first. `seconds` is the length of its file, if it is
    known, and `windows` the number of windows in that."""

    window: Window
    windows: int
    seconds: float | None
    reports: Mapping[str, Report]


class Bench:
    """A loaded model and its compiled programs, one request at a time: their times stay honest.

    Raises `ValueError` as `jaxprune.load`.
    """

    def __init__(self, checkpoint: str | os.PathLike[str]):
        self.name = Path(checkpoint).name
        self.card, self._model = load_card(checkpoint), load(checkpoint)
        every = (*METHODS, *([LEARNED] if self.card.model.predictors else []))
        self.methods = tuple(sorted(every, key=lambda name: name != self.card.method))  # the trained one first
        self._prepared = functools.lru_cache(maxsize=_PREPARED)(self._prepare)
        self._lock = threading.Lock()

    def compare(self, path: Path, ways: Sequence[Way], *, number: int = 0) -> Compared:
        """Classifies the window of this number, or the last one, in a sound file.

        Raises `ValueError` as `jaxprune.audio.windows_of`, for more than `MOST` ways, and for a method that the model
        does not have.
        """
        if len(ways) > MOST:
            raise ValueError(f"{len(ways)} ways were asked for; at most {MOST} are compared at once")
        samples = sample_count(self.card.model.frames)
        cut = itertools.islice(windows_of(path, samples=samples, hop=samples), number + 1)
        window = deque(cut, maxlen=1).pop()
        header = sound_header(path)
        with self._lock:
            reports = {WHOLE: self._report(None, path, window)}
            reports |= {str(way): self._report(way, path, window) for way in ways}
        seconds = header.frames / header.samplerate if header else None
        # As `windows_of` counts: the last one shows a frame that the one before does not.
        windows = 1 + max(0, int((seconds or 0) * SAMPLE_RATE - WINDOW) // samples)
        return Compared(window=window, windows=windows, seconds=seconds, reports=reports)

    def _report(self, way: Way | None, path: Path, window: Window) -> Report:
        return self._prepared(way).classify([(path, window)] * _RUNS)

    def _prepare(self, way: Way | None) -> Prepared:
        """The program of a way; None prunes nothing."""
        rates = {} if way is None else stage_rates(way.keep_rate, depth=self.card.model.depth)
        method = "topk" if way is None else way.method
        return Prepared(self._model, card=self.card, keep_rate=rates, method=method, mels=1)
