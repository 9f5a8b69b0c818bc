"""Statistics of what a model attends to and keeps: does attention follow intensity, and which patches survive?

`extract` runs a split through a model and stores scores and kept patches. `extraction` and `manifest` read them back;
`identity` says which weights, clips and pruning they come from. `analyze` computes all statistics of an extraction; its
parts are `kendall`, `clusters`, `retained` and `bootstrap`. `saved` and `tables` write them as JSON and CSV.
`librosa_mel` compares features. Accuracy under other ways of pruning belongs to `jaxprune.experiments`, pictures to
`jaxprune.plots`.
"""

__all__ = [
    "analyze",
    "bootstrap",
    "clusters",
    "extract",
    "extraction",
    "identity",
    "kendall",
    "librosa_mel",
    "manifest",
    "retained",
    "saved",
    "tables",
]
