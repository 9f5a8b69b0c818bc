"""Places the arrays of a training on devices.

All devices of all processes share each batch. Each device holds all of the weights and of the optimiser's moments, or
its part. There is one mesh with one axis. Programs are written as for one device and jitted with these placements; XLA
adds what the devices exchange. The processes are the matter of `jaxprune.parallel.processes`.
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
SMALL = 1024  # numbers; fewer cost less to hold than to gather
# The layout of an array of this shape on so many devices.
Spread = Callable[[tuple[int, ...], int], PartitionSpec]


def whole(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Every device holds all of it."""
    return PartitionSpec()


def divided(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Each device holds a part (FSDP). The array is cut along its longest axis that the devices divide, the first of
    equals. An array without such an axis, or of fewer than 1024 numbers, stays whole."""
    axes = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if not axes or np.prod(shape) < SMALL:
        return PartitionSpec()
    longest = max(axes, key=shape.__getitem__)
    return PartitionSpec(*(AXIS if axis == longest else None for axis in range(longest + 1)))


class Layout:
    """The devices of a training, by default all devices of all processes.

    `spread` is `whole` or `divided`: it says how the state spreads over them. It decides memory and speed. Numbers
    change by rounding only.
    """

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
        """Puts a state, or part of one, where it belongs. All processes must give the same values."""

        def put(leaf: Any) -> Array:
            sharding = self._of(leaf)
            if isinstance(leaf, Array) and leaf.sharding == sharding:
                return leaf
            leaf = on_host(leaf)
            return jax.make_array_from_callback(leaf.shape, sharding, lambda part: np.array(leaf[part]))

        return jax.tree.map(put, tree)

    def describe(self, tree: Any) -> Any:
        """The shapes and placements of a state, to compile a program without the state."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._of(x)), tree)

    def lay(self, tree: Any) -> Any:
        """Does what `put` does, inside a jitted program."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self._of(leaf)), tree)

    def gathered(self, weights: Any) -> Any:
        """The weights, whole on every device, inside a jitted program. Their gradients are laid out as the weights.

        Left to itself, XLA may keep weights divided and gather activations, which grow with the clips.
        """
        return jax.tree.map(lambda leaf: _gathered(leaf, self.whole, self._of(leaf)), weights)

    def share(self, rows: Any) -> Any:
        """Joins each process's own rows to batches over all processes, in the order of the processes."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.rows, np.asarray(x)), rows)

    def shapes(self, rows: Any) -> Any:
        """The shapes and placements of what `share` returns."""
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
    """All of an array, including what other processes hold. If they hold any, all of them must call this."""
    if not isinstance(array, Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_device() -> None:
    """Raises `OSError`, with JAX's own reason, where its backend does not start."""
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second, without a word, where no plugin of that name is there
        asked = jax.config.jax_platforms
        reason = str(error) or "no backend of that name is installed or finds a device"
        raise OSError(f"JAX does not start with JAX_PLATFORMS={asked}: {reason}") from error
