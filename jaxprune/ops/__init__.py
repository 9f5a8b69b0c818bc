"""Array operations under the models, written for their speed and memory: attention, LayerNorm, GELU.

They know arrays and dtypes, and neither models nor pruning. Use `attention.attend`, which picks the way for the device,
and the modules of `layers`; `attention_chunked`, `attention_cudnn`, `attention_weighted` and `xla_cpu` serve those.
"""

__all__ = ["attention", "layers", "xla_cpu"]
