"""Reshapes that an exporter traced at batch 1, as (1, −1): found, mended for any batch, and proven by running.

    Reshape(x: (batch, …), [1, a, b, …])  →  Reshape(x, [0, a, b, …])        0: as x has it

A model is mended only if it does not run at batch 2 as it is, or gives one row where it declares a batch. The mended
model must give what the model gave at batch 1, and at batch 2 must give for each row what that row gives alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.frontend.infer import infer_shapes
from compiler.model.graph import add_constant
from compiler.model.numerics import TOLERANCES, Array, Arrays, compare_all
from compiler.model.reference import Unoptimized

SEED = 20261129
"""Of the random inputs that the proof is made with."""


def mend_batch(model: ir.Model, batch_names: frozenset[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Mends the Reshapes of a model whose batch is free, in place.

    Args:
        model: Input dimensions are still symbolic.
        batch_names: Names of the first dimensions that are the batch.
        sizes: Every other symbolic dimension of the inputs → a size to run at.

    Returns:
        A note that names the nodes that were mended; nothing where none had to be.

    Raises:
        UnsupportedModel: Reshapes fix the batch at 1 and cannot be mended; it names them and says why.
    """
    if not any(_is_frozen(node) for node in model.graph):
        return ()
    declared = {str(value.name): value.shape for value in model.graph.outputs}  # inference replaces them
    infer_shapes(model)
    nodes = list(_frozen_reshapes(model, batch_names))
    single, double = (_inputs(model, batch_names, sizes, batch) for batch in (1, 2))
    if single is None or double is None:
        return ()
    before = _run(model, single)
    if before is None or _gives_rows(_run(model, double), declared):
        return ()
    names = ", ".join(f"'{node.name}'" for node in nodes)
    shapes = [node.inputs[1] for node in nodes]
    _mend(model, nodes)
    reason = _reason(model, before, double, batch_names)
    if reason:
        for node, shape in zip(nodes, shapes, strict=True):
            node.replace_input_with(1, shape)
        raise UnsupportedModel(
            f"Reshape {names} fixes the batch at 1, and cannot be mended: {reason}",
            remedy="Build with `batch: 1`, or export the model with a symbolic batch (`x.flatten(1)`, no fixed sizes).",
        )
    return (f"Reshape {names} fixed the batch at 1; it keeps the batch now, as running at batch 1 and 2 has shown",)


def _frozen_reshapes(model: ir.Model, batch_names: frozenset[str]) -> Iterator[ir.Node]:
    """Reshapes to a constant shape that begins with 1, of values whose first dimension is the batch."""
    led = {value for value in model.graph.inputs if value.shape and _leads(value, batch_names)}
    for node in model.graph:
        inputs = [value for value in node.inputs if value in led]
        source = node.inputs[0] if node.inputs else None
        is_frozen = source in led and _is_frozen(node)
        if is_frozen:
            yield node
        named = any(value.shape and _leads(value, batch_names) for value in node.outputs)
        if is_frozen or named or (inputs and node.outputs[0].shape is not None and len(node.outputs[0].shape) > 1):
            led.update(node.outputs)


def _is_frozen(node: ir.Node) -> bool:
    shape = _constant(node.inputs[1]) if node.op_type == "Reshape" and node.domain == "" else None
    return shape is not None and shape.size > 1 and int(shape[0]) == 1


def _leads(value: ir.Value, batch_names: frozenset[str]) -> bool:
    first = None if not value.shape else value.shape[0]
    return isinstance(first, ir.SymbolicDim) and first.value in batch_names


def _constant(value: ir.Value | None) -> Array | None:
    if value is None:
        return None
    tensor = value.const_value if value.const_value is not None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or value.is_graph_input() else tensor.numpy()


def _mend(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    """Gives each node a shape of its own that takes the first size over; other nodes may read the old constant."""
    for node in nodes:
        shape = _constant(node.inputs[1])
        if shape is None:
            continue
        sizes = np.concatenate([np.zeros(1, np.int64), shape[1:]])
        node.replace_input_with(1, add_constant(model.graph, f"{node.outputs[0].name}_batched_shape", sizes))


def _reason(model: ir.Model, before: Arrays, double: Arrays, batch_names: frozenset[str]) -> str:
    """Why the mended model is no proof; empty where it is one."""
    rows = [{name: _row(array, name, model, batch_names, index) for name, array in double.items()} for index in (0, 1)]
    both, singles = _run(model, double), [_run(model, row) for row in rows]
    if both is None or singles[0] is None or singles[1] is None:
        return "the model does not run at batch 2 all the same"
    if not _agrees(before, singles[0]):
        return "the model gives other results at batch 1 then"
    for name, array in both.items():
        stacked = np.concatenate([singles[0][name], singles[1][name]]) if array.ndim else array
        if stacked.shape != array.shape or not _agrees({name: stacked}, {name: array}):
            return f"output '{name}' of two samples at once is not that of each alone"
    return ""


def _row(array: Array, name: str, model: ir.Model, batch_names: frozenset[str], index: int) -> Array:
    value = next(value for value in model.graph.inputs if value.name == name)
    return array[index : index + 1] if _leads(value, batch_names) else array


def _agrees(expected: Arrays, actual: Arrays) -> bool:
    return all(TOLERANCES["fp32"].accepts(stats) for stats in compare_all(expected, actual).values())


def _gives_rows(outputs: Arrays | None, declared: Mapping[str, ir.Shape | None]) -> bool:
    """Whether the outputs at batch 2 are what the model declares: its sizes, and more than one row for a free first."""
    if outputs is None:
        return False
    for name, wanted in declared.items():
        shape = outputs[name].shape
        if wanted is None:
            continue
        fits = len(shape) == len(wanted) and all(
            size == dim for size, dim in zip(shape, wanted, strict=True) if isinstance(dim, int)
        )
        if not fits or (shape and not isinstance(wanted[0], int) and shape[0] == 1):
            return False
    return True


def _run(model: ir.Model, inputs: Arrays) -> Arrays | None:
    try:
        return Unoptimized(model).run(inputs)
    except UnsupportedModel:
        return None


def _inputs(
    model: ir.Model, batch_names: frozenset[str], sizes: Mapping[str, int], batch: int
) -> dict[str, Array] | None:
    """Random inputs at a batch, the first row the same at every batch; None for types that have none."""
    feeds: dict[str, Array] = {}
    for index, value in enumerate(model.graph.inputs):
        if not isinstance(value.type, ir.TensorType) or value.shape is None or value.dtype is None:
            return None
        known = [dim if isinstance(dim, int) else sizes.get(str(dim.value), 1) for dim in value.shape]
        leads = _leads(value, batch_names)
        rows = [
            _random(known[1:] if leads else known, value.dtype, (index, row)) for row in range(batch if leads else 1)
        ]
        feeds[str(value.name)] = np.stack(rows) if leads else rows[0]
    return feeds


def _random(shape: Sequence[int], dtype: ir.DataType, seeds: tuple[int, int]) -> Array:
    generator = np.random.Generator(np.random.PCG64([SEED, *seeds]))
    if dtype.is_floating_point():
        return np.asarray(generator.standard_normal(shape)).astype(dtype.numpy())
    return np.asarray(generator.integers(0, 2, shape)).astype(dtype.numpy())
