"""Sound files to labels: long ones in windows, all of them in batches of one size through one compilation.

The device computes features and model in a single program. Each window gives one result. Files are read window by
window (`jaxprune.audio.windows_of`), so that memory does not grow with their length. Pictures are
`jaxprune.plots.clips`', the command is `jaxprune classify`.
"""

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxprune.amounts import Amount, Merges, Saving, in_words
from jaxprune.audio import Clip, Window, windows, windows_of
from jaxprune.checkpoint import load, load_card
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.features import SAMPLE_RATE, frame_count, sample_count
from jaxprune.models import Classifier, topk
from jaxprune.reduction.policy import default_blocks, stage_rates
from jaxprune.registry import LEARNED, MethodName, by_name, reduced
from jaxprune.window_program import WindowOutput, compile_windows, on_device

BATCH = 8


def classify(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    checkpoint: str | os.PathLike[str],
    *,
    keep_rate: Amount = 0.7,
    method: MethodName | None = None,
    top: int = 5,
    batch: int = BATCH,
    mels: int = 0,
    dtype: Any = jnp.float32,
) -> "Report":
    """Labels one sound file or many: `classify("dog.wav", "ast-words").results[0].top`.

    `checkpoint` is the directory of a model, a training run, or the name of a shipped model. `keep_rate` is read as
    `topk` reads it, 1 prunes nothing; or it is a `jaxprune.Saving` or `jaxprune.Merges`. `method` is the way to
    reduce tokens, by its name in `jaxprune.registry`; by default the one that the model was trained for. All else is as
    in `classify_clips`. A file that cannot be used is left out and named in the report's `refused`. Raises `ValueError`
    where no file can be used.
    """
    paths = [Path(paths)] if isinstance(paths, str | os.PathLike) else list(map(Path, paths))
    if not paths:
        raise ValueError("there is nothing to classify; give at least one sound file")
    card = load_card(checkpoint)
    program = _Program(card, keep_rate, method=method, top=top, batch=batch, mels=mels)
    files = _Files(paths, samples=program.samples)
    windows = iter(files)
    first = next(windows, None)
    if first is None:
        reasons = list(files.refused.values())
        many = f"none of the {len(reasons)} files can be classified: " if len(reasons) > 1 else ""
        raise ValueError(many + "; ".join(reasons))
    report = program.run(load(checkpoint, dtype=dtype), itertools.chain([first], windows))
    return dataclasses.replace(report, refused=files.refused, notices=tuple(files.notices))


