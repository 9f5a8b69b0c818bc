"""Token reduction: the worth of patches and the choice among them, as values that a model is called with.

`scores` rate the patches of a block, `selection` holds the stages that choose by the scores, `policy` joins a score
with stages. The encoder that asks them is `jaxprune.vit`; the published settings are `jaxprune.models.topk`'s. Other
ways to reduce tokens, such as merging, belong here. `dynamic` and `predictors` are those that are learned.
"""

__all__ = ["policy", "scores", "selection"]
