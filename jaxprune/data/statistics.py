"""Measures a data set: lengths, rates, class balance, and the mean and standard deviation that normalise its features.

AST publishes get_norm_stats.py for the same purpose. It takes the mean and standard deviation of batches of 1000, over
all T padded frames of training clips, and averages them. Two details are easily missed. It pads with 0, near the loud
end of a log-mel's range; models trained here, and the pruning paper's, see the clip's minimum there. And its settings
leave mixup and SpecAugment on, whose masks count as 0 too. So for clips shorter than T its figures do not describe the
input of a model here. This module measures that input exactly, for either padding, without augmentation.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxprune.config import Padding
from jaxprune.data.batches import Batch, Workers, eval_batches
from jaxprune.data.records import Dataset, Split, class_counts
from jaxprune.features import fit_frames, frame_count, log_mel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and sum of squared deviations of values. Two of them add without loss (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation with ddof 1, as torch.std."""
        return float(np.sqrt(self.squares / (self.count - 1))) if self.count > 1 else 0.0

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if count == 0:
            return self
        apart = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + apart * other.count / count,
            squares=self.squares + other.squares + apart**2 * self.count * other.count / count,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetStats:
    """Measurements of the usable clips of one split. `seconds` are (shortest, median, longest), before any cut.

    `mean` and `std` describe the input of a model whose short clips are filled by `padding`: T frames. `padded` is the
    number of those clips. `minimum_padded` and `zero_padded` have the same two for either padding, `unpadded` over real
    frames only. `balance` counts clips per class.
    """

    name: str
    split: Split
    frames: int
    clips: int
    unusable: dict[str, str]
    padding: Padding
    padded: int
    mean: float
    std: float
    minimum_padded: tuple[float, float]
    zero_padded: tuple[float, float]
    unpadded: tuple[float, float]
    seconds: tuple[float, float, float]
    longer_than_input: int
    sample_rates: dict[int, int]
    channels: dict[int, int]
    balance: dict[str, int]
    single_label: bool

    @property
    def recipe_lines(self) -> str:
        """The line for these clips in `jaxprune.features.STATISTICS`."""
        activation = "softmax" if self.single_label else "sigmoid"
        return (
            f"FeatureStats(frames={self.frames}, mean={self.mean:.6f}, std={self.std:.6f}, "
            f'classes={len(self.balance)}, activation="{activation}")'
        )

    def to_json(self) -> str:
        """The statistics as JSON text, with the lines for a recipe."""
        return json.dumps(dataclasses.asdict(self) | {"recipe": self.recipe_lines}, indent=2, ensure_ascii=False)


def measure(
    dataset: Dataset,
    split: Split = "train",
    *,
    frames: int | None = None,
    padding: Padding = "minimum",
    batch_size: int = 64,
    unusable: float = 0.01,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetStats:
    """Reads every clip of a split once and measures it.

    `frames` is T. Its default is the longest clip's frames in whole patches of 16, at most 1024 (10 s). `watch` gets
    the number of clips done and of all clips. Raises `ValueError` if more than the share `unusable` cannot be used.
    """
    records = dataset.clips(split)
    heads = [head for record in records if (head := record.header())]
    seconds = np.array([head.frames / head.samplerate for head in heads]) if heads else np.zeros(1)
    if frames is None:
        longest = frame_count(int(np.ceil(seconds.max() * 16000)))
        frames = min(1024, max(16, -(-longest // 16) * 16))
    moments = dict.fromkeys(("minimum", "zero", "real"), Moments())
    with eval_batches(
        dataset, split, frames=frames, batch_size=batch_size, workers=Workers(threads=2), unusable=unusable
    ) as batches:
        done = used = padded = 0
        for batch in batches:
            for kind, found in _batch_moments(batch, frames=frames).items():
                moments[kind] += found
            done += int((batch.indices >= 0).sum())
            used += int(batch.weights.sum())
            padded += int(((frame_count(batch.lengths) < frames) & (batch.weights > 0)).sum())
            watch(done, len(records))
        bad = dict(batches.unusable)
    counts = class_counts([record for record in records if record.path not in bad], classes=len(dataset.labels))
    return DatasetStats(
        name=dataset.name,
        split=split,
        frames=frames,
        clips=used,
        unusable=bad,
        padding=padding,
        padded=padded,
        mean=moments[padding].mean,
        std=moments[padding].std,
        minimum_padded=(moments["minimum"].mean, moments["minimum"].std),
        zero_padded=(moments["zero"].mean, moments["zero"].std),
        unpadded=(moments["real"].mean, moments["real"].std),
        seconds=(float(seconds.min()), float(np.median(seconds)), float(seconds.max())),
        longer_than_input=int(sum(frame_count(round(s * 16000)) > frames for s in seconds)),
        sample_rates=dict(sorted(Counter(head.samplerate for head in heads).items())),
        channels=dict(sorted(Counter(head.channels for head in heads).items())),
        balance={name: int(count) for name, count in zip(dataset.labels, counts, strict=True)},
        single_label=dataset.single_label,
    )


def _batch_moments(batch: Batch, *, frames: int) -> dict[str, Moments]:
    sums = jax.device_get(_clip_sums(batch.waveforms, batch.lengths, frames=frames))
    clips = batch.weights > 0
    moments = {}
    for kind, (count, mean, squares) in sums.items():
        total = Moments()
        for row in np.flatnonzero(clips):
            total += Moments(count=float(count[row]), mean=float(mean[row]), squares=float(squares[row]))
        moments[kind] = total
    return moments


@jax.jit(static_argnames="frames")
def _clip_sums(
    waveforms: Float[Array, "b samples"], lengths: Int[Array, "b"], *, frames: int
) -> dict[str, tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]]:
    """Count, mean and squared deviations of each clip, per kind of padding. The caller joins them in float64."""
    valid = frame_count(lengths)
    mel = fit_frames(log_mel(waveforms), frames=frames, valid=valid)
    real = (jnp.arange(frames)[None, :] < valid[:, None])[:, :, None]
    every = jnp.ones_like(real)
    kinds = {"minimum": (mel, every), "zero": (jnp.where(real, mel, 0.0), every), "real": (mel, real)}
    sums = {}
    for kind, (values, counted) in kinds.items():
        count = counted.sum((1, 2)) * mel.shape[2]
        mean = values.mean((1, 2), where=counted)
        squares = ((values - mean[:, None, None]) ** 2).sum((1, 2), where=counted)
        sums[kind] = (count.astype(jnp.float32), mean, squares)
    return sums
