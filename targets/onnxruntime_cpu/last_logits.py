"""Logits of the last token alone: while a prompt is read, those of its other tokens are read by nobody.

    hidden (batch, sequence, width) → MatMulNBits → logits
    hidden → Slice from token `logits_from` on → MatMulNBits → logits

`logits_from` is an input with a default value, 0: who does not name it gets the logits of all tokens, as before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compiler.target import Editor, add_constant, find_decoder
from targets.onnxruntime_cpu.in_place import LOGITS_FROM

_PRODUCTS = ("MatMul", "MatMulNBits")
_SEQUENCE = 1


def select_logits(model: ir.Model) -> bool:
    """Adds `logits_from` to a decoder, in place; False, and no change, where its logits come from something else.

    Args:
        model: A decoder, its weights packed.
    """
    logits = find_decoder(model).logits
    value = next(output for output in model.graph.outputs if output.name == logits)
    products = list(_products(value))
    hidden = {product.inputs[0] for product in products if product is not None}
    if None in products or len(hidden) != 1 or LOGITS_FROM in {value.name for value in model.graph.inputs}:
        return False
    first = next(node for node in model.graph if node in products)  # the others come behind it
    graph = model.graph
    start = add_constant(model.graph, LOGITS_FROM, np.zeros(1, np.int64))
    graph.inputs.append(start)
    end = add_constant(model.graph, f"{LOGITS_FROM}:end", np.array([np.iinfo(np.int64).max], np.int64))
    axis = add_constant(model.graph, f"{LOGITS_FROM}:axis", np.array([_SEQUENCE], np.int64))
    (whole,) = hidden
    (chosen,) = Editor(model, first).add("Slice", [whole, start, end, axis])
    for product in products:
        assert product is not None  # noqa: S101  looked at above
        product.replace_input_with(0, chosen)
    return True


def _products(value: ir.Value | None) -> Iterator[ir.Node | None]:
    """The products of a head whose sum is a value; None for what is no product by a matrix.

    Weights of 6 bits are two products and a sum.
    """
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add":
        for part in node.inputs:
            yield from _products(part)
    elif node is not None and node.op_type in _PRODUCTS and _is_matrix(node):
        yield node
    else:
        yield None


def _is_matrix(node: ir.Node) -> bool:
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return node.op_type != "MatMul" or (shape is not None and len(shape) == 2)
