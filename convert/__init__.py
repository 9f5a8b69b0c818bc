"""PyTorch checkpoints to JAX and back, with the proof that both compute the same. Only this part needs torch.

`read` reads every published format, `hub` fetches it. `mapping` is the one table that pairs tensors with leaves.
`export` writes, `publish` for others. `pretraining` has the table of a pretrained AudioMAE with its decoder.
`torch_reference` and `torch_pretraining` have the models once more in plain PyTorch, `validate` compares, `benchmark`
times. The commands are `command` and `validate`. A converted model is loaded, run and trained without any of it, by the
other packages of `jaxprune`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import load_torch
    from .pretraining import load_pretraining

__all__ = ["load_pretraining", "load_torch"]

_HOMES = {"load_torch": "load", "load_pretraining": "pretraining"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: both import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
