"""The weights that are put in few bits: matrices of products, and tables of vectors, which a product may share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from compiler.passes.values import constant_tensor

SMALLEST_BYTES = 1 << 14
"""A matrix below this, in float32, stays as it is: a scale and two more operators would cost what it saves."""

_NUMBER = re.compile(r"\d+")


class WeightKind(StrEnum):
    """What a weight is for."""

    PRODUCT = "product"
    TABLE = "table"


@dataclass(frozen=True)
class WeightLayer:
    """One weight, seen as a matrix (outputs, inputs).

    Args:
        name: The initializer's.
        kind: A matrix of products alone, or a table that tokens are looked up in.
        node: Name of the first node that reads it.
        op: That node's operator.
        reads: The value it is multiplied with; empty where it is a table that no product shares.
        is_turned: Whether the initializer is (inputs, outputs).
        outputs: Rows of the matrix; of a table its vectors.
        inputs: Columns: what a sum goes over.
    """

    name: str
    kind: WeightKind
    node: str
    op: str
    reads: str
    is_turned: bool
    outputs: int
    inputs: int

    @property
    def role(self) -> str:
        """The weight's name without its number: alike in every block of the model."""
        return _NUMBER.sub("#", self.name)

    @property
    def elements(self) -> int:
        """Count of weights."""
        return self.outputs * self.inputs


def find_layers(model: ir.Model) -> tuple[WeightLayer, ...]:
    """Every weight that can be put in few bits, in the order of the graph.

    A matrix that is read by anything else than one MatMul, or a Gather of its rows with or without a MatMul by its
    transpose, is left as it is.
    """
    order = {node: number for number, node in enumerate(model.graph)}
    made = []
    for value in model.graph.initializers.values():
        layer = _layer_of(value, order)
        if layer is not None:
            made.append((min(order[node] for node, _ in value.uses()), layer))
    return tuple(layer for _, layer in sorted(made, key=lambda item: (item[0], item[1].name)))


def _layer_of(value: ir.Value, order: dict[ir.Node, int]) -> WeightLayer | None:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or value.is_graph_output():
        return None
    uses = list(value.uses())
    if 4 * tensor.size < SMALLEST_BYTES or not uses or any(node not in order for node, _ in uses):
        return None
    rows, columns = (int(size) for size in tensor.shape.numpy())
    first = min((node for node, _ in uses), key=lambda node: order[node])
    gathers = [node for node, index in uses if _gathers_rows(node, index)]
    turned = [node for node, index in uses if node.op_type == "MatMul" and index == 1]
    products = [node for use, index in uses if (node := _transposed_product(use)) is not None]
    if len(turned) == len(uses) == 1:
        reads = turned[0].inputs[0]
        product = WeightKind.PRODUCT
        name = str(reads.name) if reads is not None else ""
        return WeightLayer(str(value.name), product, str(first.name), first.op_type, name, True, columns, rows)
    if len(gathers) + len(products) == len(uses) and len(products) <= 1:
        reads = products[0].inputs[0] if products else None
        kind = WeightKind.TABLE if gathers else WeightKind.PRODUCT
        name = str(reads.name) if reads is not None else ""
        return WeightLayer(str(value.name), kind, str(first.name), first.op_type, name, False, rows, columns)
    return None


def _gathers_rows(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and node.domain == "" and index == 0 and node.attributes.get_int("axis", 0) == 0


def _transposed_product(node: ir.Node) -> ir.Node | None:
    """The MatMul that multiplies by the transpose that this node makes; None where it makes none."""
    if node.op_type != "Transpose" or list(node.attributes.get_ints("perm", [1, 0])) != [1, 0]:
        return None
    uses = list(node.outputs[0].uses())
    is_one = len(uses) == 1 and not node.outputs[0].is_graph_output()
    return uses[0][0] if is_one and uses[0][0].op_type == "MatMul" and uses[0][1] == 1 else None
