"""The table of JAX's operations: each says which ONNX nodes compute the same.

A rule gets the lowering, the equation and its inputs as values. Rules for what no model of ours computes are left out.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxprune.export.graph import stored_dtype
from jaxprune.export.lowering import Lowering, NotExportable, Rule, Shape, Value, constant, joint

POWERS = 2.0 ** np.arange(-126, 128)  # float32's


def arithmetic(kind: str) -> Rule:
    """An ONNX operator that works number by number and broadcasts."""

    def rule(to: Lowering, eqn: Any, *values: Value) -> Value:
        return to.op(kind, *values, shape=joint(*(value.shape for value in values)))

    return rule


def negated(kind: str) -> Rule:
    """The opposite of a comparison."""

    def rule(to: Lowering, eqn: Any, *values: Value) -> Value:
        found = arithmetic(kind)(to, eqn, *values)
        return to.op("Not", found, shape=found.shape)

    return rule


def same(to: Lowering, eqn: Any, value: Value) -> Value:
    return value


def square(to: Lowering, eqn: Any, x: Value) -> Value:
    return to.op("Mul", x, x, shape=x.shape)


def integer_pow(to: Lowering, eqn: Any, x: Value) -> Value:
    power = eqn.params["y"]
    if power == 2:
        return square(to, eqn, x)
    return to.op("Pow", x, constant(np.array(power, stored_dtype(eqn.invars[0].aval.dtype))), shape=x.shape)


def rsqrt(to: Lowering, eqn: Any, x: Value) -> Value:
    return to.op("Reciprocal", to.op("Sqrt", x, shape=x.shape), shape=x.shape)


def remainder(to: Lowering, eqn: Any, x: Value, y: Value) -> Value:
    return to.op("Mod", x, y, shape=joint(x.shape, y.shape), fmod=1)  # the sign of x, as in JAX


def rounded(to: Lowering, eqn: Any, x: Value) -> Value:
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise NotExportable("the model rounds halves away from zero, which ONNX cannot")
    return to.op("Round", x, shape=x.shape)


def clamp(to: Lowering, eqn: Any, low: Value, x: Value, high: Value) -> Value:
    above = to.op("Max", x, low, shape=joint(x.shape, low.shape))
    return to.op("Min", above, high, shape=joint(above.shape, high.shape))


def select(to: Lowering, eqn: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != np.bool_:
        raise NotExportable("the model chooses among more than two arrays")
    if which.array is not None and (which.array.all() or not which.array.any()):
        chosen = cases[int(bool(which.array.all()))]
        return to.whole(chosen, eqn.outvars[0].aval.shape)
    return to.op("Where", which, cases[1], cases[0], shape=joint(which.shape, *(case.shape for case in cases)))


def cast(to: Lowering, eqn: Any, x: Value) -> Value:
    from onnx import helper

    before, after = (stored_dtype(dtype) for dtype in (eqn.invars[0].aval.dtype, eqn.params["new_dtype"]))
    return x if before == after else to.op("Cast", x, shape=x.shape, to=helper.np_dtype_to_tensor_dtype(after))


def power_of_two(to: Lowering, eqn: Any, x: Value) -> Value:
    """`reduce_precision` to no mantissa: the nearest power of two, with x's sign. 1.5 times one rounds up.

    It is looked up and not computed, because runtimes' powers are not exact.
    """
    if (eqn.params["exponent_bits"], eqn.params["mantissa_bits"]) != (8, 0):
        raise NotExportable("the model rounds to a floating-point format that ONNX does not have")
    size = to.op("Unsqueeze", to.op("Abs", x, shape=x.shape), to.integers(-1), shape=(*x.shape, 1))
    reached = to.op("GreaterOrEqual", size, constant(np.float32(0.75 * POWERS)), shape=(*x.shape, len(POWERS)))
    candidates = to.op("Where", reached, constant(np.float32(POWERS)), constant(np.float32(0)), shape=reached.shape)
    largest = to.op("ReduceMax", candidates, to.integers(-1), shape=x.shape, keepdims=0)
    return to.op("Mul", largest, to.op("Sign", x, shape=x.shape), shape=x.shape)


def reduction(kind: str) -> Rule:
    """An ONNX operator that reduces axes."""

    def rule(to: Lowering, eqn: Any, x: Value) -> Value:
        x, shape = to.whole(x, eqn.invars[0].aval.shape), eqn.outvars[0].aval.shape
        return to.op(kind, x, to.integers(*eqn.params["axes"]), shape=shape, keepdims=0)

    return rule


def first_of(kind: str) -> Rule:
    """The place of the largest or smallest number along an axis, the first of equals."""

    def rule(to: Lowering, eqn: Any, x: Value) -> Value:
        (axis,) = eqn.params["axes"]
        x = to.whole(x, eqn.invars[0].aval.shape)
        return to.op(kind, x, shape=eqn.outvars[0].aval.shape, axis=axis, keepdims=0, select_last_index=0)

    return rule


def reshape(to: Lowering, eqn: Any, x: Value) -> Value:
    return to.reshape(to.whole(x, eqn.invars[0].aval.shape), eqn.outvars[0].aval.shape)


def broadcast(to: Lowering, eqn: Any, x: Value, *sizes: Value) -> Value:
    shape: list[Any] = [1] * len(eqn.params["shape"])
    for axis, size in zip(eqn.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return to.reshape(x, tuple(shape))


def transpose(to: Lowering, eqn: Any, x: Value) -> Value:
    return to.transpose(x, eqn.params["permutation"])


def slices(to: Lowering, eqn: Any, x: Value) -> Value:
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    return cut(to, x, shape=eqn.invars[0].aval.shape, starts=starts, ends=ends, steps=steps)


def cut(to: Lowering, x: Value, *, shape: Shape, starts: Any, ends: Any, steps: Any) -> Value:
    """Part of an array. Axes that stay whole are not named, so that their size may be free."""
    x = to.whole(x, shape)
    axes = [axis for axis, size in enumerate(shape) if not (starts[axis] == 0 and ends[axis] == size)]
    axes = [axis for axis in range(len(shape)) if axis in axes or steps[axis] != 1]
    if not axes:
        return x
    kept = list(shape)
    for axis in axes:
        kept[axis] = -(-(ends[axis] - starts[axis]) // steps[axis])
    best = _fewer_of_sorted(to, x, axes=axes, starts=starts, ends=ends, steps=steps)
    if best is not None:
        return Value(best, tuple(kept))
    where = [to.integers(*(int(numbers[axis]) for axis in axes)) for numbers in (starts, ends)]
    return to.op("Slice", x, *where, to.integers(*axes), to.integers(*(steps[a] for a in axes)), shape=tuple(kept))


def _fewer_of_sorted(to: Lowering, x: Value, *, axes: list, starts: Any, ends: Any, steps: Any) -> str | None:
    """The first k of a sorted array: a TopK of k in place of one of all."""
    node = to.graph.source(to.name(x))
    if node is None or node.op_type != "TopK" or len(axes) > 1:
        return None
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    (axis,) = axes
    if settings["axis"] != axis or starts[axis] != 0 or steps[axis] != 1:
        return None
    count = to.graph.constant(np.array([ends[axis]], np.int64))
    names = to.graph.names("TopK", 2)
    to.graph.nodes("TopK", [node.input[0], count], names=names, **settings)
    return names[list(node.output).index(to.name(x))]


def concatenate(to: Lowering, eqn: Any, *values: Value) -> Value:
    parts = [to.whole(value, var.aval.shape) for value, var in zip(values, eqn.invars, strict=True)]
    return to.op("Concat", *parts, shape=eqn.outvars[0].aval.shape, axis=eqn.params["dimension"])


def pad(to: Lowering, eqn: Any, x: Value, value: Value) -> Value:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or inside for low, high, inside in config):
        raise NotExportable("the model pads by less than nothing or between numbers")
    x = to.whole(x, eqn.invars[0].aval.shape)
    widths = to.integers(*(low for low, _, _ in config), *(high for _, high, _ in config))
    return to.op("Pad", x, widths, value, shape=eqn.outvars[0].aval.shape)


def split(to: Lowering, eqn: Any, x: Value) -> list[Value]:
    x, sizes = to.whole(x, eqn.invars[0].aval.shape), eqn.params["sizes"]
    names = to.graph.names("Split", len(sizes))
    to.graph.nodes("Split", [to.name(x), to.name(to.integers(*sizes))], names=names, axis=eqn.params["axis"])
    return [Value(name, var.aval.shape) for name, var in zip(names, eqn.outvars, strict=True)]


def iota(to: Lowering, eqn: Any, *sizes: Value) -> Value:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    if not isinstance(shape[axis], int):
        raise NotExportable("the model counts along the batch, whose size is free")
    places = [size if i == axis else 1 for i, size in enumerate(shape)]
    return constant(np.arange(shape[axis], dtype=stored_dtype(eqn.params["dtype"])).reshape(places))


def product(to: Lowering, eqn: Any, left: Value, right: Value) -> Value:
    """`dot_general` as one MatMul: batch axes first, then one axis of rows, of columns and of what is summed over."""
    (sum_left, sum_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    left, right = (to.whole(value, var.aval.shape) for value, var in zip((left, right), eqn.invars, strict=True))
    rows = [axis for axis in range(len(left.shape)) if axis not in (*sum_left, *batch_left)]
    columns = [axis for axis in range(len(right.shape)) if axis not in (*sum_right, *batch_right)]
    left = to.transpose(left, [*batch_left, *rows, *sum_left])
    right = to.transpose(right, [*batch_right, *sum_right, *columns])
    shape = eqn.outvars[0].aval.shape
    if not batch_left and len(sum_left) == len(columns) == 1:
        return to.op("MatMul", left, right, shape=shape)
    batch, middle = len(batch_left), len(rows)
    several = left.shape[:batch]
    size = math.prod(left.shape[batch + middle :])
    tall = math.prod(left.shape[batch : batch + middle])
    wide = math.prod(right.shape[batch + len(sum_right) :])
    left, right = to.reshape(left, (*several, tall, size)), to.reshape(right, (*several, size, wide))
    return to.reshape(to.op("MatMul", left, right, shape=(*several, tall, wide)), shape)


UNKNOWN_GATHER = "the model picks parts of an array in a way that this exporter does not know"


def gather(to: Lowering, eqn: Any, x: Value, places: Value) -> Value:
    """The gathers of our models: one part of an array, patches by their places in each clip, rows of all clips.

    Indices are taken to be in range, because they come from sorting or are constant.
    """
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    x, batch = to.whole(x, shape), len(numbers.operand_batching_dims)
    if places.array is not None and places.array.ndim == 1 and not batch:
        starts, ends = [0] * len(shape), list(shape)
        for axis, start in zip(numbers.start_index_map, places.array.tolist(), strict=True):
            starts[axis], ends[axis] = start, start + sizes[axis]
        return to.reshape(cut(to, x, shape=shape, starts=starts, ends=ends, steps=[1] * len(shape)), out)
    picked = tuple(numbers.collapsed_slice_dims)
    first, behind = picked[0], len(shape) - len(picked)  # axes that stay are as many as `behind`
    side_by_side = picked == tuple(range(first, first + len(picked))) == tuple(numbers.start_index_map)
    whole = all(sizes[axis] == size for axis, size in enumerate(shape) if axis >= batch and axis not in picked)
    if not side_by_side or not whole:
        raise NotExportable(UNKNOWN_GATHER)
    places = to.whole(places, eqn.invars[1].aval.shape)
    if batch:
        clips = tuple(range(batch))
        last = tuple(range(len(out) - len(numbers.offset_dims), len(out)))
        batching = (numbers.operand_batching_dims, numbers.start_indices_batching_dims, numbers.offset_dims)
        if batching != (clips, clips, last) or first != batch:
            raise NotExportable(UNKNOWN_GATHER)
        return to.op("GatherND", x, places, shape=out, batch_dims=batch)
    wide = len(places.shape) - 1
    if numbers.offset_dims != (*range(first), *range(first + wide, wide + behind)):
        raise NotExportable(UNKNOWN_GATHER)
    return _along_one_axis(to, x, places, shape=shape, picked=picked, out=out)


def _along_one_axis(
    to: Lowering, x: Value, places: Value, *, shape: Shape, picked: tuple[int, ...], out: Shape
) -> Value:
    """Parts at places of one axis, or of several with constant places, which are joined to one."""
    first, last = picked[0], picked[-1]
    if places.array is not None:
        flat = np.ravel_multi_index(tuple(np.moveaxis(places.array, -1, 0)), shape[first : last + 1])
        places = constant(flat.astype(np.int64))
    elif first == last:
        places = to.reshape(places, places.shape[:-1])
    else:
        raise NotExportable(UNKNOWN_GATHER)
    joined = to.reshape(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))
    return to.op("Gather", joined, places, shape=out, axis=first)


def scatter(to: Lowering, eqn: Any, x: Value, places: Value, values: Value) -> Value:
    """Numbers put at places of the second axis. Those beyond the end fall into a column that is cut off again."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    axes = numbers.operand_batching_dims, numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims
    if len(shape) != 2 or axes != ((0,), (1,), (1,)) or numbers.update_window_dims:
        raise NotExportable("the model writes parts of an array in a way that this exporter does not know")
    size, dtype = shape[1], eqn.invars[1].aval.dtype
    index = to.reshape(to.whole(places, eqn.invars[1].aval.shape), eqn.invars[1].aval.shape[:-1])
    end = constant(np.asarray(size, dtype))
    index = to.op("Where", to.op("Less", index, end, shape=index.shape), index, end, shape=index.shape)
    column = constant(np.zeros((1, 1), eqn.invars[0].aval.dtype))
    wider = to.op("Concat", to.whole(x, shape), to.whole(column, (shape[0], 1)), shape=(shape[0], size + 1), axis=1)
    values = to.whole(values, eqn.invars[2].aval.shape)
    written = to.op("ScatterElements", wider, index, values, shape=wider.shape, axis=1)
    return cut(to, written, shape=wider.shape, starts=[0, 0], ends=shape, steps=[1, 1])


