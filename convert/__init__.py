"""PyTorch checkpoints to JAX and back, with the proof that both compute the same. Only this part needs torch.

`read` reads every published format. `mapping` is the one table that pairs tensors with leaves. `export` writes.
`torch_reference` has the models once more in plain PyTorch, `validate` compares the two, `benchmark` times them. The
commands are `command` and `validate`. A converted model is loaded, run and trained without any of it, by the other
packages of `jaxprune`.
"""

from .load import load_torch

__all__ = ["load_torch"]
