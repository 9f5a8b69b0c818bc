"""Models run over data sets: their metrics, their answers clip by clip, and their time.

`evaluate` adds up metrics, `per_clip` keeps clips apart, both on the loop in `forward_pass`; `metrics` holds losses and
scores, `timing` measures speed. Trace arrays on disk are `jaxprune.analysis`'s, a single recording is
`jaxprune.inference`'s.
"""

__all__ = ["evaluate", "forward_pass", "metrics", "per_clip", "timing"]
