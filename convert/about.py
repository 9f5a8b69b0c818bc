"""Options that tell what a checkpoint's file does not: `Facts` to read its model, `About` to convert it."""

import dataclasses
from pathlib import Path

from jaxprune.config import Padding

from .read import TorchCheckpoint, read_torch


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

    def read(self, source: Path) -> TorchCheckpoint:
        """The source with these facts. Raises `ValueError` as `read_torch`."""
        return read_torch(source, **vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class About(Facts):
    """Facts about the source, and about the classifier that is made of it."""

    labels: Path | None = None
    """class names: a CSV with index and display_name, ESC-50's meta CSV, JSON, or one name a line."""
    classes: int | None = None
    """size of the new head for a checkpoint that has none, such as a pre-trained AudioMAE."""
    origin: str = ""
    """a remark on where the weights come from, kept in the card beside the file name."""

    def read(self, source: Path) -> TorchCheckpoint:
        """The source with these facts, and its origin in the card. Raises `ValueError` as `read_torch`."""
        facts = {name: value for name, value in vars(self).items() if name != "origin"}
        read = read_torch(source, **facts)
        head = "" if read.card.trained else "random weights in its new head"
        origin = "; ".join(filter(None, (read.card.source, self.origin, head)))
        return dataclasses.replace(read, card=dataclasses.replace(read.card, source=origin))
