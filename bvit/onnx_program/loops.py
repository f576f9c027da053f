"""Loops: each image takes its own number of steps."""

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from bvit.onnx_program.program import Operators, Program, Value

OPERATORS = Operators()


@OPERATORS.add("while")
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
        return each, program.reduce("ReduceMax", each, range(len(each.shape)), variable)

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
        results.append(program.where(which, new, old, variable.aval.dtype))
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
