"""Several devices and several processes: `devices` lays arrays out on a mesh, `processes` lets processes agree.

Nothing here knows models or data. Programs are written as for one device; XLA adds what the devices exchange.
"""

__all__ = ["devices", "processes"]
