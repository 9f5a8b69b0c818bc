"""Small models with true depth, and random input, shared by the tests."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxprune.config import ModelConfig

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
STAGES = (3, 6, 9)
MIXED = {3: 0.83, 6: 0.61, 9: 0.47}


def small(family: str, **changes) -> ModelConfig:
    """Width 48, 3 heads, depth 12: the published structure at a hundredth of the price."""
    eps = {"ast": 1e-5, "audiomae": 1e-6}[family]
    fields = {"width": 48, "heads": 3, "depth": 12, "classes": 10, "frames": 128, "head_norm_eps": eps}
    return ModelConfig(family=family, **fields | changes)


def random_mel(config: ModelConfig, *, clips: int = 2, seed: int = 0) -> np.ndarray:
    """Noise of the size the model reads, `(b, t, f)` float32."""
    shape = (clips, config.frames, config.mels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """A limit on file sizes, which stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def rates(keep) -> dict[int, float]:
    return keep if isinstance(keep, dict) else dict.fromkeys(STAGES, keep)
