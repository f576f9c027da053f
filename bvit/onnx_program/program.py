"""ONNX programs as they are built: operators, constants, and the values between them.

ONNX's operators broadcast as NumPy does. A broadcast is therefore written as a reshape to axes of
length 1. It is carried out only for an operator that needs all of its input.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jax import export as jax_export
from jax.extend.core import Jaxpr, JaxprEqn, Literal

BATCH = "n"

Shape = tuple[int | str, ...]  # text: a length that is not known, at most one


class Value(NamedTuple):
    """An array in the program; axes along which it is yet to be broadcast have length 1."""

    name: str
    shape: Shape


class Operator(NamedTuple):
    """How a primitive of JAX is written.

    Attributes:
      function: (program, equation, inputs) → output or outputs.
      broadcasts: whether it takes inputs that are yet to be broadcast.
    """

    function: Callable[..., Value | list[Value]]
    broadcasts: bool


class Operators(dict[str, Operator]):
    """How primitives of JAX are written, by their names."""

    def add(self, *names: str, broadcasts: bool = False) -> Callable:
        """Decorates what writes some primitives, see `Operator`."""

        def register(function: Callable) -> Callable:
            self.update(dict.fromkeys(names, Operator(function, broadcasts)))
            return function

        return register


# Primitives that call a function, and the parameters that may hold it.
CALLS = {
    name: ("jaxpr", "call_jaxpr", "fun_jaxpr")
    for name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
}


class Program:
    """The operators so far, and the arrays that they read."""

    def __init__(self, operators: Mapping[str, Operator]) -> None:
        """Starts an empty program.

        Args:
          operators: how each primitive is written, by its name.
        """
        self._operators = operators
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.read: set[str] = set()
        self.batch = ""  # the array that holds the number of images
        self._known: dict[Any, Value] = {}
        self._names = 0

    def name(self) -> str:
        """A new name."""
        self._names += 1
        return f"x{self._names}"

    def add(
        self, operator: str, *inputs: "Value | str", output: str = "", **attributes: Any
    ) -> str:
        """Adds an operator with one output; returns its name."""
        output = output or self.name()
        self.add_all(operator, *inputs, outputs=[output], **attributes)
        return output

    def add_all(
        self, operator: str, *inputs: "Value | str", outputs: Sequence[str], **attributes: Any
    ) -> None:
        """Adds an operator."""
        from onnx import helper

        names = [one if isinstance(one, str) else one.name for one in inputs]
        self.read.update(names)
        self.nodes.append(helper.make_node(operator, names, outputs, **attributes))

    def constant(self, array: Any, name: str = "") -> Value:
        """An array that is part of the program; equal ones without a name are kept once."""
        from onnx import numpy_helper

        array = np.asarray(array)
        key = name or (array.shape, array.dtype, array.tobytes())
        if key not in self._known:
            value = self._known[key] = Value(name or self.name(), array.shape)
            self.initializers[value.name] = numpy_helper.from_array(array, value.name)
        return self._known[key]

    def integers(self, numbers: Sequence[SupportsIndex]) -> Value:
        """A constant vector, int64."""
        return self.constant(np.array(numbers, np.int64))

    def cast(self, value: Value, dtype: Any) -> Value:
        """Converts a value to a dtype of NumPy."""
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return Value(self.add("Cast", value, to=kind), value.shape)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Gives a value another shape."""
        if value.shape == shape:
            return value
        sizes = [-1 if isinstance(size, str) else size for size in shape]
        return Value(self.add("Reshape", value, self.integers(sizes)), shape)

    def transpose(self, value: Value, axes: Iterable[SupportsIndex]) -> Value:
        """Puts the axes of a value in another order."""
        axes = [int(axis) for axis in axes]
        if axes == sorted(axes):
            return value
        shape = tuple(value.shape[axis] for axis in axes)
        return Value(self.add("Transpose", value, perm=axes), shape)

    def full(self, value: Value, shape: Shape) -> Value:
        """Carries out the broadcast of a value."""
        if value.shape == shape:
            return value
        sizes = [1 if have == want else want for have, want in zip(value.shape, shape, strict=True)]
        pieces = [self.batch if size == BATCH else self.integers([size]) for size in sizes]
        target = self.add("Concat", *pieces, axis=0)
        return Value(self.add("Expand", value, target), shape)

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Adds the operators of a jaxpr; returns its outputs, broadcast."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= zip(jaxpr.constvars, map(self.constant, consts), strict=True)

        def read(variable: Any) -> Value:
            if isinstance(variable, Literal):
                return self.constant(np.asarray(variable.val, variable.aval.dtype))
            return values[variable]

        for equation in jaxpr.eqns:
            if equation.primitive.name == "platform_index":
                continue
            if platforms := equation.params.get("branches_platforms"):
                chosen = equation.params["branches"][platforms.index(None)]
                results = self.run(chosen.jaxpr, chosen.consts, [*map(read, equation.invars[1:])])
            else:
                results = self._apply(equation, [*map(read, equation.invars)])
            values |= zip(equation.outvars, results, strict=True)
        return [self.full(read(variable), shape_of(variable)) for variable in jaxpr.outvars]

    def _apply(self, equation: JaxprEqn, inputs: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in CALLS:
            called = next(params[key] for key in CALLS[name] if key in params)
            return self.run(called.jaxpr, called.consts, inputs)
        if all(0 in variable.aval.shape for variable in equation.outvars):
            return [self._empty(variable) for variable in equation.outvars]
        if name not in self._operators:
            raise NotImplementedError(f"the JAX primitive {name!r} is not among those known")
        operator = self._operators[name]
        if not operator.broadcasts:
            inputs = [
                self.full(value, shape_of(variable))
                for value, variable in zip(inputs, equation.invars, strict=True)
            ]
        results = operator.function(self, equation, *inputs)
        return results if isinstance(results, list) else [results]

    def _empty(self, variable: Any) -> Value:
        shape = tuple(1 if isinstance(size, str) else size for size in shape_of(variable))
        return self.constant(np.zeros(shape, variable.aval.dtype))

    def elementwise(self, operator: str, *inputs: Value, **attributes: Any) -> Value:
        """Adds an operator that broadcasts its inputs."""
        rank = max(len(value.shape) for value in inputs)
        padded = [(1,) * (rank - len(value.shape)) + value.shape for value in inputs]
        shape = tuple(
            next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True)
        )
        return Value(self.add(operator, *inputs, **attributes), shape)

    def where(self, which: Value, yes: Value, no: Value, dtype: Any) -> Value:
        """Chooses between two values of that dtype, element by element."""
        if dtype != np.bool_:
            return self.elementwise("Where", which, yes, no)
        # onnxruntime has no Where of booleans.
        yes = self.elementwise("And", which, yes)
        no = self.elementwise("And", self.elementwise("Not", which), no)
        return self.elementwise("Or", yes, no)

    def reduce(
        self, operator: str, value: Value, axes: Sequence[SupportsIndex], variable: Any
    ) -> Value:
        """Reduces a value over some axes, to the type of a variable of the jaxpr."""
        is_bool = variable.aval.dtype == np.bool_
        value = self.cast(value, np.int32) if is_bool else value
        axes = [int(axis) for axis in axes]
        result = self.add(operator, value, self.integers(axes), keepdims=0)
        rest = tuple(size for i, size in enumerate(value.shape) if i not in axes)
        return self.cast(Value(result, rest), bool) if is_bool else Value(result, rest)


def shape_of(variable: Any) -> Shape:
    """The shape of a variable of a jaxpr."""
    return tuple(
        str(size) if jax_export.is_symbolic_dim(size) else int(size) for size in variable.aval.shape
    )
