"""Primitives that work element by element."""

import numpy as np
from jax.extend.core import JaxprEqn

from bvit.onnx_program.program import Operators, Program, Value

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

OPERATORS = Operators()


@OPERATORS.add(*ELEMENTWISE, broadcasts=True)
def _elementwise(program: Program, equation: JaxprEqn, *inputs: Value) -> Value:
    return program.elementwise(ELEMENTWISE[equation.primitive.name], *inputs)


@OPERATORS.add("convert_element_type", broadcasts=True)
def _convert_element_type(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.cast(x, equation.params["new_dtype"])


@OPERATORS.add("square", broadcasts=True)
def _square(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.elementwise("Mul", x, x)


@OPERATORS.add("integer_pow", broadcasts=True)
def _integer_pow(program: Program, equation: JaxprEqn, x: Value) -> Value:
    power = program.constant(_like(equation, equation.params["y"]))
    return program.elementwise("Pow", x, power)


@OPERATORS.add("rsqrt", broadcasts=True)
def _rsqrt(program: Program, equation: JaxprEqn, x: Value) -> Value:
    return program.elementwise("Reciprocal", program.elementwise("Sqrt", x))


@OPERATORS.add("erfc", broadcasts=True)
def _erfc(program: Program, equation: JaxprEqn, x: Value) -> Value:
    one = program.constant(_like(equation, 1))
    return program.elementwise("Sub", one, program.elementwise("Erf", x))


@OPERATORS.add("expm1", broadcasts=True)
def _expm1(program: Program, equation: JaxprEqn, x: Value) -> Value:
    one = program.constant(_like(equation, 1))
    return program.elementwise("Sub", program.elementwise("Exp", x), one)


@OPERATORS.add("ne", broadcasts=True)
def _ne(program: Program, equation: JaxprEqn, x: Value, y: Value) -> Value:
    return program.elementwise("Not", program.elementwise("Equal", x, y))


@OPERATORS.add("rem", broadcasts=True)
def _rem(program: Program, equation: JaxprEqn, x: Value, y: Value) -> Value:
    return program.elementwise("Mod", x, y, fmod=1)


@OPERATORS.add("clamp", broadcasts=True)
def _clamp(program: Program, equation: JaxprEqn, low: Value, x: Value, high: Value) -> Value:
    return program.elementwise("Min", program.elementwise("Max", x, low), high)


@OPERATORS.add("is_finite", broadcasts=True)
def _is_finite(program: Program, equation: JaxprEqn, x: Value) -> Value:
    bad = (program.elementwise(operator, x) for operator in ("IsInf", "IsNaN"))
    return program.elementwise("Not", program.elementwise("Or", *bad))


@OPERATORS.add("select_n", broadcasts=True)
def _select(program: Program, equation: JaxprEqn, which: Value, no: Value, yes: Value) -> Value:
    if equation.invars[0].aval.dtype != np.bool_:  # of a branch under vmap
        which = program.cast(which, bool)
    return program.where(which, yes, no, equation.outvars[0].aval.dtype)


def _like(equation: JaxprEqn, number: float) -> np.ndarray:
    return np.asarray(number, equation.invars[0].aval.dtype)
