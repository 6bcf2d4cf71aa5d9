"""Weights in blocks as the kernels of native/blocks.c read them: packed, and multiplied without being expanded.

    rounding → MatMul ← DequantizeLinear              fleetc.block_product
    rounding → MatMul ← Transpose ← DequantizeLinear  fleetc.block_product, on the table that Gather reads
    Gather ← DequantizeLinear                         fleetc.block_rows

A record holds what eight outputs need of one block of inputs, in the order in which it is read: scales, zero points,
and for every four inputs those of each output side by side, as the dot product instructions take them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.target import (
    BITS_KEY,
    Editor,
    UnsupportedModel,
    add_constant,
    constant_of,
    remove_unread,
    rounded_value,
    stand_in,
)
from targets.arm_tvm.graph.quantized.rewrite import DOMAIN

PRODUCT, ROWS = "BlockProduct", "BlockRows"
"""Our operators: values (…, inputs), weights, form → (…, outputs); ids, weights, form → (…, inputs)."""

_OUTPUTS = 8
"""Outputs of a record; native/blocks.c says the same."""
_SIDE_BY_SIDE = 4
"""Inputs of an output that one lane of a dot product takes."""


def pack_blocks(model: ir.Model, known: dict[str, NDArray[np.uint8]]) -> None:
    """Replaces what reads weights in blocks, in place.

    Args:
        model: A model of fixed sizes.
        known: Name of weights → their records, as the same model had them at another size; grows.

    Raises:
        UnsupportedModel: Weights are read by something else than a product of rounded values or a look-up.
    """
    for node in [node for node in model.graph if _is_blocks(node)]:
        weights, form = _packed(model, node, known)
        for reader in _readers(node):
            if reader.op_type == "Gather" and reader.inputs[0] is node.outputs[0]:
                _replace(model, reader, ROWS, [reader.inputs[1], weights, form])
            elif reader.op_type == "MatMul" and (value := _value_of(reader, node)) is not None:
                _replace(model, reader, PRODUCT, [value, weights, form])
            else:
                raise UnsupportedModel(
                    f"target 'tvm' reads weights in blocks by products of rounded values and by look-ups, and "
                    f"{reader.op_type} '{reader.name}' is neither",
                    remedy="Take precision int4-weights-int8, or target onnxruntime.",
                )
    remove_unread(model)


def _is_blocks(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and BITS_KEY in node.metadata_props


def _readers(node: ir.Node) -> list[ir.Node]:
    """What reads the weights, behind a Transpose where there is one."""
    readers: list[ir.Node] = []
    for reader, _ in list(node.outputs[0].uses()):
        turned = reader.op_type == "Transpose" and list(reader.attributes.get_ints("perm", ())) == [1, 0]
        readers += [other for other, _ in reader.outputs[0].uses()] if turned else [reader]
    return readers


def _value_of(product: ir.Node, weights: ir.Node) -> ir.Value | None:
    """What is rounded before a product with weights, in their blocks; None where nothing is."""
    restored = product.inputs[0].producer() if product.inputs[0] is not None else None
    block = weights.attributes.get_int("block_size", 0)
    return rounded_value(restored, block) if restored is not None else None


def _replace(model: ir.Model, old: ir.Node, op: str, inputs: list[ir.Value | None]) -> None:
    (new,) = Editor(model, old).add(op, inputs, domain=DOMAIN)
    stand_in(old.outputs[0], new)


def _packed(model: ir.Model, node: ir.Node, known: dict[str, NDArray[np.uint8]]) -> tuple[ir.Value, ir.Value]:
    """The weights of a DequantizeLinear as records, and their form."""
    integers, scale = constant_of(node.inputs[0]), _scale_of(node)
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None:
        raise UnsupportedModel(f"weights in blocks are no constants: {node.name}")
    bits, block = int(node.metadata_props[BITS_KEY]), node.attributes.get_int("block_size", 0)
    is_turned = node.attributes.get_int("axis", 1) == 0
    rows, scales = (np.ascontiguousarray(array.T if is_turned else array) for array in (integers, scale))
    zeros = None if zero is None else np.ascontiguousarray(zero.T if is_turned else zero)
    outputs, inputs = rows.shape
    name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
    if name not in known:
        known[name] = records_of(rows, scales, zeros, bits=bits, block=block)
    form = np.array([bits, block, outputs, inputs], np.int64)
    return add_constant(model.graph, f"{name}_records", known[name]), add_constant(model.graph, f"{name}_form", form)


def _scale_of(node: ir.Node) -> NDArray[np.generic] | None:
    """Scales, behind the Cast that makes float32 of those that are stored."""
    cast = node.inputs[1].producer() if node.inputs[1] is not None else None
    return constant_of(cast.inputs[0] if cast is not None and cast.op_type == "Cast" else node.inputs[1])


def records_of(
    rows: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None, *, bits: int, block: int
) -> NDArray[np.uint8]:
    """Weights as native/blocks.c reads them.

    Args:
        rows: Integers (outputs, inputs): of 4 bits 0 to 15, or −8 to 7 where there are no zero points; of 8 bits −128
            to 127.
        scales: (outputs, blocks).
        zeros: (outputs, blocks); None where all are the middle of the range.
        bits: Of one weight: 4 or 8.
        block: Inputs that share a scale, a multiple of 16.

    Raises:
        UnsupportedModel: There are no kernels for the format.
    """
    if bits not in (4, 8) or block % 16 or (bits == 8 and zeros is not None):
        raise UnsupportedModel(
            f"target 'tvm' has kernels for 4 bits and for 8 without zero points, not for {bits} in blocks of {block}"
        )
    outputs, blocks = scales.shape
    shift = 8 if bits == 4 and zeros is None else 0
    missing = -outputs % _OUTPUTS
    whole = np.pad(rows.astype(np.int16) + shift, ((0, missing), (0, blocks * block - rows.shape[1])))
    # (groups, outputs, blocks, fours, 4) → (groups, blocks, fours, outputs, 4)
    cut = whole.reshape(-1, _OUTPUTS, blocks, block // _SIDE_BY_SIDE, _SIDE_BY_SIDE).transpose(0, 2, 3, 1, 4)
    groups = cut.shape[0]
    halves = np.pad(scales.astype(np.float16), ((0, missing), (0, 0))).reshape(groups, _OUTPUTS, blocks)
    parts = [np.ascontiguousarray(halves.transpose(0, 2, 1)).view(np.uint8)]
    if bits == 4:
        points = np.full((outputs, blocks), shift, np.uint8) if zeros is None else zeros.astype(np.uint8)
        padded = np.pad(points, ((0, missing), (0, 0))).reshape(groups, _OUTPUTS, blocks)
        parts.append(np.ascontiguousarray(padded.transpose(0, 2, 1)))
        first, second = cut[:, :, :, : _OUTPUTS // 2], cut[:, :, :, _OUTPUTS // 2 :]
        parts.append((first | second << 4).astype(np.uint8).reshape(groups, blocks, -1))
    else:
        parts.append(cut.astype(np.int8).view(np.uint8).reshape(groups, blocks, -1))
    return np.concatenate(parts, axis=2).reshape(-1)


def convert_blocks(builder: Any, op: str, inputs: list[Any]) -> Any:
    """The call of a function of the bundle's program (native/blocks.c)."""
    from tvm import relax

    given, _, form = inputs
    _, _, outputs, width = (int(number) for number in form.value.numpy())
    shape = [int(size) for size in given.ty.shape.values]
    name, result = (
        ("fleetc.block_product", [*shape[:-1], outputs]) if op == PRODUCT else ("fleetc.block_rows", [*shape, width])
    )
    return builder.emit(relax.call_dps_packed(name, inputs, relax.TensorType(result, "float32")))
