"""Multiply-accumulates of a graph, counted from shapes; a symbolic dimension counts as 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import onnx_ir as ir

from compiler.passes.values import graphs_of


def count_macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of convolutions, matrix products and attention, subgraph bodies once, functions not counted.

    Returns:
        The count, or None if a shape that it needs is not known.
    """
    total = 0
    for graph in graphs_of(model):
        for node in graph:
            macs = node_macs(node)
            if macs is None:
                return None
            total += macs
    return total


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one operator: 0 where it has none, None if a shape that it needs is not known."""
    count = _COUNTERS.get(node.op_type)
    return 0 if count is None else count(node)


def _filter_reuse(weight: int) -> Callable[[ir.Node], int | None]:
    """Each output element of a convolution reads one filter: (C_in / groups) × kernel."""

    def count(node: ir.Node) -> int | None:
        outputs, shape = _elements(node.outputs[0]), _sizes(node.inputs[weight])
        return None if outputs is None or shape is None else outputs * prod(shape[1:])

    return count


def _filter_spread(node: ir.Node) -> int | None:
    """Each input element of a transposed convolution is multiplied with (C_out / groups) × kernel weights."""
    inputs, shape = _elements(node.inputs[0]), _sizes(node.inputs[1])
    return None if inputs is None or shape is None else inputs * prod(shape[1:])


def _gemm(node: ir.Node) -> int | None:
    outputs, shape = _elements(node.outputs[0]), _sizes(node.inputs[0])
    if outputs is None or shape is None:
        return None
    return outputs * shape[0 if node.attributes.get_int("transA", 0) else 1]


def _matmul(node: ir.Node) -> int | None:
    outputs, shape = _elements(node.outputs[0]), _sizes(node.inputs[0])
    return None if outputs is None or not shape else outputs * shape[-1]


def _attention(node: ir.Node) -> int | None:
    queries, outputs, keys = _elements(node.inputs[0]), _elements(node.outputs[0]), _sizes(node.inputs[1])
    return None if queries is None or outputs is None or keys is None else (queries + outputs) * keys[-2]


_COUNTERS: Mapping[str, Callable[[ir.Node], int | None]] = {
    "Conv": _filter_reuse(1),
    "ConvInteger": _filter_reuse(1),
    "QLinearConv": _filter_reuse(3),
    "ConvTranspose": _filter_spread,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Attention": _attention,
}


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    shape = None if value is None else value.shape
    if shape is None and value is not None and value.const_value is not None:
        return tuple(int(size) for size in value.const_value.numpy().shape)
    return None if shape is None else tuple(size if isinstance(size, int) else 1 for size in shape)


def _elements(value: ir.Value | None) -> int | None:
    sizes = _sizes(value)
    return None if sizes is None else prod(sizes)
