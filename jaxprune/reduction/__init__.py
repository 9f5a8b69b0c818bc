"""Token reduction: what becomes of tokens between blocks, as values that a model is called with.

`tokens` has the state that goes from block to block and the interface of a reduction. `scores` rate patches,
`selection` prunes by scores, `fusing` is EViT, `merging` ToMe, `pooling` averages neighbours, `predictors` and
`dynamic` are DynamicViT, `joining` puts two in one block, and `groups` says which token holds which patch. `policy`
joins a score with the blocks that reduce. The encoder that asks them is `jaxprune.vit`; published settings are
`jaxprune.methods`' and `jaxprune.models.topk`'s.
"""

__all__ = ["dynamic", "fusing", "groups", "joining", "merging", "policy", "pooling", "scores", "selection", "tokens"]
