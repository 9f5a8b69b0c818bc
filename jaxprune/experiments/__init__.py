"""Measures pruning under many settings in one pass over a data set.

`ablation` chooses patches in other ways and measures the accuracy; `ablation_tables` shows its rows. `sweep` measures
accuracy, cost and time over keep rates, blocks, scores and batch sizes; `sweep_points` joins them. One model under one
policy belongs to `jaxprune.evaluation`.
"""

__all__ = ["ablation", "ablation_tables", "sweep", "sweep_points"]
