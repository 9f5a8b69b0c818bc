"""Several devices and several processes: `devices` lays arrays out on a mesh, `processes` lets processes agree.

Nothing here knows models or data. What is computed is written as for one device; XLA adds what devices exchange.
"""

__all__ = ["devices", "processes"]
