"""Token reduction: the worth of patches and the choice among them, as values that a model is called with.

`scores` rate the patches of a block, `selection` holds the stages that choose by the scores, `policy` joins a score
with stages. The encoder that asks them is `jaxprune.vit`; the published settings are `jaxprune.models.topk`'s. Other
ways to reduce tokens, such as merging, belong here.
"""

__all__ = ["policy", "scores", "selection"]
