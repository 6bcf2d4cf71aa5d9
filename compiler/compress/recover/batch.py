"""Models with a fixed batch size made to accept any: a training step has more samples than the model is built for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.model.graph import add_constant
from compiler.passes.values import Names, constant_of


def batch_of(model: ir.Model) -> int | None:
    """The batch size that the model's inputs fix; None where it is symbolic."""
    sizes = [value.shape[0] for value in model.graph.inputs if value.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def with_free_batch(model: ir.Model) -> ir.Model:
    """A copy to compute in PyTorch, whose reshapes keep the first axis instead of stating its size.

    Only Reshape is changed. Other nodes that contain the batch size are not found here: the caller compares outputs of
    several samples with the model's own.

    Args:
        model: As `prepare` makes it; left as it is.
    """
    copy, size = model.clone(), batch_of(model)
    if size is None:
        return copy
    names = Names(copy)
    for node in copy.graph:
        if node.op_type == "Reshape" and not node.attributes.get_int("allowzero", 0):
            _keep_first_axis(copy, node, size, names)
    for value in (*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs)):
        if value.shape and value.shape[0] == size:
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    return copy


def _keep_first_axis(model: ir.Model, node: ir.Node, size: int, names: Names) -> None:
    target, source = constant_of(node.inputs[1]), node.inputs[0]
    states = target is not None and target.size and target.reshape(-1)[0] == size
    if not states or source is None or not source.shape or source.shape[0] != size:
        return
    array = np.array(target, dtype=np.int64)
    array[0] = 0
    name = names.fresh(f"{node.outputs[0].name}_shape")
    node.replace_input_with(1, add_constant(model.graph, name, array))
