"""Recordings and made sounds that the tests of loading share."""

import numpy as np
from helpers import TESTS

FOLDER = TESTS / "recordings"


def chirp(seconds: float, rate: int) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 + 500 * time) * time)
