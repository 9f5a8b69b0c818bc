"""Loads a PyTorch checkpoint as a JAX model in memory."""

import os
from typing import Any

from jaxprune.models import Classifier

from .mapping import to_flax
from .read import read_torch


def load_torch(path: str | os.PathLike, *, num_heads: int | None = None, **settings: Any) -> Classifier:
    """The model in a PyTorch checkpoint of any format that `read_torch` knows, float32.

    `num_heads` defaults to width / 64; `settings` are `read_torch`'s. Raises `ValueError` as that does.
    """
    checkpoint = read_torch(path, num_heads=num_heads, **settings)
    return to_flax(checkpoint.state, checkpoint.card.model)
