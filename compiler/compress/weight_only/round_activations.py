"""Activations and caches rounded to 8 bits while the model runs, stated in standard operators.

A product of weights in blocks that is summed in integers rounds what it reads, block by block as its weights are:

    s = max |x| / 127 over a block of inputs        x ≈ s · round(x / s), from −127 to 127

    Reshape → Abs → ReduceMax → Mul → Max = s;  QuantizeLinear(x, s) → DequantizeLinear = what is multiplied

A cache in 8 bits is rounded likewise, each head of each token by itself, where old rows and new ones are joined: what
attention reads, and what is given back, is what such a cache holds. Rounding a second time changes nothing but a last
place of s.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.errors import UnsupportedModel
from compiler.model.decoder import Decoder
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


def round_cache(model: ir.Model, decoder: Decoder) -> None:
    """Puts a rounding behind every join of a cache with new rows.

    Args:
        model: Of opset 21 or newer, ranks inferred; changed in place.
        decoder: Its inputs and outputs.

    Raises:
        UnsupportedModel: An input of the cache is not joined with new rows by one Concat.
    """
    names, order = Names(model), {node: number for number, node in enumerate(model.graph)}
    inputs = {str(value.name): value for value in model.graph.inputs}
    for pair in decoder.pairs:
        joins = [node for node, _ in inputs[pair.past].uses()]
        if len(joins) != 1 or joins[0].op_type != "Concat":
            raise UnsupportedModel(
                f"'{pair.past}' is not joined with new rows by one Concat, so that its cache cannot be in int8",
                remedy="Leave `generation: {cache: …}` out.",
            )
        _round_joined(model, joins[0].outputs[0], names, order)


def _round_joined(model: ir.Model, joined: ir.Value, names: Names, order: dict[ir.Node, int]) -> None:
    """Puts a rounding between a grown cache and all that reads it, the outputs of the model too."""
    uses = list(joined.uses())
    first, size = min((node for node, _ in uses), key=lambda node: order[node]), joined.shape and joined.shape[-1]
    if not isinstance(size, int):
        raise UnsupportedModel(f"the size of the heads of '{joined.name}' is not known")
    rounded = _rounded(model, first, joined, size, names)
    for node, index in uses:
        node.replace_input_with(index, rounded)
    for place, output in enumerate(model.graph.outputs):
        if output is joined:
            joined.name, rounded.name = names.fresh(f"{joined.name}_joined"), joined.name
            model.graph.outputs[place] = rounded


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, int]]:
    """Every MatMul by weights in blocks, or by their transpose, in the order of the graph; and the block."""
    for node in model.graph:
        weights = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if weights is not None and weights.op_type == "Transpose" and weights.inputs[0] is not None:
            weights = weights.inputs[0].producer()
        if weights is not None and BITS_KEY in weights.metadata_props:
            yield node, weights.attributes.get_int("block_size", 0)


def _rounded(model: ir.Model, reader: ir.Node, value: ir.Value, block: int, names: Names) -> ir.Value:
    """What is read in place of a value; its nodes stand before the first node that reads it."""
    if value.shape is None or not isinstance(width := value.shape[-1], int):
        raise UnsupportedModel(f"the width of '{value.name}' is not known: it cannot be rounded in blocks of {block}")
    axis = len(value.shape) - 1
    nodes: list[ir.Node] = []

    def constant(suffix: str, array: NDArray[np.generic]) -> ir.Value:
        return add_constant(model.graph, names.fresh(f"{value.name}_{suffix}"), array)

    def node(op: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: int) -> ir.Value:
        made = ir.node(op, inputs, attributes, name=names.fresh(f"{op}:{value.name}"), num_outputs=1)
        made.outputs[0].name, made.outputs[0].dtype = names.fresh(f"{value.name}_{op.lower()}"), dtype
        record_origin(made, [reader])
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
    model.graph.insert_before(reader, nodes)
    return result
