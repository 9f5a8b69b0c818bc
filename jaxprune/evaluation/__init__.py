"""Runs models over data sets: metrics, answers clip by clip, and time.

`evaluate` adds up metrics, `per_clip` keeps clips apart, and `reconstruction` measures masked pretraining. All use the
loop in `forward_pass`. `metrics` holds losses and scores; `timing` measures speed. Trace arrays on disk belong to
`jaxprune.analysis`, single recordings to `jaxprune.inference`.
"""

__all__ = ["evaluate", "forward_pass", "metrics", "per_clip", "reconstruction", "timing"]
