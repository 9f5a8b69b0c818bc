"""Pictures as matplotlib figures, without pyplot, written whole as PNG, SVG or PDF.

`clips` draws spectrograms with the dropped patches blank, `log_mel` one spectrogram, `reconstruction` what pretraining
predicts, `analysis` the statistics of `jaxprune.analysis`, `pareto` a sweep. `style` holds their palette. Numbers that
a table would need are computed elsewhere.
"""

__all__ = ["analysis", "clips", "log_mel", "pareto", "reconstruction", "style"]
