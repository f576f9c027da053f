"""The primitives of JAX that models and policies are made of, as operators of ONNX."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jax.extend.core import JaxprEqn

from bvit.onnx_program.program import Operator, Program, Shape, Value, shape_of

ELEMENTWISE = {
    "add": "Add",
    "and": "And",
    "ceil": "Ceil",
    "copy": "Identity",
    "copy_p": "Identity",
    "div": "Div",
    "eq": "Equal",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "sub": "Sub",
}

OPERATORS: dict[str, Operator] = {}


def _operator(*names: str, broadcasts: bool = False) -> Callable:
    def register(function: Callable) -> Callable:
        OPERATORS.update(dict.fromkeys(names, Operator(function, broadcasts)))
        return function

    return register


@_operator(*ELEMENTWISE, broadcasts=True)
def _elementwise(program: Program, equation: JaxprEqn, *inputs: Value) -> Value:
    return program.elementwise(ELEMENTWISE[equation.primitive.name], *inputs)


def _product(shape: Shape) -> int | str:
    unknown = [size for size in shape if isinstance(size, str)]
    known = math.prod(size for size in shape if not isinstance(size, str))
    return f"{unknown[0]}*{known}" if unknown else known


@_operator("convert_element_type", broadcasts=True)
def _convert_element_type(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.cast(x, equation.params["new_dtype"])


@_operator("square", broadcasts=True)
def _square(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.elementwise("Mul", x, x)


@_operator("integer_pow", broadcasts=True)
def _integer_pow(program: Program, equation: JaxprEqn, x: Value) -> Value:
    power = equation.params["y"]
    if power == 2:
        return _square(program, equation, x)
    return program.elementwise("Pow", x, program.constant(_like(equation, power)))


@_operator("rsqrt", broadcasts=True)
def _rsqrt(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.elementwise("Reciprocal", program.elementwise("Sqrt", x))


@_operator("erfc", broadcasts=True)
def _erfc(program: Program, equation: JaxprEqn, x: Value) -> Value:
    one = program.constant(_like(equation, 1))
    return program.elementwise("Sub", one, program.elementwise("Erf", x))


@_operator("expm1", broadcasts=True)
def _expm1(program: Program, equation: JaxprEqn, x: Value) -> Value:
    one = program.constant(_like(equation, 1))
    return program.elementwise("Sub", program.elementwise("Exp", x), one)


@_operator("ne", broadcasts=True)
def _ne(program: Program, equation: JaxprEqn, x: Value, y: Value) -> Value:
    return program.elementwise("Not", program.elementwise("Equal", x, y))


@_operator("rem", broadcasts=True)
def _rem(program: Program, equation: JaxprEqn, x: Value, y: Value) -> Value:
    return program.elementwise("Mod", x, y, fmod=1)


@_operator("clamp", broadcasts=True)
def _clamp(program: Program, equation: JaxprEqn, low: Value, x: Value, high: Value) -> Value:
    return program.elementwise("Min", program.elementwise("Max", x, low), high)


@_operator("is_finite", broadcasts=True)
def _is_finite(program: Program, equation: JaxprEqn, x: Value) -> Value:
    bad = (program.elementwise(operator, x) for operator in ("IsInf", "IsNaN"))
    return program.elementwise("Not", program.elementwise("Or", *bad))


@_operator("select_n", broadcasts=True)
def _select(program: Program, equation: JaxprEqn, which: Value, no: Value, yes: Value) -> Value:
    return _where(program, which, yes, no, equation.outvars[0].aval.dtype)


def _where(program: Program, which: Value, yes: Value, no: Value, dtype: Any) -> Value:
    if dtype != np.bool_:
        return program.elementwise("Where", which, yes, no)
    # onnxruntime has no Where of booleans.
    yes = program.elementwise("And", which, yes)
    no = program.elementwise("And", program.elementwise("Not", which), no)
    return program.elementwise("Or", yes, no)


@_operator("broadcast_in_dim", broadcasts=True)
def _broadcast_in_dim(program: Program, equation: JaxprEqn, x: Value) -> Value:
    shape: list[int | str] = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return program.reshape(x, tuple(shape))


@_operator("transpose", broadcasts=True)
def _transpose(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.transpose(x, equation.params["permutation"])


@_operator("squeeze", broadcasts=True)
def _squeeze(program: Program, equation: JaxprEqn, x: Value) -> Value:
    gone = equation.params["dimensions"]
    return program.reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in gone))


@_operator("reshape")
def _reshape(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.reshape(x, shape_of(equation.outvars[0]))


@_operator("iota")
def _iota(program: Program, equation: JaxprEqn) -> Value:
    (variable,), axis = equation.outvars, equation.params["dimension"]
    numbers = np.arange(variable.aval.shape[axis], dtype=variable.aval.dtype)
    return program.constant(
        np.expand_dims(numbers, [i for i in range(variable.aval.ndim) if i != axis])
    )


@_operator("concatenate")
def _concatenate(program: Program, equation: JaxprEqn, *inputs: Value) -> Value:
    parts = [value for value in inputs if 0 not in value.shape]
    axis = int(equation.params["dimension"])
    return Value(program.add("Concat", *parts, axis=axis), shape_of(equation.outvars[0]))


@_operator("stack")
def _stack(program: Program, equation: JaxprEqn, *inputs: Value) -> Value:
    axis = int(equation.params["axis"])
    parts = [program.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in inputs]
    return Value(program.add("Concat", *parts, axis=axis), shape_of(equation.outvars[0]))


@_operator("pad")
def _pad(program: Program, equation: JaxprEqn, x: Value, filling: Value) -> Value:
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise NotImplementedError("padding between the elements of an array is not known")
    padded = program.add("Pad", x, program.integers([*low, *high]), filling)
    return Value(padded, shape_of(equation.outvars[0]))


def _sliced(
    program: Program, x: Value, shape: Shape, parts: Mapping[int, tuple[SupportsIndex, ...]]
) -> Value:
    """The part of x from (start, end, step) along each axis."""
    if not parts:
        return x
    starts, ends, steps = zip(*parts.values(), strict=True)
    numbers = [program.integers([*map(int, each)]) for each in (starts, ends, parts, steps)]
    return Value(program.add("Slice", x, *numbers), shape)


@_operator("slice")
def _slice(program: Program, equation: JaxprEqn, x: Value) -> Value:
    params, shape = equation.params, shape_of(equation.outvars[0])
    steps = params["strides"] or (1,) * len(shape)
    parts = dict(
        enumerate(zip(params["start_indices"], params["limit_indices"], steps, strict=True))
    )
    whole = [axis for axis, size in enumerate(x.shape) if shape[axis] == size]
    return _sliced(program, x, shape, {a: part for a, part in parts.items() if a not in whole})


@_operator("split")
def _split(program: Program, equation: JaxprEqn, x: Value) -> list[Value]:
    ends = np.cumsum(equation.params["sizes"])
    starts = ends - equation.params["sizes"]
    return [
        _sliced(program, x, shape_of(variable), {equation.params["axis"]: (start, end, 1)})
        for variable, start, end in zip(equation.outvars, starts, ends, strict=True)
    ]


@_operator("rev")
def _rev(program: Program, equation: JaxprEqn, x: Value) -> Value:
    least = np.iinfo(np.int64).min
    return _sliced(program, x, x.shape, {a: (-1, least, -1) for a in equation.params["dimensions"]})


@_operator("reduce_sum", "reduce_max", "reduce_min", "reduce_or")
def _reduce(program: Program, equation: JaxprEqn, x: Value) -> Value:
    name, (variable,) = equation.primitive.name, equation.outvars
    operator = {
        "reduce_sum": "ReduceSum",
        "reduce_max": "ReduceMax",
        "reduce_min": "ReduceMin",
        "reduce_or": "ReduceMax",
    }[name]
    return _reduced(program, operator, x, equation.params["axes"], variable)


def _reduced(
    program: Program, operator: str, x: Value, axes: Sequence[SupportsIndex], variable: Any
) -> Value:
    is_bool = variable.aval.dtype == np.bool_
    x = program.cast(x, np.int32) if is_bool else x
    axes = [int(axis) for axis in axes]
    result = program.add(operator, x, program.integers(axes), keepdims=0)
    value = Value(result, tuple(size for i, size in enumerate(x.shape) if i not in axes))
    return program.cast(value, bool) if is_bool else value


@_operator("argmax")
def _argmax(program: Program, equation: JaxprEqn, x: Value) -> Value:
    (axis,) = equation.params["axes"]
    if equation.invars[0].aval.dtype == np.bool_:
        x = program.cast(x, np.int32)
    index = program.add("ArgMax", x, axis=int(axis), keepdims=0)
    return program.cast(Value(index, shape_of(equation.outvars[0])), equation.params["index_dtype"])


@_operator("cumsum")
def _cumsum(program: Program, equation: JaxprEqn, x: Value) -> Value:
    axis = program.constant(np.array(equation.params["axis"], np.int64))
    return Value(program.add("CumSum", x, axis, reverse=int(equation.params["reverse"])), x.shape)


@_operator("sort")
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


@_operator("gather")
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


@_operator("dot_general")
def _dot_general(program: Program, equation: JaxprEqn, x: Value, y: Value) -> Value:
    (over_x, over_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    (variable,), batch = equation.outvars, len(batch_x)
    if variable.aval.dtype != equation.invars[0].aval.dtype:
        x, y = (program.cast(value, variable.aval.dtype) for value in (x, y))
    free_x, free_y = (
        [axis for axis in range(len(value.shape)) if axis not in (*over, *each)]
        for value, over, each in ((x, over_x, batch_x), (y, over_y, batch_y))
    )
    x = program.transpose(x, [*batch_x, *free_x, *over_x])
    y = program.transpose(y, [*batch_y, *over_y, *free_y])
    split = batch + len(free_x)
    rows, inner = x.shape[batch:split], _product(x.shape[split:])
    if batch or not rows:  # a matrix of each image; otherwise all rows meet the same matrix
        rows = (_product(rows),)
    columns = _product(y.shape[batch + len(over_y) :])
    x = program.reshape(x, (*x.shape[:batch], *rows, inner))
    y = program.reshape(y, (*y.shape[:batch], inner, columns))
    result = Value(program.add("MatMul", x, y), (*x.shape[:-1], columns))
    return program.reshape(result, shape_of(variable))


@_operator("conv_general_dilated")
def _conv(program: Program, equation: JaxprEqn, x: Value, kernel: Value) -> Value:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if params["batch_group_count"] > 1 or any(step > 1 for step in params["lhs_dilation"]):
        raise NotImplementedError(
            "convolutions with lhs_dilation or groups of images are not known"
        )
    result = program.add(
        "Conv",
        program.transpose(x, numbers.lhs_spec),
        program.transpose(kernel, numbers.rhs_spec),
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    shape = shape_of(equation.outvars[0])
    value = Value(result, tuple(shape[axis] for axis in numbers.out_spec))
    return program.transpose(value, np.argsort(numbers.out_spec))


@_operator("reduce_window_max")
def _max_pool(program: Program, equation: JaxprEqn, x: Value) -> Value:
    params, shape = equation.params, shape_of(equation.outvars[0])
    sides, windows = range(len(shape)), params["window_dimensions"]
    if any(step > 1 for step in (*params["base_dilation"], *params["window_dilation"])):
        raise NotImplementedError("windows with dilation are not known")
    inside = [axis for axis in sides if shape[axis] != x.shape[axis] or windows[axis] > 1]
    order = [axis for axis in sides if axis not in inside] + inside
    x = program.transpose(x, order)
    outside = len(order) - len(inside)
    planes = program.reshape(x, (x.shape[0], _product(x.shape[1:outside]), *x.shape[outside:]))
    result = program.add(
        "MaxPool",
        planes,
        kernel_shape=[windows[axis] for axis in inside],
        strides=[params["window_strides"][axis] for axis in inside],
        pads=_pads([params["padding"][axis] for axis in inside]),
    )
    small = tuple(shape[axis] for axis in order)
    pooled = Value(result, (*planes.shape[:2], *small[outside:]))
    return program.transpose(program.reshape(pooled, small), np.argsort(order))


@_operator("while")
def _while(program: Program, equation: JaxprEqn, *inputs: Value) -> list[Value]:
    from onnx import TensorProto, helper

    params = equation.params
    first = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_condition, of_body, state = (
        inputs[: first[0]],
        inputs[first[0] : first[1]],
        inputs[first[1] :],
    )

    def goes_on(state: Sequence[Value]) -> tuple[Value, Value]:
        """For each image, and for any."""
        condition = params["cond_jaxpr"]
        (each,) = program.run(condition.jaxpr, condition.consts, [*of_condition, *state])
        (variable,) = condition.jaxpr.outvars
        return each, _reduced(program, "ReduceMax", each, range(len(each.shape)), variable)

    _, start = goes_on(state)
    outside, program.nodes = program.nodes, []
    before = [Value(program.name(), value.shape) for value in state]
    each, _ = goes_on(before)
    after = program.run(
        params["body_jaxpr"].jaxpr, params["body_jaxpr"].consts, [*of_body, *before]
    )
    results = []
    for old, new, variable in zip(before, after, equation.outvars, strict=True):
        # An image whose loop has ended keeps its state.
        shape = each.shape + (1,) * (len(old.shape) - len(each.shape))
        which = program.reshape(each, shape)
        results.append(_where(program, which, new, old, variable.aval.dtype))
    _, again = goes_on(results)
    count, was = program.name(), program.name()
    kinds = [helper.np_dtype_to_tensor_dtype(v.aval.dtype) for v in equation.outvars]
    described = [
        helper.make_tensor_value_info(count, TensorProto.INT64, ()),
        helper.make_tensor_value_info(was, TensorProto.BOOL, ()),
        *(
            helper.make_tensor_value_info(v.name, k, None)
            for v, k in zip(before, kinds, strict=True)
        ),
    ]
    returned = [
        helper.make_tensor_value_info(again.name, TensorProto.BOOL, ()),
        *(
            helper.make_tensor_value_info(v.name, k, None)
            for v, k in zip(results, kinds, strict=True)
        ),
    ]
    body = helper.make_graph(program.nodes, program.name(), described, returned)
    program.nodes = outside
    ended = [Value(program.name(), value.shape) for value in state]
    program.add_all("Loop", "", start, *state, outputs=[value.name for value in ended], body=body)
    return ended


def _pads(padding: Sequence[tuple[SupportsIndex, SupportsIndex]]) -> list[int]:
    return [int(low) for low, _ in padding] + [int(high) for _, high in padding]


def _like(equation: JaxprEqn, number: float) -> np.ndarray:
    return np.asarray(number, equation.invars[0].aval.dtype)
