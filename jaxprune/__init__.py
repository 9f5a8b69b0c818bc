"""Token pruning for audio transformers in JAX: AST and AudioMAE that drop patches while they run.

The names below are what a program needs. Each is imported when it is first used, so `import jaxprune` costs nothing;
`__init__.pyi` says which module each is from. Packages below serve work on data sets (`data`, `training`, `evaluation`,
`analysis`, `experiments`, `plots`, `report`), the commands (`cli`) and PyTorch's checkpoints (`convert`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
