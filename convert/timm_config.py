"""The configuration of an AudioMAE that timm publishes: the `config.json` of its folder.

timm names the tensors as AudioMAE does. Its file tells the spectrogram's size, the pooling and the class names. It has
no feature statistics in our sense: timm's mean and std are of images.
"""

from pathlib import Path

from jaxprune.config import LARGEST
from jaxprune.data.labels import from_id2label

from .complete_card import Said
from .containers import read_json
from .errors import CheckpointError, shown

POOLING = "avg"  # of patches, before the norm: AudioMAE's classifier


def read_timm(folder: Path, *, classifier: bool) -> Said:
    """The facts in a folder's `config.json`. If the file is not timm's, a note alone.

    Raises `CheckpointError` for a classifier that pools in another way than AudioMAE's.
    """
    path = folder / "config.json"
    content = read_json(path)
    if not isinstance(content.get("architecture"), str):
        return Said(notes=("config.json is neither transformers' nor timm's and was not read.",))
    pooling = content.get("global_pool", POOLING)
    if classifier and pooling != POOLING:
        raise CheckpointError(
            path, f"sets global_pool to {shown(repr(pooling))}; AudioMAE's classifier takes the mean of patches, 'avg'"
        )
    pretrained = content.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    frames, mels = _input_size(pretrained.get("input_size"), path)
    labels = pretrained.get("label_names") or ()
    try:
        names = from_id2label(dict(enumerate(labels))) if isinstance(labels, list) else ()
    except ValueError as error:
        raise CheckpointError(path, f"names its classes in a way that cannot be used: {error}") from error
    return Said(where="its config.json", frames=frames, mels=mels, labels=names)


def _input_size(size: object, path: Path) -> tuple[int | None, int | None]:
    """Frames and mel bins, where the file tells them."""
    match size:
        case None:
            return None, None
        case [1, int(frames), int(mels)] if 0 < frames <= LARGEST["frames"] and 0 < mels <= LARGEST["mels"]:
            return frames, mels
    raise CheckpointError(path, f"sets input_size to {shown(repr(size))}; expected 1 channel, frames and mel bins")