def classify_clips(
    clips: Sequence[Clip],
    model: Classifier,
    *,
    card: Card,
    keep_rate: Amount,
    method: MethodName | None = None,
    top: int = 5,
    batch: int = BATCH,
    mels: int = 0,
) -> "Report":
    """Classifies every window of clips in memory with a loaded model.

    A clip longer than the model's spectrogram is cut into consecutive windows of that length; up to 399 samples (25 ms)
    at its end may be left out, as `audio.windows` says. Windows share batches of `batch` rows, or fewer where there are
    fewer windows; the last batch is filled up with rows that are dropped. Each result has `top` labels (at most all
    classes). The first `mels` results carry their spectrogram.

    Raises `ValueError` for no clips, `top` or `batch` below 1, a clip under 25 ms, a rate or block out of range, and
    scores that are not finite numbers.
    """
    program = _Program(card, keep_rate, method=method, top=top, batch=batch, mels=mels)
    if not clips:
        raise ValueError("there is nothing to classify; give at least one clip")
    cut = ((c.path, w) for c in clips for w in windows(c.waveform, samples=program.samples, hop=program.samples))
    report = program.run(model, cut)
    return dataclasses.replace(report, notices=tuple(notice for clip in clips for notice in clip.notices))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The model's answer to one window of a clip.

    `start` and `seconds` place its sound in the file. `frames` counts the spectrogram frames that hold sound; the rest
    of the model's length was padding. `top` has (label, probability) pairs, falling; the label is the class index where
    the card names none. `kept` maps each pruning block to the patches that are tokens of their own after it, as
    original positions; top-k has the highest score first. `groups` has, by block, the token that holds each patch (-1:
    none), for methods that make one token of several. `mel` `(t, f)` is the normalised model input, for the windows it
    was asked for. `truth` are the right labels, where they are known.
    """

    path: Path
    start: float
    seconds: float
    frames: int
    top: tuple[tuple[str, float], ...]
    kept: Mapping[int, Int[np.ndarray, "_"]]
    mel: Float[np.ndarray, "t f"] | None = None
    truth: tuple[str, ...] = ()
    groups: Mapping[int, Int[np.ndarray, "n"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Results in the order of the clips, and their cost.

    `milliseconds` is for one window: the median over `timed_batches` of features and model on the device, divided by
    the batch size, without reading files and moving waveforms there. The first batch warms up and is not counted, so
    `warmed_up` is true. A single batch is counted all the same; it is then the first run after compilation, and
    `warmed_up` is false. `compile_seconds` covers tracing and compiling. `macs` and `unpruned_macs` are
    multiply-accumulates of the model for one window. `refused` maps each file that could not be used, in part or as a
    whole, to the reason. `notices` say what was done to the sound of the others.
    """

    results: tuple[Result, ...]
    patches: int
    amount: Amount
    method: str
    macs: int
    unpruned_macs: int
    milliseconds: float
    timed_batches: int
    warmed_up: bool
    batch: int
    compile_seconds: float
    device: str
    dtype: str
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def keep_rates(self) -> Mapping[int, float]:
        """The keep rate of each block; empty where a saving or ToMe's r was asked for."""
        return self.amount if isinstance(self.amount, Mapping) else {}

    @property
    def saving(self) -> float:
        """Share of the unpruned model's multiply-accumulates that pruning saves."""
        return 1 - self.macs / self.unpruned_macs

    def to_json(self) -> dict[str, Any]:
        """Everything but the spectrograms, in JSON's types; block numbers become strings."""
        return {
            "windows": [
                {
                    "path": str(result.path),
                    "start": result.start,
                    "seconds": result.seconds,
                    "top": [{"label": label, "probability": probability} for label, probability in result.top],
                    "kept": {str(block): patch_ids.tolist() for block, patch_ids in result.kept.items()},
                    "groups": {str(block): tokens.tolist() for block, tokens in result.groups.items()},
                }
                for result in self.results
            ],
            "patches": self.patches,
            "keep_rates": {str(block): rate for block, rate in self.keep_rates.items()},
            "method": self.method,
            "asked": in_words(self.amount),
            "gmacs": self.macs / 1e9,
            "unpruned_gmacs": self.unpruned_macs / 1e9,
            "saving": self.saving,
            "milliseconds_per_window": self.milliseconds,
            "timed_batches": self.timed_batches,
            "warmed_up": self.warmed_up,
            "batch": self.batch,
            "compile_seconds": self.compile_seconds,
            "device": self.device,
            "dtype": self.dtype,
            "refused": dict(self.refused),
        }


