"""Writes weights in few bits into a model: integers, scales and zero points behind DequantizeLinear with blocks.

Integers of 2 to 4 bits are stored as uint4, those of 5 to 8 as uint8; as int4 and int8 where the range is symmetric.
How many bits they need is in the metadata of the node, for a target that packs them closer. Scales are float16, and
become float32 before they are used.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.weight_only.fit import BlockScales
from compiler.compress.weight_only.layers import WeightLayer
from compiler.model.graph import add_constant
from compiler.passes.values import Names, record_origin
from compiler.target.scheme import BITS_KEY

OPSET = 21
"""The first with blocks and integers of 4 bits."""

_NARROW = 4


def apply_weights(
    model: ir.Model, layers: Mapping[str, WeightLayer], stored: Mapping[str, tuple[NDArray[np.uint8], BlockScales]]
) -> ir.Model:
    """A copy of the model with its weights in few bits.

    Args:
        model: In float32, of opset 21 or newer; left as it is.
        layers: Name of an initializer → what it is.
        stored: The same names → integers (outputs, inputs), and their lattice.
    """
    copy = model.clone()
    names = Names(copy)
    for name, (integers, scales) in stored.items():
        value = copy.graph.initializers[name]
        replacement = _dequantized(copy, layers[name], integers, scales, names)
        for node, index in list(value.uses()):
            if node is not replacement.producer():
                node.replace_input_with(index, replacement)
        del copy.graph.initializers[name]
    return copy


def _dequantized(
    model: ir.Model, layer: WeightLayer, integers: NDArray[np.uint8], scales: BlockScales, names: Names
) -> ir.Value:
    def turned(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(array.T) if layer.is_turned else array

    def constant(suffix: str, array: NDArray[np.generic]) -> ir.Value:
        return add_constant(model.graph, names.fresh(f"{layer.name}_{suffix}"), array)

    def node(op: str, inputs: list[ir.Value], suffix: str, **attributes: int) -> ir.Node:
        made = ir.node(op, inputs, attributes, name=names.fresh(f"{op}:{layer.name}"), num_outputs=1)
        made.outputs[0].name = names.fresh(f"{layer.name}_{suffix}")
        made.outputs[0].dtype = ir.DataType.FLOAT
        record_origin(made, [readers[0]])
        return made

    readers = [reader for reader, _ in model.graph.initializers[layer.name].uses()]
    is_narrow = scales.format.bits <= _NARROW
    kind = ml_dtypes.uint4 if is_narrow else np.uint8
    half = constant("scale", turned(scales.scale.astype(np.float16)))
    if scales.format.symmetric:  # signed integers need no zero point
        middle = 2 ** (scales.format.bits - 1)
        signed = (integers.astype(np.int16) - middle).astype(ml_dtypes.int4 if is_narrow else np.int8)
        stored, zero = constant("quantized", turned(signed)), []
    else:
        stored = constant("quantized", turned(integers.astype(kind)))
        zero = [constant("zero_point", turned(scales.zero.astype(np.uint8).astype(kind)))]
    wide = node("Cast", [half], "scale_float", to=int(ir.DataType.FLOAT))
    wide.outputs[0].shape = half.shape
    axis = 0 if layer.is_turned else 1
    block = scales.format.block or layer.inputs
    made = node("DequantizeLinear", [stored, wide.outputs[0], *zero], "dequantized", axis=axis, block_size=block)
    made.outputs[0].shape = stored.shape
    made.metadata_props[BITS_KEY] = str(scales.format.bits)
    model.graph.insert_before(model.graph[0], [wide, made])
    return made.outputs[0]
