"""Root mean square normalization as one operator of ONNX Runtime.

    w · (x / √(mean(x²) + ε))   over the last dimension   →   SimplifiedLayerNormalization(x, w)

ONNX Runtime joins it with a sum before it (SkipSimplifiedLayerNormalization) when it opens the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from compiler.target import Editor, constant_of, producer_of, scalar_of, stand_in

_IN_FLOAT32 = 1
"""Attribute stash_type: the mean is computed in float32."""


def fuse_normalizations(model: ir.Model) -> None:
    """Replaces every normalization that is spelled out; changed in place."""
    for node in list(model.graph):
        match = next(_matches(node), None)
        if match is not None:
            x, weight, epsilon = match
            attributes = {"axis": -1, "epsilon": epsilon, "stash_type": _IN_FLOAT32}
            (value,) = Editor(model, node).add("SimplifiedLayerNormalization", [x, weight], attributes)
            stand_in(node.outputs[0], value)


def _matches(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, float]]:
    """What is normalized, the weight of each element, and ε."""
    if node.op_type != "Mul":
        return
    for weight, value in (node.inputs, reversed(node.inputs)):
        constant = constant_of(weight) if weight is not None else None
        if weight is None or constant is None or constant.ndim != 1:
            continue
        for x, root in _divided(value):
            epsilon = _epsilon(x, root)
            width = x.shape[-1] if x.shape is not None else None
            if epsilon is not None and width == constant.size and x.dtype == ir.DataType.FLOAT:
                yield x, weight, epsilon


def _divided(value: ir.Value | None) -> Iterator[tuple[ir.Value, ir.Node]]:
    """Dividend and root of x / √…, also where it is written as a product with the reciprocal."""
    divided, product = producer_of(value, "Div"), producer_of(value, "Mul")
    if divided is not None and divided.inputs[0] is not None:
        pairs = [(divided.inputs[0], divided.inputs[1])]
    else:
        factors = (product.inputs, reversed(product.inputs)) if product is not None else ()
        inverses = [(x, producer_of(other, "Reciprocal")) for x, other in factors]
        pairs = [(x, inverse.inputs[0]) for x, inverse in inverses if x is not None and inverse is not None]
    for x, root in pairs:
        node = producer_of(root, "Sqrt")
        if node is not None:
            yield x, node


def _epsilon(x: ir.Value, root: ir.Node) -> float | None:
    """ε of √(mean(x²) + ε) over the last dimension; None where it is another root."""
    total = producer_of(root.inputs[0], "Add")
    for value, other in (total.inputs, reversed(total.inputs)) if total is not None else ():
        epsilon, mean = scalar_of(other), producer_of(value, "ReduceMean")
        if epsilon is not None and mean is not None and _is_over_last(mean, x) and _is_square(mean.inputs[0], x):
            return epsilon
    return None


def _is_over_last(mean: ir.Node, x: ir.Value) -> bool:
    axes = constant_of(mean.inputs[1]) if len(mean.inputs) > 1 and mean.inputs[1] is not None else None
    named = list(mean.attributes.get_ints("axes", ())) if axes is None else [int(axis) for axis in axes.ravel()]
    rank = len(x.shape) if x.shape is not None else 0
    return named in ([-1], [rank - 1]) and mean.attributes.get_int("keepdims", 1) == 1


def _is_square(value: ir.Value | None, x: ir.Value) -> bool:
    power, product = producer_of(value, "Pow"), producer_of(value, "Mul")
    if power is not None:
        return power.inputs[0] is x and scalar_of(power.inputs[1]) == 2
    return product is not None and product.inputs[0] is x and product.inputs[1] is x