class Prepared:
    """A model and a way to reduce its tokens, for one clip after the other: compiled with the first, then kept.

    Settings are those of `classify_clips`, which compiles each time.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        card: Card,
        keep_rate: Amount,
        method: MethodName | None = None,
        top: int = 5,
        mels: int = 0,
    ):
        self._model = model
        self._program = _Program(card, keep_rate, method=method, top=top, batch=1, mels=mels)

    def classify(self, windows: Iterable[tuple[Path, Window]]) -> Report:
        """The report on some windows and the paths they are of, one at a time on the device."""
        return self._program.run(self._model, iter(windows))


class _Files:
    """The windows of files, one after the other, each with its file's path.

    A file that cannot be used goes into `refused`, with the reason; windows that came before its fault stay.
    """

    def __init__(self, paths: Sequence[Path], *, samples: int):
        self._paths, self._samples = paths, samples
        self.refused: dict[str, str] = {}
        self.notices: list[str] = []

    def __iter__(self) -> Iterator[tuple[Path, Window]]:
        for path in self._paths:
            try:
                for number, window in enumerate(windows_of(path, samples=self._samples, hop=self._samples)):
                    self.notices += () if number else window.notices
                    yield path, window
            except ValueError as error:
                self.refused[str(path)] = str(error)


class _Program:
    """The classification by one model: its settings, checked, and the runs over windows, compiled once a batch size."""

    def __init__(self, card: Card, keep_rate: Amount, *, method: MethodName | None, top: int, batch: int, mels: int):
        for name, value, lowest in (("top", top, 1), ("batch", batch, 1), ("mels", mels, 0)):
            if value < lowest:
                raise ValueError(f"{name} is {value}; it must be at least {lowest}")
        self.samples = sample_count(card.model.frames)
        self._card, self._top, self._batch, self._mels = card, top, batch, mels
        depth, self._method = card.model.depth, method or card.method
        told = isinstance(keep_rate, Saving | Merges)
        self._amount = keep_rate if told else stage_rates(keep_rate, depth=depth)
        # After these blocks it is told what is left.
        self._blocks = (default_blocks(depth) or (depth - 1,)) if told else tuple(self._amount)
        self._compiled: dict[int, Callable[..., WindowOutput]] = {}
        if self._method != LEARNED:
            by_name(self._method)

    def run(self, model: Classifier, windows: Iterator[tuple[Path, Window]]) -> Report:
        """Classifies the windows, of which there is at least one, and holds one batch of them at a time."""
        rows = list(itertools.islice(windows, self._batch))
        batch, policy = len(rows), reduced(model, self._method, self._amount)
        began = time.perf_counter()
        if batch not in self._compiled:
            self._compiled[batch] = compile_windows(model, policy, blocks=self._blocks, card=self._card, batch=batch)
        program = self._compiled[batch]
        compile_seconds = time.perf_counter() - began
        results, seconds = [], []
        while rows:
            arrays = on_device([window.waveform for _, window in rows], batch=batch, samples=self.samples)
            output, took = _timed(program, arrays)
            seconds.append(took)
            results += self._results(rows, output, mels=self._mels - len(results))
            rows = list(itertools.islice(windows, batch))
        timed = seconds[1:] or seconds
        return Report(
            results=tuple(results),
            patches=model.config.patches,
            amount=self._amount,
            method=self._method,
            macs=macs(model, policy),
            unpruned_macs=macs(model, topk(model, {})),
            milliseconds=1000 * statistics.median(timed) / batch,
            timed_batches=len(timed),
            warmed_up=len(seconds) > 1,
            batch=batch,
            compile_seconds=compile_seconds,
            device=jax.devices()[0].device_kind,
            dtype=str(model.dtype),
        )

    def _results(self, rows: Sequence[tuple[Path, Window]], output: WindowOutput, *, mels: int) -> list[Result]:
        """A batch's results; the first `mels` carry their spectrogram."""
        probabilities, finite, kept, groups = jax.device_get(
            (output.probabilities, output.finite, output.kept, output.groups)
        )
        results = []
        for row, (path, window) in enumerate(rows):
            if not finite[row]:
                raise ValueError(
                    f"{path}: the model's scores at {window.start:g} s are not finite numbers; "
                    "check the checkpoint, or compute in float32"
                )
            result = Result(
                path=path,
                start=window.start,
                seconds=len(window.waveform) / SAMPLE_RATE,
                frames=frame_count(len(window.waveform)),
                top=_top(probabilities[row], labels=self._card.labels, count=self._top),
                kept={block: patch_ids[row][patch_ids[row] >= 0] for block, patch_ids in kept.items()},
                groups={block: tokens[row] for block, tokens in groups.items()},
                mel=np.asarray(output.mel[row]) if row < mels else None,
            )
            results.append(result)
        return results


def _timed(program: Callable[..., WindowOutput], arrays: tuple[Array, Array]) -> tuple[WindowOutput, float]:
    """The program's output, finished, and the seconds it took."""
    began = time.perf_counter()
    output = jax.block_until_ready(program(*arrays))
    return output, time.perf_counter() - began


def _top(probabilities: Float[np.ndarray, "y"], *, labels: Sequence[str], count: int) -> tuple[tuple[str, float], ...]:
    """The most probable classes and their probabilities, falling; equal ones by lower index."""
    best = np.argsort(-probabilities, kind="stable")[:count]
    return tuple((labels[y] if labels else str(y), float(probabilities[y])) for y in best)
