"""Pictures as matplotlib figures, without pyplot, written whole as PNG, SVG or PDF.

`clips` draws spectrograms with the dropped patches left blank, `log_mel` one spectrogram, `analysis` the statistics of
`jaxprune.analysis`, `pareto` a sweep. `style` holds the palette of all of them. Nothing is computed here that a table
would need.
"""

__all__ = ["analysis", "clips", "log_mel", "pareto", "style"]
