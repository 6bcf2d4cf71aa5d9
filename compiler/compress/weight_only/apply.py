"""Writes weights in few bits into a model: integers, scales and zero points behind DequantizeLinear with blocks.

Integers of 2 to 4 bits are stored as uint4, those of 5 to 8 as uint8; as int4 and int8 where the range is symmetric.
How many bits they need is in the metadata of the node, for a target that packs them closer. Scales are float16, and
become float32 before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.weight_only.fit import BlockScales
from compiler.compress.weight_only.layers import WeightLayer
from compiler.model.graph import add_lazy_constant
from compiler.passes.values import Names, record_origin
from compiler.target.scheme import BITS_KEY, BlockFormat

OPSET = 21
"""The first with blocks and integers of 4 bits."""

_NARROW = 4

Stored = tuple[NDArray[np.uint8], BlockScales]
"""Integers (outputs, inputs), and their lattice."""


def apply_weights(
    model: ir.Model,
    layers: Mapping[str, WeightLayer],
    formats: Mapping[str, BlockFormat],
    read: Callable[[str], Stored],
) -> ir.Model:
    """A copy of the model with its weights in few bits, which are read when their bytes are asked for, one at a time.

    Args:
        model: In float32, of opset 21 or newer; left as it is.
        layers: Name of an initializer → what it is.
        formats: The same names → their formats.
        read: Name → the weight as it is stored; called as long as the copy is used.
    """
    copy = model.clone()
    names = Names(copy)
    for name, format_ in formats.items():
        value = copy.graph.initializers[name]
        replacement = _dequantized(copy, layers[name], format_, read, names)
        for node, index in list(value.uses()):
            if node is not replacement.producer():
                node.replace_input_with(index, replacement)
        del copy.graph.initializers[name]
    return copy


def _dequantized(
    model: ir.Model, layer: WeightLayer, format_: BlockFormat, read: Callable[[str], Stored], names: Names
) -> ir.Value:
    def constant(
        suffix: str, kind: ir.DataType, columns: int, made: Callable[[Stored], NDArray[np.generic]]
    ) -> ir.Value:
        def array() -> NDArray[np.generic]:
            rows = made(read(layer.name)).astype(kind.numpy())
            return np.ascontiguousarray(rows.T) if layer.is_turned else rows

        shape = (columns, layer.outputs) if layer.is_turned else (layer.outputs, columns)
        return add_lazy_constant(model.graph, names.fresh(f"{layer.name}_{suffix}"), kind, shape, array)

    def node(op: str, inputs: list[ir.Value], suffix: str, **attributes: int) -> ir.Node:
        made = ir.node(op, inputs, attributes, name=names.fresh(f"{op}:{layer.name}"), num_outputs=1)
        made.outputs[0].name = names.fresh(f"{layer.name}_{suffix}")
        made.outputs[0].dtype = ir.DataType.FLOAT
        record_origin(made, [readers[0]])
        return made

    readers = [reader for reader, _ in model.graph.initializers[layer.name].uses()]
    block = format_.block or layer.inputs
    blocks = -(-layer.inputs // block)
    kind = _kind(format_)
    half = constant("scale", ir.DataType.FLOAT16, blocks, lambda stored: stored[1].scale)
    integers = constant("quantized", kind, layer.inputs, lambda stored: _signed(stored[0], format_))
    zero = []
    if not format_.symmetric:  # signed integers need no zero point
        zero = [constant("zero_point", kind, blocks, lambda stored: stored[1].zero.astype(np.uint8))]
    wide = node("Cast", [half], "scale_float", to=int(ir.DataType.FLOAT))
    wide.outputs[0].shape = half.shape
    axis = 0 if layer.is_turned else 1
    made = node("DequantizeLinear", [integers, wide.outputs[0], *zero], "dequantized", axis=axis, block_size=block)
    made.outputs[0].shape = integers.shape
    made.metadata_props[BITS_KEY] = str(format_.bits)
    model.graph.insert_before(model.graph[0], [wide, made])
    return made.outputs[0]


def _kind(format_: BlockFormat) -> ir.DataType:
    is_narrow = format_.bits <= _NARROW
    if format_.symmetric:
        return ir.DataType.INT4 if is_narrow else ir.DataType.INT8
    return ir.DataType.UINT4 if is_narrow else ir.DataType.UINT8


def _signed(integers: NDArray[np.uint8], format_: BlockFormat) -> NDArray[np.generic]:
    return integers.astype(np.int16) - 2 ** (format_.bits - 1) if format_.symmetric else integers
