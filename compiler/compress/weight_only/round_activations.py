"""Activations rounded to 8 bits while the model runs, stated in standard operators.

A product of weights in blocks that is summed in integers rounds what it reads, block by block as its weights are:

    s = max |x| / 127 over a block of inputs        x ≈ s · round(x / s), from −127 to 127

    Reshape → Abs → ReduceMax → Mul → Max = s;  QuantizeLinear(x, s) → DequantizeLinear = what is multiplied
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.errors import UnsupportedModel
from compiler.model.graph import add_constant
from compiler.passes.values import Names, record_origin
from compiler.target.scheme import BITS_KEY

TOP = 127
"""Largest integer: the range is as wide below zero as above."""

_LEAST = 2.0**-100
"""The least scale: a block of zeros is divided by it."""


def round_activations(model: ir.Model) -> None:
    """Puts a rounding before every product of weights in blocks; those that read the same in the same blocks share it.

    Args:
        model: Of opset 21 or newer, ranks inferred; changed in place.

    Raises:
        UnsupportedModel: The rank of what a product reads is not known.
    """
    names, rounded = Names(model), dict[tuple[ir.Value, int], ir.Value]()
    for product, block in list(_products(model)):
        value = product.inputs[0]
        if value is None:
            continue
        if (value, block) not in rounded:
            rounded[value, block] = _rounded(model, product, value, block, names)
        product.replace_input_with(0, rounded[value, block])


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, int]]:
    """Every MatMul by weights in blocks, or by their transpose, in the order of the graph; and the block."""
    for node in model.graph:
        weights = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if weights is not None and weights.op_type == "Transpose" and weights.inputs[0] is not None:
            weights = weights.inputs[0].producer()
        if weights is not None and BITS_KEY in weights.metadata_props:
            yield node, weights.attributes.get_int("block_size", 0)


def _rounded(model: ir.Model, product: ir.Node, value: ir.Value, block: int, names: Names) -> ir.Value:
    """What is multiplied in place of a value; its nodes stand before the first product that reads it."""
    if value.shape is None or not isinstance(width := value.shape[-1], int):
        raise UnsupportedModel(f"the width of '{value.name}' is not known: it cannot be rounded in blocks of {block}")
    axis = len(value.shape) - 1
    nodes: list[ir.Node] = []

    def constant(suffix: str, array: NDArray[np.generic]) -> ir.Value:
        return add_constant(model.graph, names.fresh(f"{value.name}_{suffix}"), array)

    def node(op: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: int) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=names.fresh(f"{op}:{value.name}"), num_outputs=1)
        made.outputs[0].name, made.outputs[0].dtype = names.fresh(f"{value.name}_{op.lower()}"), dtype
        record_origin(made, [product])
        nodes.append(made)
        return made.outputs[0]

    whole = value
    if missing := -width % block:  # zeros change no maximum
        whole = node("Pad", value, constant("pads", np.array([0] * (2 * axis + 1) + [missing], np.int64)))
    shape = constant("blocks", np.array([0] * axis + [(width + missing) // block, block], np.int64))
    magnitude = node("Abs", node("Reshape", whole, shape))
    largest = node("ReduceMax", magnitude, constant("axis", np.array([axis + 1], np.int64)), keepdims=0)
    step = node("Mul", largest, constant("step", np.array(1 / TOP, np.float32)))
    scale = node("Max", step, constant("least", np.array(_LEAST, np.float32)))
    integer = ir.DataType.INT8
    integers = node(
        "QuantizeLinear", value, scale, dtype=integer, axis=axis, block_size=block, output_dtype=int(integer)
    )
    result = node("DequantizeLinear", integers, scale, axis=axis, block_size=block)
    integers.shape = result.shape = value.shape
    model.graph.insert_before(product, nodes)
    return result
