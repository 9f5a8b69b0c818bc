"""PyTorch checkpoints to JAX and back, with the proof that both compute the same; the only part that needs torch.

Here live the reader of every published format (`read`), the one table that pairs tensors with leaves (`mapping`), the
writers (`export`), the models once more in plain PyTorch (`torch_reference`), the comparison of both (`validate`) and
the benchmark against PyTorch (`benchmark`). The commands are `command` and `validate`. Loading, running and training a
converted model needs none of it and lives in `jaxprune`.
"""

from .load import load_torch

__all__ = ["load_torch"]
