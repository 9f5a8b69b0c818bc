"""Sound clips to labels: long ones in windows, all of them in batches of one size through one compilation.

The device computes features and model in a single program; what comes back is one result a window and what the run
took. Reading files is `jaxprune.audio`'s matter, pictures are `jaxprune.plots.clips`', and the command line is
`scripts/classify.py`.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Float, Int

from jaxprune.audio import Clip, load_audio, windows
from jaxprune.config import Card
from jaxprune.cost import macs
from jaxprune.features import SAMPLE_RATE, WINDOW, frame_count, model_input, sample_count
from jaxprune.models import Classifier, topk
from jaxprune.reduction.policy import Policy, stage_rates

BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What the model said about one window of a clip.

    `start` and `seconds` place its sound in the file, `frames` counts the spectrogram frames that hold sound; the rest
    of the model's length was padding. `top` has (label, probability) pairs, falling; the label is the class index where
    the card names none. `kept` maps each pruning block to the patches it kept, as original positions, highest score
    first. `mel` `(t, f)` is the normalised model input, for the windows it was asked for. `truth` are the labels it
    should have got, where they are known.
    """

    path: Path
    start: float
    seconds: float
    frames: int
    top: tuple[tuple[str, float], ...]
    kept: Mapping[int, Int[np.ndarray, "_"]]
    mel: Float[np.ndarray, "t f"] | None = None
    truth: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Results in the order of the clips, and what they took.

    `milliseconds` is for one window: the median over the timed batches of features and model on the device, divided by
    the batch size, without reading files and moving waveforms there. The first batch only warms up; when it is
    the only one it runs again. `compile_seconds` covers tracing and compiling. `macs` and `unpruned_macs` are
    multiply-accumulates of the model for one window.
    """

    results: tuple[Result, ...]
    patches: int
    keep_rates: Mapping[int, float]
    macs: int
    unpruned_macs: int
    milliseconds: float
    timed_batches: int
    batch: int
    compile_seconds: float
    device: str
    dtype: str

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
                }
                for result in self.results
            ],
            "patches": self.patches,
            "keep_rates": {str(block): rate for block, rate in self.keep_rates.items()},
            "gmacs": self.macs / 1e9,
            "unpruned_gmacs": self.unpruned_macs / 1e9,
            "saving": self.saving,
            "milliseconds_per_window": self.milliseconds,
            "timed_batches": self.timed_batches,
            "batch": self.batch,
            "compile_seconds": self.compile_seconds,
            "device": self.device,
            "dtype": self.dtype,
        }


def classify(
    clips: Sequence[Clip],
    model: Classifier,
    *,
    card: Card,
    keep_rate: float | Mapping[int, float],
    top: int = 5,
    batch: int = BATCH,
    mels: int = 0,
) -> Report:
    """Classifies every window of every clip at a keep rate, as `topk` reads it.

    A clip longer than the model's spectrogram is cut into consecutive windows of that length; up to 399 samples
    (25 ms) at its end may be left out, as `audio.windows` says. Windows share batches of `batch` rows, or fewer where
    there are fewer windows; the last batch is filled up with rows that are dropped. `top` labels are returned
    for each (at most all classes), and `mels` is how many of the results, the first ones, carry their spectrogram.

    Raises `ValueError` for no clips, `top` or `batch` below 1, a clip under 25 ms, and a rate or block out of range.
    """
    for name, value, lowest in (("top", top, 1), ("batch", batch, 1), ("mels", mels, 0)):
        if value < lowest:
            raise ValueError(f"{name} is {value}; it must be at least {lowest}")
    if not clips:
        raise ValueError("there is nothing to classify; give at least one clip")
    config, policy = model.config, topk(model, keep_rate)
    samples = sample_count(config.frames)
    cut = [(clip.path, window) for clip in clips for window in windows(clip.waveform, samples=samples, hop=samples)]
    batch = min(batch, len(cut))
    began = time.perf_counter()
    program = _compile(model, policy, card=card, batch=batch)
    compile_seconds = time.perf_counter() - began
    results, seconds = [], []
    for first in range(0, len(cut), batch):
        rows = cut[first : first + batch]
        arrays = _batch([window.waveform for _, window in rows], batch=batch, samples=samples)
        output, took = _timed(program, arrays)
        seconds.append(took)
        probabilities, kept = jax.device_get((output.probabilities, output.kept))
        for row, (path, window) in enumerate(rows):
            result = Result(
                path=path,
                start=window.start,
                seconds=len(window.waveform) / SAMPLE_RATE,
                frames=frame_count(len(window.waveform)),
                top=_top(probabilities[row], labels=card.labels, count=top),
                kept={block: patch_ids[row] for block, patch_ids in kept.items()},
                mel=np.asarray(output.mel[row]) if len(results) < mels else None,
            )
            results.append(result)
    if len(seconds) == 1:
        seconds.append(_timed(program, arrays)[1])
    return Report(
        results=tuple(results),
        patches=config.patches,
        keep_rates=stage_rates(keep_rate, depth=config.depth),
        macs=macs(model, policy),
        unpruned_macs=macs(model, topk(model, {})),
        milliseconds=1000 * statistics.median(seconds[1:]) / batch,
        timed_batches=len(seconds) - 1,
        batch=batch,
        compile_seconds=compile_seconds,
        device=jax.devices()[0].device_kind,
        dtype=str(model.dtype),
    )


def load_clips(paths: Sequence[str | os.PathLike[str]]) -> list[Clip]:
    """Every file's sound. Raises one `ValueError` that names all the files that cannot be used, and why each cannot."""
    clips, problems = [], []
    for path in paths:
        try:
            clips.append(load_audio(path))
        except ValueError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError(f"{len(problems)} of {len(paths)} files cannot be classified: " + "; ".join(problems))
    return clips


