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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.target import (
    BITS_KEY,
    add_constant,
    add_lazy_constant,
    array_of,
    constant_tensor,
    remove_unread,
    rounded_value,
    stand_in,
)
from targets.onnxruntime_cpu.rules import DOMAIN

_FLOAT32, _INT8 = 1, 4
"""Attribute accuracy_level of MatMulNBits: what the input is multiplied in; int8 rounds it block by block."""

_PARTS = {4: (4,), 6: (4, 2), 8: (8,)}
"""Bits of a weight → bits of the products it becomes, the upper ones first."""

_MIDDLE = {4: 8, 8: 128}
"""Bits → the zero point that the operators assume where none is given."""

_SOME_WEIGHTS = 1 << 20
"""Weights that are packed at once: on the way each takes several bytes."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Stored:
    """One weight in blocks, as the border model has it. Arrays are made anew whenever they are asked for, and not kept.

    Args:
        bits: Of one weight.
        block: Inputs that share a scale.
        is_turned: Whether columns are outputs, in all three tensors.
        integers: A row for each output.
        scale: A column for each block.
        zero: As the scale; None where all are the middle.
    """

    bits: int
    block: int
    is_turned: bool
    integers: ir.TensorProtocol
    scale: ir.TensorProtocol
    zero: ir.TensorProtocol | None

    @property
    def outputs(self) -> int:
        """Rows."""
        return self._shape(self.integers)[0]

    @property
    def inputs(self) -> int:
        """Columns."""
        return self._shape(self.integers)[1]

    @property
    def scale_shape(self) -> tuple[int, int]:
        """(outputs, blocks)."""
        return self._shape(self.scale)

    def scales(self) -> NDArray[np.float16]:
        """Of each block (outputs, blocks)."""
        return np.ascontiguousarray(self._rows(self.scale).astype(np.float16))

    def zeros(self, first: int, bits: int) -> Bytes:
        """Some bits of the zero points (outputs, blocks)."""
        assert self.zero is not None  # noqa: S101  who asks has looked
        return _bits_at(self._rows(self.zero).astype(np.uint8), first, bits)

    def packed_zeros(self, first: int, bits: int) -> Bytes:
        """The same, packed."""
        return _packed(self.zeros(first, bits), bits)

    def packed(self, first: int, bits: int) -> Bytes:
        """Some bits of the integers (outputs, blocks, bytes of a block)."""
        rows, middle = self._rows(self.integers), _MIDDLE[self.bits] if self.zero is None else 0
        step = max(1, _SOME_WEIGHTS // self.inputs)
        filled = ((0, 0), (0, -self.inputs % self.block))
        made = np.empty((*self.scale_shape, self.block * bits // 8), np.uint8)
        for start in range(0, self.outputs, step):
            whole = np.pad(rows[start : start + step].astype(np.int16) + middle, filled).astype(np.uint8)
            some = made[start : start + step]
            some[...] = _packed(_bits_at(whole, first, bits), bits).reshape(some.shape)
        return made

    def _shape(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        rows, columns = (int(size) for size in tensor.shape.numpy())
        return (columns, rows) if self.is_turned else (rows, columns)

    def _rows(self, tensor: ir.TensorProtocol) -> NDArray[np.generic]:
        array = array_of(tensor)
        return array.T if self.is_turned else array


@dataclass(frozen=True)
class _Matrix:
    """Some bits of one weight, as the operators want them.

    Args:
        stored: The weight.
        first: The lowest of the bits.
        bits: How many.
        packed: (outputs, blocks, bytes of a block).
        scale: (outputs, blocks).
        zero: Packed zero points (outputs, bytes); None where all are the middle.
    """

    stored: _Stored
    first: int
    bits: int
    packed: ir.Value
    scale: ir.Value
    zero: ir.Value | None


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
    stored, name = _stored(node), str(node.inputs[0].name)  # type: ignore[union-attr]  # it has been read
    rest, made, blocks = stored.bits, [], stored.scale_shape[1]
    wide = _widened(model, name, stored)

    def constant(suffix: str, *columns: int, make: Callable[[], Bytes]) -> ir.Value:
        shape = (stored.outputs, *columns)
        return add_lazy_constant(model.graph, f"{name}_{suffix}{rest}", ir.DataType.UINT8, shape, make)

    for part in _PARTS[stored.bits]:
        rest -= part
        cut = {"first": rest, "bits": part}
        zero = None
        if stored.zero is not None:
            zero = constant("zeros", -(-blocks * part // 8), make=partial(stored.packed_zeros, **cut))
        packed = constant("packed", blocks, stored.block * part // 8, make=partial(stored.packed, **cut))
        scale = _times(model, wide, 2**rest) if rest else wide
        made.append(_Matrix(stored, rest, part, packed, scale, zero))
    return made


def _stored(node: ir.Node) -> _Stored:
    """The weight that a node dequantizes."""
    cast = node.inputs[1].producer() if node.inputs[1] is not None else None
    integers, scale = (
        constant_tensor(x) for x in (node.inputs[0], cast.inputs[0] if cast is not None else node.inputs[1])
    )
    zero = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    assert integers is not None and scale is not None  # noqa: S101  the quantizer makes them constants
    is_turned = node.attributes.get_int("axis", 1) == 0
    bits, block = int(node.metadata_props[BITS_KEY]), node.attributes.get_int("block_size", 0)
    return _Stored(bits, block, is_turned, integers, scale, zero)


def _widened(model: ir.Model, name: str, stored: _Stored) -> ir.Value:
    """The scales in float32, of those in float16 that the file has."""
    half = add_lazy_constant(model.graph, f"{name}_half", ir.DataType.FLOAT16, stored.scale_shape, stored.scales)
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
    rounded = rounded_value(restored, matrix.stored.block) if restored is not None else None
    attributes = {
        "K": matrix.stored.inputs,
        "N": matrix.stored.outputs,
        "bits": matrix.bits,
        "block_size": matrix.stored.block,
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
    shape = add_constant(model.graph, f"{name}_shape", np.array([0, 0, parts[0].stored.inputs], np.int64))
    return [*nodes, _made("Reshape", [nodes[-1].outputs[0], shape], f"{name}_whole")]


def _look_up(model: ir.Model, reader: ir.Node, matrix: _Matrix, name: str) -> tuple[ir.Node, ir.Node]:
    attributes = {"gather_axis": 0, "quantize_axis": 2, "block_size": matrix.stored.block, "bits": matrix.bits}
    column = add_constant(model.graph, f"{name}_column", np.array([matrix.stored.outputs, -1, 1], np.int64))
    scale = _made("Reshape", [matrix.scale, column], f"{name}_scale")
    inputs = [matrix.packed, reader.inputs[1], scale.outputs[0]]
    if matrix.zero is not None:
        inputs.append(
            add_constant(model.graph, f"{name}_zeros", matrix.stored.zeros(matrix.first, matrix.bits)[:, :, None])
        )
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
