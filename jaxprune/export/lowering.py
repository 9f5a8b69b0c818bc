"""The walk over a traced program (a jaxpr) that rebuilds it as an ONNX graph.

Every operation goes through one of two tables: `functions` knows whole functions that runtimes have an operator for,
`primitives` single operations. What depends on constants alone is computed here. A broadcast is held back until an
operator needs it, because ONNX's arithmetic broadcasts by itself.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.export.graph import Graph

Shape = tuple[Any, ...]  # whole numbers, or a multiple of the free batch


class NotExportable(ValueError):
    """An operation that has no counterpart in ONNX."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph by name, or a constant. Its shape has 1 where a broadcast is held back."""

    name: str | None
    shape: Shape
    array: np.ndarray | None = None


Rule = Callable[..., Value | Sequence[Value] | None]


class Lowering:
    """Rebuilds jaxprs in one graph. `batch` is the free batch dimension and the input that has it, None where fixed."""

    def __init__(self, graph: Graph, *, rules: Mapping[str, Rule], functions: Mapping[str, Rule], batch: Any = None):
        self.graph = graph
        self._rules, self._functions, self._batch = rules, functions, batch

    def run(self, closed: Any, arguments: Sequence[Value]) -> list[Value]:
        """The outputs of a closed jaxpr for these inputs. Raises `NotExportable` as the tables demand."""
        jaxpr = closed.jaxpr
        known = {var: constant(value) for var, value in zip(jaxpr.constvars, closed.consts, strict=True)}
        known |= zip(jaxpr.invars, arguments, strict=True)

        def read(var: Any) -> Value:
            return constant(np.asarray(var.val, var.aval.dtype)) if hasattr(var, "val") else known[var]

        for eqn in _needed(jaxpr):
            found = self._equation(eqn, [read(var) for var in eqn.invars])
            known |= zip(eqn.outvars, [found] if isinstance(found, Value) else found, strict=True)
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Value]) -> Value | Sequence[Value]:
        name = eqn.primitive.name
        inner = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
        if inner is not None and name in ("jit", "custom_jvp_call", "custom_vjp_call"):
            rule = self._functions.get(_function(eqn, inner))
            found = None if rule is None else rule(self, inner, *values)
            return self.run(inner, values) if found is None else found
        if name == "platform_index":  # of the ways for several platforms, the one for any
            return constant(np.int32(eqn.params["platforms"].index(None)))
        if name == "cond" and values[0].array is not None:
            branches = eqn.params["branches"]
            return self.run(branches[int(np.clip(values[0].array, 0, len(branches) - 1))], values[1:])
        if name != "broadcast_in_dim" and all(value.array is not None for value in values) and _static(eqn):
            return self._folded(eqn, values)
        if name not in self._rules:
            raise NotExportable(f"the model computes {name!r}, which this exporter cannot write to ONNX")
        return self._rules[name](self, eqn, *values)

    def _folded(self, eqn: Any, values: list[Value]) -> list[Value]:
        """An operation on constants, computed now."""
        arrays = [
            jnp.asarray(np.broadcast_to(value.array, var.aval.shape), var.aval.dtype)
            for value, var in zip(values, eqn.invars, strict=True)
        ]
        found = eqn.primitive.bind(*arrays, **eqn.params)
        return [constant(np.asarray(array)) for array in (found if eqn.primitive.multiple_results else [found])]

    def name(self, value: Value) -> str:
        """The tensor's name in the graph."""
        return self.graph.constant(value.array) if value.name is None else value.name

    def op(self, kind: str, *values: Value, shape: Shape, **attributes: Any) -> Value:
        """A node of one output."""
        return Value(self.graph.node(kind, *map(self.name, values), **attributes), tuple(shape))

    def whole(self, value: Value, shape: Shape) -> Value:
        """The value with all its broadcasts carried out."""
        if value.shape == tuple(shape):
            return value
        if value.array is not None and self.is_static(shape):
            return constant(np.broadcast_to(value.array, shape))
        return Value(self.graph.node("Expand", self.name(value), self._sizes(shape)), tuple(shape))

    def reshape(self, value: Value, shape: Shape) -> Value:
        """The value, which is whole, in another shape."""
        if value.shape == tuple(shape):
            return value
        if value.array is not None:
            return constant(value.array.reshape(shape))
        free = [dimension for dimension in shape if not isinstance(dimension, int)]
        if len(free) > 1:
            raise NotExportable(f"the model reshapes to {shape}, in which more than one size is free")
        sizes = [dimension if isinstance(dimension, int) else -1 for dimension in shape]
        return Value(
            self.graph.node("Reshape", self.name(value), self.graph.constant(np.array(sizes, np.int64))), shape
        )

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        if list(order) == list(range(len(order))):
            return value
        if value.array is not None:
            return constant(value.array.transpose(order))
        return self.op("Transpose", value, shape=tuple(value.shape[axis] for axis in order), perm=list(order))

    def integers(self, *numbers: SupportsIndex) -> Value:
        """A constant list of whole numbers."""
        return constant(np.array([int(number) for number in numbers], np.int64))

    def is_static(self, shape: Shape) -> bool:
        """True for a shape of plain numbers."""
        return all(isinstance(dimension, int) for dimension in shape)

    def _sizes(self, shape: Shape) -> str:
        """The tensor that holds a shape."""
        if self.is_static(shape):
            return self.graph.constant(np.array(shape, np.int64))
        dimension, source = self._batch
        batch = self.graph.node("Shape", source, start=0, end=1)
        parts = []
        for size in shape:
            if isinstance(size, int):
                parts.append(self.graph.constant(np.array([size], np.int64)))
            else:
                times = size // dimension
                if not isinstance(times, int) and not (hasattr(times, "__index__") and dimension * int(times) == size):
                    raise NotExportable(f"the model has an array of size {size}, no multiple of the batch")
                parts.append(self.graph.node("Mul", batch, self.graph.constant(np.array([int(times)], np.int64))))
        return self.graph.node("Concat", *parts, axis=0)


def constant(numbers: Any) -> Value:
    """A constant as a value. Raises `NotExportable` for the key of a random generator."""
    if jnp.issubdtype(numbers.dtype, jax.dtypes.extended):
        raise NotExportable("the model draws random numbers, which cannot be written to ONNX")
    array = np.asarray(numbers)
    return Value(None, array.shape, array)


def joint(*shapes: Shape) -> Shape:
    """The shape that arithmetic on such shapes gives. Scalars fit all."""
    rank = max(map(len, shapes))
    full = [shape for shape in shapes if len(shape) == rank]
    return tuple(next((size for size in sizes if not _is_one(size)), 1) for sizes in zip(*full, strict=True))


def trace(call: Callable[..., Any], *specs: jax.ShapeDtypeStruct) -> Any:
    """The jaxpr of a function, for arguments of these shapes."""
    return jax.make_jaxpr(call)(*specs)


def _needed(jaxpr: Any) -> list[Any]:
    """The operations that the outputs depend on, in order."""
    wanted, kept = set(map(id, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if wanted & set(map(id, eqn.outvars)):
            kept.append(eqn)
            wanted |= set(map(id, eqn.invars))
    return kept[::-1]


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _static(eqn: Any) -> bool:
    """True where the sizes of the results are plain numbers."""
    return all(isinstance(size, int) for var in eqn.outvars for size in var.aval.shape)


def _function(eqn: Any, inner: Any) -> str:
    """The name of the function that an equation calls."""
    return eqn.params.get("name") or inner.jaxpr.debug_info.func_src_info.split(" ")[0]