def stack(to: Lowering, eqn: Any, *values: Value) -> Value:
    axis, out, shape = eqn.params["axis"], eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape
    thick = (*shape[:axis], 1, *shape[axis:])
    return to.op("Concat", *(to.reshape(to.whole(value, shape), thick) for value in values), shape=out, axis=axis)


def running_sum(to: Lowering, eqn: Any, x: Value) -> Value:
    shape, axis = eqn.invars[0].aval.shape, constant(np.asarray(eqn.params["axis"], np.int64))
    return to.op("CumSum", to.whole(x, shape), axis, shape=shape, reverse=int(eqn.params["reverse"]))


def sort(to: Lowering, eqn: Any, *values: Value) -> list[Value]:
    """A stable sort of numbers with their places, as `argsort` makes it: TopK gives of equals the lower place first."""
    axis, keys = eqn.params["dimension"], to.whole(values[0], eqn.invars[0].aval.shape)
    size = keys.shape[axis]
    places = values[-1].array
    if eqn.params["num_keys"] != 1 or len(values) != 2 or places is None or not _counts(places, axis):
        raise NotExportable("the model sorts several arrays together")
    names, count = to.graph.names("TopK", 2), to.name(to.integers(size))
    to.graph.nodes("TopK", [to.name(keys), count], names=names, axis=axis, largest=0, sorted=1)
    return [Value(name, keys.shape) for name in names]


