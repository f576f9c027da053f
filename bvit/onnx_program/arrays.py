"""Primitives that rearrange, reduce, sort and gather."""

from collections.abc import Mapping
from typing import SupportsIndex

import numpy as np
from jax.extend.core import JaxprEqn

from bvit.onnx_program.program import Operators, Program, Shape, Value, shape_of

REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_or": "ReduceMax",  # of booleans as integers
}

OPERATORS = Operators()


@OPERATORS.add("broadcast_in_dim", broadcasts=True)
def _broadcast_in_dim(program: Program, equation: JaxprEqn, x: Value) -> Value:
    shape: list[int | str] = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return program.reshape(x, tuple(shape))


@OPERATORS.add("transpose", broadcasts=True)
def _transpose(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.transpose(x, equation.params["permutation"])


@OPERATORS.add("squeeze", broadcasts=True)
def _squeeze(program: Program, equation: JaxprEqn, x: Value) -> Value:
    gone = equation.params["dimensions"]
    return program.reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in gone))


@OPERATORS.add("reshape")
def _reshape(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.reshape(x, shape_of(equation.outvars[0]))


@OPERATORS.add("iota")
def _iota(program: Program, equation: JaxprEqn) -> Value:
    (variable,), axis = equation.outvars, equation.params["dimension"]
    numbers = np.arange(variable.aval.shape[axis], dtype=variable.aval.dtype)
    return program.constant(
        np.expand_dims(numbers, [i for i in range(variable.aval.ndim) if i != axis])
    )


@OPERATORS.add("concatenate")
def _concatenate(program: Program, equation: JaxprEqn, *inputs: Value) -> Value:
    parts = [value for value in inputs if 0 not in value.shape]
    axis = int(equation.params["dimension"])
    return Value(program.add("Concat", *parts, axis=axis), shape_of(equation.outvars[0]))


@OPERATORS.add("stack")
def _stack(program: Program, equation: JaxprEqn, *inputs: Value) -> Value:
    axis = int(equation.params["axis"])
    parts = [program.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in inputs]
    return Value(program.add("Concat", *parts, axis=axis), shape_of(equation.outvars[0]))


@OPERATORS.add("unstack")
def _unstack(program: Program, equation: JaxprEqn, x: Value) -> list[Value]:
    axis = int(equation.params["axis"])
    one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return [
        program.reshape(_sliced(program, x, one, {axis: (i, i + 1, 1)}), shape_of(variable))
        for i, variable in enumerate(equation.outvars)
    ]


@OPERATORS.add("pad")
def _pad(program: Program, equation: JaxprEqn, x: Value, filling: Value) -> Value:
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise NotImplementedError("padding between the elements of an array is not known")
    padded = program.add("Pad", x, program.integers([*low, *high]), filling)
    return Value(padded, shape_of(equation.outvars[0]))


@OPERATORS.add("slice")
def _slice(program: Program, equation: JaxprEqn, x: Value) -> Value:
    params, shape = equation.params, shape_of(equation.outvars[0])
    steps = params["strides"] or (1,) * len(shape)
    parts = dict(
        enumerate(zip(params["start_indices"], params["limit_indices"], steps, strict=True))
    )
    whole = [axis for axis, size in enumerate(x.shape) if shape[axis] == size]
    return _sliced(program, x, shape, {a: part for a, part in parts.items() if a not in whole})


@OPERATORS.add("split")
def _split(program: Program, equation: JaxprEqn, x: Value) -> list[Value]:
    ends = np.cumsum(equation.params["sizes"])
    starts = ends - equation.params["sizes"]
    return [
        _sliced(program, x, shape_of(variable), {equation.params["axis"]: (start, end, 1)})
        for variable, start, end in zip(equation.outvars, starts, ends, strict=True)
    ]


def _sliced(
    program: Program, x: Value, shape: Shape, parts: Mapping[int, tuple[SupportsIndex, ...]]
) -> Value:
    """The part of x from (start, end, step) along each axis."""
    if not parts:
        return x
    starts, ends, steps = zip(*parts.values(), strict=True)
    numbers = [program.integers([*map(int, each)]) for each in (starts, ends, parts, steps)]
    return Value(program.add("Slice", x, *numbers), shape)


@OPERATORS.add("rev")
def _rev(program: Program, equation: JaxprEqn, x: Value) -> Value:
    least = np.iinfo(np.int64).min
    return _sliced(program, x, x.shape, {a: (-1, least, -1) for a in equation.params["dimensions"]})


@OPERATORS.add(*REDUCTIONS)
def _reduce(program: Program, equation: JaxprEqn, x: Value) -> Value:
    operator, (variable,) = REDUCTIONS[equation.primitive.name], equation.outvars
    return program.reduce(operator, x, equation.params["axes"], variable)


@OPERATORS.add("argmax")
def _argmax(program: Program, equation: JaxprEqn, x: Value) -> Value:
    (axis,) = equation.params["axes"]
    if equation.invars[0].aval.dtype == np.bool_:
        x = program.cast(x, np.int32)
    index = program.add("ArgMax", x, axis=int(axis), keepdims=0)
    return program.cast(Value(index, shape_of(equation.outvars[0])), equation.params["index_dtype"])


@OPERATORS.add("cumsum")
def _cumsum(program: Program, equation: JaxprEqn, x: Value) -> Value:
    axis = program.constant(np.array(equation.params["axis"], np.int64))
    return Value(program.add("CumSum", x, axis, reverse=int(equation.params["reverse"])), x.shape)


@OPERATORS.add("sort")
def _sort(program: Program, equation: JaxprEqn, key: Value, *others: Value) -> list[Value]:
    if equation.params["num_keys"] > 1:
        raise NotImplementedError("sorting by several keys is not known")
    axis, dtype = int(equation.params["dimension"]), equation.invars[0].aval.dtype
    if dtype == np.bool_:
        key = program.cast(key, np.int32)
    count = program.integers([key.shape[axis]])
    # Equal values keep their order.
    ordered, order = (Value(program.name(), key.shape) for _ in range(2))
    program.add_all("TopK", key, count, outputs=[ordered.name, order.name], axis=axis, largest=0)
    if dtype == np.bool_:
        ordered = program.cast(ordered, bool)
    return [
        ordered,
        *(Value(program.add("GatherElements", x, order, axis=axis), x.shape) for x in others),
    ]


@OPERATORS.add("gather")
def _gather(program: Program, equation: JaxprEqn, x: Value, index: Value) -> Value:
    """All indices are within bounds: onnxruntime raises an error where one is not."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    taken, batch = [*numbers.collapsed_slice_dims], [*numbers.operand_batching_dims]
    whole = equation.invars[0].aval.shape
    rest = [axis for axis in range(len(x.shape)) if axis not in taken + batch]
    if [*numbers.start_index_map] != taken or any(sizes[i] != whole[i] for i in rest):
        raise NotImplementedError("gathering parts of several elements is not known")
    x = program.transpose(x, [*batch, *taken, *rest])
    axes = range(len(index.shape) - 1)
    places = [*numbers.start_indices_batching_dims]
    places += [axis for axis in axes if axis not in places]
    index = program.cast(program.transpose(index, [*places, len(axes)]), np.int64)
    gathered = program.add("GatherND", x, index, batch_dims=len(batch))
    shape = index.shape[:-1] + x.shape[len(batch) + len(taken) :]
    offsets = [*numbers.offset_dims]
    remaining = iter(places.index(axis) for axis in axes)
    source = [
        len(places) + offsets.index(axis) if axis in offsets else next(remaining)
        for axis in range(len(shape))
    ]
    return program.transpose(Value(gathered, shape), source)
