"""One HTML page about runs, which needs no network and no other file.

`inputs` reads the runs, `report` writes the page, `clips` shows clips to see and hear, `html` escapes everything that
becomes part of it. The statistics and pictures come from `jaxprune.analysis` and `jaxprune.plots`.
"""

__all__ = ["clips", "html", "inputs", "report"]