def has_random_weights(card: Card) -> bool:
    """Whether the card says that the weights were never trained, so that the labels mean nothing."""
    return not card.trained


@struct.dataclass
class _Output:
    """What the device makes of a batch: the model's input, probabilities, and the kept patches by pruning block."""

    mel: Float[Array, "b t f"]
    probabilities: Float[Array, "b y"]
    kept: dict[int, Int[Array, "b _"]]


def _compile(model: Classifier, policy: Policy, *, card: Card, batch: int) -> Callable[..., _Output]:
    """The one program, `(waveforms, lengths) -> _Output` for batches of this size, ready to run."""
    graph, state = nnx.split(model)
    activation = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}[card.activation]
    frames = model.config.frames

    def run(state: Any, waveforms: Float[Array, "b samples"], lengths: Int[Array, "b"]) -> _Output:
        mel = model_input(waveforms, lengths, frames=frames, mean=card.mean, std=card.std, mels=model.config.mels)
        output = nnx.merge(graph, state)(mel, policy)
        kept = {block: output.trace[block].patch_ids for block in policy.stages}
        return _Output(mel, activation(output.logits), kept)

    waveforms = jax.ShapeDtypeStruct((batch, sample_count(frames)), jnp.float32)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    program = jax.jit(run).lower(state, waveforms, lengths).compile()
    return lambda waveforms, lengths: program(state, waveforms, lengths)


def _batch(
    waveforms: Sequence[Float[np.ndarray, "..."]], *, batch: int, samples: int
) -> tuple[Float[Array, "b samples"], Int[Array, "b"]]:
    """Waveforms and their lengths on the device, filled up with silence to `batch` rows of `samples`."""
    rows, lengths = np.zeros((batch, samples), np.float32), np.full(batch, WINDOW, np.int32)
    for i, waveform in enumerate(waveforms):
        rows[i, : len(waveform)] = waveform
        lengths[i] = len(waveform)
    return jax.block_until_ready((jax.device_put(rows), jax.device_put(lengths)))


def _timed(program: Callable[..., _Output], arrays: tuple[Array, Array]) -> tuple[_Output, float]:
    """The program's output, finished, and the seconds it took."""
    began = time.perf_counter()
    output = jax.block_until_ready(program(*arrays))
    return output, time.perf_counter() - began


def _top(probabilities: Float[np.ndarray, "y"], *, labels: Sequence[str], count: int) -> tuple[tuple[str, float], ...]:
    """The most probable classes and their probabilities, falling; equal ones by lower index."""
    best = np.argsort(-probabilities, kind="stable")[:count]
    return tuple((labels[y] if labels else str(y), float(probabilities[y])) for y in best)
