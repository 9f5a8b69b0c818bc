"""The places of a training's arrays: all devices of all processes share each batch, and of the weights and the
optimiser's moments each device holds all or its part.

One mesh with one axis. Programs are written as for one device and jitted with these placements; XLA adds what the
devices tell each other. `jaxprune.parallel.processes` is about the processes themselves.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXIS = "data"
SMALL = 1024  # numbers; to gather fewer costs more than to hold them
# The layout of an array of this shape on so many devices.
Spread = Callable[[tuple[int, ...], int], PartitionSpec]


def whole(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Every device holds all of it."""
    return PartitionSpec()


def divided(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Divided (FSDP) along its longest axis that the devices divide, the first of equals; whole without one or under
    1024 numbers."""
    axes = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if not axes or np.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(axes, key=shape.__getitem__)
    return PartitionSpec(*(AXIS if axis == longest else None for axis in range(longest + 1)))


class Layout:
    """The devices of a training (default: all, of all processes), and how its state spreads over them: `whole` or
    `divided`. That decides memory and speed; the numbers change by rounding only."""

    def __init__(self, devices: Sequence[jax.Device] | None = None, *, spread: Spread = whole):
        self.devices = tuple(jax.devices() if devices is None else devices)
        self.spread = spread
        self._mesh = Mesh(np.array(self.devices), (AXIS,))
        self.whole = NamedSharding(self._mesh, PartitionSpec())
        self.rows = NamedSharding(self._mesh, PartitionSpec(AXIS))

    def check(self, clips: int) -> None:
        """Raises `ValueError` where the devices cannot share so many clips at a time."""
        if clips % len(self.devices):
            raise ValueError(
                f"{clips} clips at a time cannot be shared by {len(self.devices)} devices; choose a multiple"
            )

    def put(self, tree: Any) -> Any:
        """A state, or part of one, where it belongs. All processes give the same values."""

        def put(leaf: Any) -> Array:
            sharding = self._of(leaf)
            if isinstance(leaf, Array) and leaf.sharding == sharding:
                return leaf
            leaf = on_host(leaf)
            return jax.make_array_from_callback(leaf.shape, sharding, lambda part: np.array(leaf[part]))

        return jax.tree.map(put, tree)

    def describe(self, tree: Any) -> Any:
        """A state's shapes and where they belong, for compiling a program without the state."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._of(x)), tree)

    def lay(self, tree: Any) -> Any:
        """The same inside a jitted program."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self._of(leaf)), tree)

    def gathered(self, weights: Any) -> Any:
        """Inside a jitted program: weights as they are multiplied with, whole on every device. Their gradients come
        back laid out as the weights are.

        Left to itself XLA may keep weights divided and gather activations, which grow with the clips.
        """
        return jax.tree.map(lambda leaf: _gathered(leaf, self.whole, self._of(leaf)), weights)

    def share(self, rows: Any) -> Any:
        """Batches over all processes, put together from each one's own rows, in the order of the processes."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.rows, np.asarray(x)), rows)

    def shapes(self, rows: Any) -> Any:
        """The result of `share` without the numbers."""
        processes = len({device.process_index for device in self.devices})

        def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((processes * x.shape[0], *x.shape[1:]), x.dtype, sharding=self.rows)

        return jax.tree.map(shape, rows)

    def _of(self, leaf: Any) -> NamedSharding:
        return NamedSharding(self._mesh, self.spread(leaf.shape, len(self.devices)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(leaf: Array, whole: NamedSharding, own: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(leaf, whole)


_gathered.defvjp(
    lambda leaf, whole, own: (_gathered(leaf, whole, own), None),
    lambda whole, own, _, cotangent: (jax.lax.with_sharding_constraint(cotangent, own),),
)


def on_host(array: Array | np.ndarray) -> np.ndarray:
    """All of an array, also what other processes hold; then all of them must ask."""
    if not isinstance(array, Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
