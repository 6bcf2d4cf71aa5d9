"""Weights in blocks as ONNX Runtime's own operators read them: packed bits, multiplied without being expanded.

    DequantizeLinear → MatMul               MatMulNBits
    DequantizeLinear → Gather               GatherBlockQuantized
    DequantizeLinear → Transpose → MatMul   MatMulNBits, on the table that Gather reads
    QuantizeLinear → DequantizeLinear       the accuracy level of the MatMulNBits that reads it, which rounds by itself

The operators have 2, 4 and 8 bits. 6 bits are two of them and a sum, of the upper four bits at four times the scale and
of the lower two: q − z = 4·(q₄ − z₄) + (q₂ − z₂), in the same bytes.

As standard operators a table would be expanded at every token. Scales stay float16 in the file; a Cast makes them the
float32 that the operators want, once, when the model is opened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.target import BITS_KEY, add_constant, constant_of, remove_unread, rounded_value, stand_in
from targets.onnxruntime_cpu.rules import DOMAIN

_FLOAT32, _INT8 = 1, 4
"""Attribute accuracy_level of MatMulNBits: what the input is multiplied in; int8 rounds it block by block."""

_PARTS = {4: (4,), 6: (4, 2), 8: (8,)}
"""Bits of a weight → bits of the products it becomes, the upper ones first."""

_MIDDLE = {4: 8, 8: 128}
"""Bits → the zero point that the operators assume where none is given."""

Bytes = NDArray[np.uint8]


@dataclass
class _Matrix:
    """One weight in blocks, as the operators want it.

    Args:
        bits: Of one weight.
        block: Inputs that share a scale.
        outputs: Rows.
        inputs: Columns.
        packed: (outputs, blocks, bytes of a block).
        scale: (outputs, blocks).
        zero: Packed zero points (outputs, bytes); None where all are the middle.
        zeros: The same unpacked (outputs, blocks).
    """

    bits: int
    block: int
    outputs: int
    inputs: int
    packed: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    zeros: Bytes | None


def pack_weights(model: ir.Model) -> ir.Model:
    """The model with its weights in blocks packed; itself where it has none.

    Args:
        model: The border model.
    """
    if not any(_is_blocks(node) for node in model.graph):
        return model
    copy = model.clone()
    copy.graph.opset_imports.setdefault(DOMAIN, 1)
    for node in [node for node in copy.graph if _is_blocks(node)]:
        _pack(copy, node)
    remove_unread(copy)
    return copy


def _is_blocks(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and node.metadata_props.get(BITS_KEY, "") in map(str, _PARTS)


def _pack(model: ir.Model, node: ir.Node) -> None:
    """Replaces what reads one dequantized weight."""
    parts = _parts(model, node)
    for reader, _ in list(node.outputs[0].uses()):
        if reader.op_type == "Gather":
            _replace(model, reader, *_look_ups(model, reader, parts))
        elif reader.op_type == "MatMul":
            _replace(model, reader, *_products(reader, parts))
        elif reader.op_type == "Transpose":
            for product, _ in list(reader.outputs[0].uses()):
                _replace(model, product, *_products(product, parts))


def _parts(model: ir.Model, node: ir.Node) -> list[_Matrix]:
    """The matrices whose products add up to that of a weight."""
    integers, zero = constant_of(node.inputs[0]), constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    cast = node.inputs[1].producer() if node.inputs[1] is not None else None
    scale = constant_of(cast.inputs[0] if cast is not None else node.inputs[1])
    assert integers is not None and scale is not None  # noqa: S101  the quantizer makes them constants
    bits, block = int(node.metadata_props[BITS_KEY]), node.attributes.get_int("block_size", 0)
    is_turned = node.attributes.get_int("axis", 1) == 0
    rows, scales = (np.ascontiguousarray(array.T if is_turned else array) for array in (integers, scale))
    zeros = None if zero is None else np.ascontiguousarray(zero.T if is_turned else zero).astype(np.uint8)
    outputs, inputs = rows.shape
    whole = rows.astype(np.int16) + (_MIDDLE[bits] if zeros is None else 0)
    filled = np.pad(whole, ((0, 0), (0, -inputs % block))).astype(np.uint8)
    name, rest, made = str(node.inputs[0].name), bits, []  # type: ignore[union-attr]  # it has been read
    wide = _widened(model, name, scales)
    for part in _PARTS[bits]:
        rest -= part
        zero_part = None if zeros is None else _bits_at(zeros, rest, part)
        packed = _packed(_bits_at(filled, rest, part), part).reshape(outputs, -1, block * part // 8)
        zeros_of_part = None
        if zero_part is not None:
            zeros_of_part = add_constant(model.graph, f"{name}_zeros{rest}", _packed(zero_part, part))
        made.append(
            _Matrix(
                part,
                block,
                outputs,
                inputs,
                add_constant(model.graph, f"{name}_packed{rest}", packed),
                wide if not rest else _times(model, wide, 2**rest),
                zeros_of_part,
                zero_part,
            )
        )
    return made


def _widened(model: ir.Model, name: str, scales: NDArray[np.generic]) -> ir.Value:
    """The scales in float32, of those in float16 that the file has."""
    half = add_constant(model.graph, f"{name}_half", scales.astype(np.float16))
    return _first(model, ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=f"Cast:{name}"), f"{name}_wide")


def _times(model: ir.Model, scale: ir.Value, factor: int) -> ir.Value:
    """Scales of the upper bits: worked out when the model is opened, not stored."""
    number = add_constant(model.graph, f"{scale.name}_factor", np.array(factor, np.float32))
    node = ir.node("Mul", [scale, number], name=f"Mul:{scale.name}")
    model.graph.insert_after(scale.producer() or model.graph[0], node)
    node.outputs[0].name, node.outputs[0].dtype = f"{scale.name}_upper", ir.DataType.FLOAT
    return node.outputs[0]


def _first(model: ir.Model, node: ir.Node, name: str) -> ir.Value:
    """The result of a node that is put before all others."""
    node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]


def _bits_at(integers: Bytes, first: int, bits: int) -> Bytes:
    """Some neighbouring bits of integers."""
    cut: Bytes = (integers >> np.uint8(first)) & np.uint8(2**bits - 1)
    return cut


def _packed(integers: Bytes, bits: int) -> Bytes:
    """Integers of the last axis, as many to a byte as fit, the first in the lowest bits."""
    each = 8 // bits
    filled = np.pad(integers, ((0, 0), (0, -integers.shape[1] % each)))
    columns = [filled[:, place::each] << np.uint8(place * bits) for place in range(each)]
    return np.ascontiguousarray(np.bitwise_or.reduce(columns))


def _products(reader: ir.Node, parts: list[_Matrix]) -> list[ir.Node]:
    """The products of all parts, and their sum."""
    made = [_product(reader, part, number) for number, part in enumerate(parts)]
    if len(made) == 1:
        return made
    return [*made, ir.node("Add", [node.outputs[0] for node in made], name=f"{reader.name}_sum")]


def _product(reader: ir.Node, matrix: _Matrix, number: int) -> ir.Node:
    restored = reader.inputs[0].producer() if reader.inputs[0] is not None else None
    rounded = rounded_value(restored, matrix.block) if restored is not None else None
    attributes = {
        "K": matrix.inputs,
        "N": matrix.outputs,
        "bits": matrix.bits,
        "block_size": matrix.block,
        "accuracy_level": _FLOAT32 if rounded is None else _INT8,
    }
    inputs = [
        reader.inputs[0] if rounded is None else rounded,
        matrix.packed,
        matrix.scale,
        *([matrix.zero] if matrix.zero is not None else []),
    ]
    name = f"{reader.name}_{number}" if number else reader.name
    node = ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=name)
    node.outputs[0].name = f"{reader.outputs[0].name}_part{number}"
    return node


def _look_ups(model: ir.Model, reader: ir.Node, parts: list[_Matrix]) -> list[ir.Node]:
    """The table's vectors, block by block: it is the very tensor that a product reads, which has an axis for blocks."""
    name = str(reader.outputs[0].name)
    nodes: list[ir.Node] = []
    found: list[ir.Value] = []
    for number, part in enumerate(parts):
        scale, gather = _look_up(model, reader, part, f"{name}_part{number}")
        nodes += [scale, gather]
        found.append(gather.outputs[0])
    if len(found) > 1:
        nodes.append(_made("Add", found, f"{name}_sum"))
    shape = add_constant(model.graph, f"{name}_shape", np.array([0, 0, parts[0].inputs], np.int64))
    return [*nodes, _made("Reshape", [nodes[-1].outputs[0], shape], f"{name}_whole")]


