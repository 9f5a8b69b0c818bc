"""PyTorch checkpoints to JAX and back, with the proof that both compute the same. The only part that needs torch."""

from .load import load_torch

__all__ = ["load_torch"]
