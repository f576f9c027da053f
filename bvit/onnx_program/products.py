"""Matrix products, convolutions and pooling."""

import math
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from jax.extend.core import JaxprEqn

from bvit.onnx_program.program import Operators, Program, Shape, Value, shape_of

OPERATORS = Operators()


@OPERATORS.add("dot_general")
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


@OPERATORS.add("conv_general_dilated")
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


@OPERATORS.add("reduce_window_max")
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


def _product(shape: Shape) -> int | str:
    unknown = [size for size in shape if isinstance(size, str)]
    known = math.prod(size for size in shape if not isinstance(size, str))
    return f"{unknown[0]}*{known}" if unknown else known


def _pads(padding: Sequence[tuple[SupportsIndex, SupportsIndex]]) -> list[int]:
    return [int(low) for low, _ in padding] + [int(high) for _, high in padding]