def _look_up(model: ir.Model, reader: ir.Node, matrix: _Matrix, name: str) -> tuple[ir.Node, ir.Node]:
    attributes = {"gather_axis": 0, "quantize_axis": 2, "block_size": matrix.block, "bits": matrix.bits}
    column = add_constant(model.graph, f"{name}_column", np.array([matrix.outputs, -1, 1], np.int64))
    scale = _made("Reshape", [matrix.scale, column], f"{name}_scale")
    inputs = [matrix.packed, reader.inputs[1], scale.outputs[0]]
    if matrix.zeros is not None:
        inputs.append(add_constant(model.graph, f"{name}_zeros", matrix.zeros[:, :, None]))
    gather = ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=f"GatherBlockQuantized:{name}")
    gather.outputs[0].name = f"{name}_blocks"
    return scale, gather


def _made(op: str, inputs: list[ir.Value], name: str) -> ir.Node:
    node = ir.node(op, inputs, name=f"{op}:{name}")
    node.outputs[0].name = name
    return node


def _replace(model: ir.Model, old: ir.Node, *new: ir.Node) -> None:
    """Puts nodes in the place of one; the last of them gives its result."""
    model.graph.insert_before(old, new)
    stand_in(old.outputs[0], new[-1].outputs[0])
    model.graph.remove(old, safe=True)
