"""A worker's order and its device: all that parent and workers must agree on."""

import dataclasses
from collections.abc import Mapping


class Unavailable(Exception):
    """Hardware or a package that is missing here; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Device:
    """A device to measure on.

    `torch` is PyTorch's name for it; `environment` brings JAX there. `side` is the side of the square matrices whose
    product tells the device's peak. `float32` is PyTorch's precision of matrix products that equals JAX's default.
    `notes` are for readers of the figures.
    """

    torch: str
    environment: Mapping[str, str]
    side: int
    float32: str
    notes: tuple[str, ...] = ()


DEVICES: Mapping[str, Device] = {
    "cpu": Device("cpu", {"JAX_PLATFORMS": "cpu"}, side=4096, float32="highest"),
    "gpu": Device(
        "cuda",
        # JAX would take most of the memory at once and leave PyTorch none.
        {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        side=8192,
        float32="high",
        notes=("On a GPU float32 products are TF32 in both frameworks. What else uses the GPU is not watched.",),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement of one worker.

    `contestant` is `jax`, `torch-VARIANT` or a name in `runtime_side.RUNTIMES`, `work` is forward or step. A sample
    lasts `min_seconds` at least. `method` is the way to reduce tokens, in `jaxprune.registry`. `files` is the folder of
    exported files, which runtimes share.
    """

    contestant: str
    work: str
    family: str
    size: str
    frames: int
    batch: int
    dtype: str
    device: str
    classes: int
    cores: list[int]
    min_seconds: float
    seed: int = 0
    method: str = "topk"
    files: str = ""

    def config(self):
        """The model's geometry. For learned pruning it has predictors, of random weights as all else."""
        from jaxprune.config import ModelConfig
        from jaxprune.reduction.policy import default_blocks
        from jaxprune.registry import LEARNED

        config = ModelConfig.of_size(self.family, self.size, frames=self.frames, classes=self.classes)
        predictors = default_blocks(config.depth) if self.method == LEARNED else ()
        return dataclasses.replace(config, predictors=predictors)

    def mel(self):
        import numpy as np

        config = self.config()
        shape = (self.batch, config.frames, config.mels)
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)

    def targets(self):
        """Labels for a training step: one class in a hundred is present, at random."""
        import numpy as np

        return (np.random.default_rng(self.seed + 1).random((self.batch, self.classes)) < 0.01).astype(np.float32)


ADAMW = {"learning_rate": 1e-5, "b1": 0.9, "b2": 0.95, "weight_decay": 1e-4}
