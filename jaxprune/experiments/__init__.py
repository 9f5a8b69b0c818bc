"""Measurements of pruning under many settings in one pass over a data set.

`ablation` asks which patches matter, by accuracy when they are chosen in other ways; `ablation_tables` shows its rows.
`sweep` measures accuracy, cost and time over keep rates, blocks, scores and batch sizes; `sweep_points` joins them.
One model under one policy is `jaxprune.evaluation`'s matter.
"""

__all__ = ["ablation", "ablation_tables", "sweep", "sweep_points"]