def _counts(places: np.ndarray, axis: int) -> bool:
    """True for an array that counts 0, 1, 2, ... along an axis."""
    return bool((np.moveaxis(places, axis, -1) == np.arange(places.shape[axis])).all())


def top_k(to: Lowering, eqn: Any, x: Value) -> list[Value]:
    x, axis = to.whole(x, eqn.invars[0].aval.shape), eqn.params.get("axis", len(x.shape) - 1)
    names = to.graph.names("TopK", 2)
    to.graph.nodes("TopK", [to.name(x), to.name(to.integers(eqn.params["k"]))], names=names, axis=axis, sorted=1)
    return [Value(name, var.aval.shape) for name, var in zip(names, eqn.outvars, strict=True)]


BY_NUMBER: dict[str, str] = {
    **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"},
    **{"pow": "Pow", "neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf"},
    **{"sqrt": "Sqrt", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "and": "And", "or": "Or"},
    **{"not": "Not", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"},
}

RULES: dict[str, Callable[..., Any]] = {
    **{name: arithmetic(kind) for name, kind in BY_NUMBER.items()},
    **dict.fromkeys(("stop_gradient", "copy", "copy_p", "optimization_barrier"), same),
    **{
        "reduce_sum": reduction("ReduceSum"),
        "reduce_max": reduction("ReduceMax"),
        "reduce_min": reduction("ReduceMin"),
    },
    **{"argmax": first_of("ArgMax"), "argmin": first_of("ArgMin"), "ne": negated("Equal"), "square": square},
    **{"integer_pow": integer_pow, "rsqrt": rsqrt, "rem": remainder, "round": rounded, "clamp": clamp},
    **{"select_n": select, "convert_element_type": cast, "reduce_precision": power_of_two, "reshape": reshape},
    **{"squeeze": reshape, "expand_dims": reshape, "broadcast_in_dim": broadcast, "transpose": transpose},
    **{"slice": slices, "concatenate": concatenate, "pad": pad, "split": split, "iota": iota, "dot_general": product},
    **{"gather": gather, "sort": sort, "top_k": top_k, "scatter": scatter, "cumsum": running_sum, "stack": stack},
}
