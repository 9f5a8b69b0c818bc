"""Options that tell what a checkpoint's file does not, by the names of `read_torch`'s arguments.

`Facts` are enough to run the model, `About` to make a checkpoint of it.
"""

import dataclasses
from pathlib import Path

from jaxprune.config import Padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about the source that its file does not tell."""

    dataset: str | None = None
    """whose feature statistics and activation to use: audioset, esc50, speechcommands or voxceleb1."""
    mean: float | None = None
    """the mean of the log-mel features that the model was trained with; goes with --std."""
    std: float | None = None
    """their standard deviation."""
    padding: Padding | None = None
    """the log-mel that filled short clips in its training: the clip's minimum (the token-pruning code) or 0."""
    predictors: tuple[int, ...] = ()
    """the blocks at which the source's predictors choose (DynamicViT), if not 3, 6 and 9."""
    key: str | None = None
    """the weights to take where the file has several, such as model_ema or checkpoint.model."""
    num_heads: int | None = None
    """attention heads, if not width / 64."""
    source_frames: int | None = None
    """frames the source's position table was made for, if its size fits several."""
    mels: int | None = None
    """the source's mel bins, if not 128."""
    time_stride: int | None = None
    """the source's patch stride in frames, if it cannot be told from its size."""
    freq_stride: int | None = None
    """the source's patch stride in mel bins, if it cannot be told from its size."""

    @property
    def grid(self) -> dict[str, int | None]:
        """All that is known of the patches' grid, by the names of `infer_grid`."""
        strides = {"time_stride": self.time_stride, "freq_stride": self.freq_stride}
        return {"mels": self.mels, "frames": self.source_frames} | strides


@dataclasses.dataclass(frozen=True, kw_only=True)
class About(Facts):
    """Facts about the source and the classifier that is made of it."""

    labels: Path | None = None
    """class names: a CSV with index and display_name, ESC-50's meta CSV, JSON, or one name a line."""
    classes: int | None = None
    """size of the new head for a checkpoint that has none, such as a pre-trained AudioMAE."""
