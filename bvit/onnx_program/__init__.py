"""JAX functions as ONNX programs, for onnxruntime and whatever else reads ONNX.

The function is traced, and each primitive of its jaxpr becomes an operator of ONNX, or a few
(`elementwise`, `arrays`, `products`, `loops`). Of `lax.platform_dependent` the default is taken.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array

from bvit.onnx_program import arrays, elementwise, loops, products
from bvit.onnx_program.program import BATCH, Operator, Program, Value

__all__ = ["INPUT", "OUTPUT", "convert"]

# Supported by onnxruntime since 1.14 (2023).
OPSET, IR_VERSION = 18, 8
INPUT, OUTPUT = "pixels", "logits"
# Those that models and policies are made of.
OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **arrays.OPERATORS,
    **products.OPERATORS,
    **loops.OPERATORS,
}


def convert(
    function: Callable[[dict[str, Array], Array], Array],
    parameters: Mapping[str, np.ndarray],
    shape: Sequence[int],
) -> bytes:
    """Writes a function as an ONNX program.

    Args:
      function: (parameters, pixels) → logits, for any number of images.
      parameters: what it computes with, by the names that they get in the program.
      shape: of one image.

    Returns:
      The file, with an input "pixels", float32 [n, *shape], and an output "logits".

    Raises:
      NotImplementedError: the function has a primitive that is not known here.
      ImportError: the package onnx is not installed.
    """
    from onnx import TensorProto, helper

    sizes = jax_export.symbolic_shape(", ".join(map(str, (BATCH, *shape))))
    traced = jax.make_jaxpr(function)(dict(parameters), jax.ShapeDtypeStruct(sizes, jnp.float32))
    program = Program(OPERATORS)
    # A dictionary's entries are traced in the order of their names.
    inputs = [program.constant(array, name) for name, array in sorted(parameters.items())]
    inputs.append(Value(INPUT, (BATCH, *shape)))
    program.batch = program.add("Shape", Value(INPUT, ()), start=0, end=1)
    (result,) = program.run(traced.jaxpr, traced.consts, inputs)
    program.add("Identity", result, output=OUTPUT)
    graph = helper.make_graph(
        program.nodes,
        "bvit",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, (BATCH, *shape))],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, result.shape)],
        [array for name, array in program.initializers.items() if name in program.read],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    return model.SerializeToString()
