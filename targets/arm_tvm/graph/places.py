"""Whether a model computes each place of a dimension, as each sample of a batch, by itself.

The model is bound at two sizes, and each value must differ in one axis at most, by the factor by which the sizes do:
that axis holds the places, the elements of a place next to each other. A rule for each operator says whether it keeps
them apart and where they are afterwards. What has no rule is taken to mix them.

    value  (N, 8, 6) at N = 4 and 3:   axis 0, one element per place
    Reshape to (N · 8, 6):             axis 0, eight per place, since as many elements stand before the axis as before
    Softmax of axis 0:                 mixed
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from targets.arm_tvm.graph.place_rules import Places, Step, rule_of


class _Mixed(Exception):
    """Places are not kept apart, or nobody can tell; the message says where and why."""


def why_mixed(model: ir.Model, first: ir.Model, second: ir.Model, dimension: str, sizes: tuple[int, int]) -> str:
    """Why a model is not known to compute each place by itself; empty where it does.

    Args:
        model: The model with the dimension open.
        first, second: The same bound at two sizes; their constants become initializers.
        dimension: Name of the dimension.
        sizes: The two sizes.
    """
    branching = [node for node in model.graph.all_nodes() if node.op_type in ("If", "Loop", "Scan")]
    if branching:
        return f"{_label(branching[0])} may take another way at another size"
    for bound in (first, second):
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(bound)
    try:
        _Walk(dimension, sizes).follow(first, second)
    except _Mixed as error:
        return str(error)
    return ""


def places_of(before: Sequence[int], after: Sequence[int], sizes: tuple[int, int]) -> Places | None:
    """Where two shapes differ; None where they do not.

    Raises:
        ValueError: In more than one axis, or not as the sizes do.
    """
    axes = [axis for axis, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    if not axes:
        return None
    count, rest = divmod(before[axes[0]], sizes[0])
    if len(axes) > 1 or rest or count * sizes[1] != after[axes[0]]:
        raise ValueError("not one axis that grows with the dimension")
    return Places(axes[0], count)


class _Walk:
    """Both models, node by node."""

    def __init__(self, dimension: str, sizes: tuple[int, int]) -> None:
        self.dimension, self.sizes = dimension, sizes
        self.places: dict[ir.Value, Places | None] = {}

    def follow(self, first: ir.Model, second: ir.Model) -> None:
        nodes = list(first.graph), list(second.graph)
        if [node.op_type for node in nodes[0]] != [node.op_type for node in nodes[1]]:
            raise _Mixed(f"the graph is another one at another size of '{self.dimension}'")
        for values in zip(first.graph.inputs, second.graph.inputs, strict=True):
            self.places[values[0]] = self._seen(*values)
        opset = first.graph.opset_imports.get("", 1)
        for pair in zip(*nodes, strict=True):
            self._follow_node(*pair, opset)
        for value in first.graph.outputs:
            if self._of(value) is None and any(self.places.values()):
                raise _Mixed(f"output '{value.name}' has no axis of '{self.dimension}'")

    def _follow_node(self, node: ir.Node, other: ir.Node, opset: int) -> None:
        for mine, others in zip(node.inputs, other.inputs, strict=True):
            if mine is not None and others is not None and mine.const_value is not None:
                self.places[mine] = self._constant(node, mine, others)
        step = Step(node, [None if value is None else self._of(value) for value in node.inputs], opset)
        outputs = [pair for pair in zip(node.outputs, other.outputs, strict=True) if pair[0].name]
        made = [self._seen(*pair) for pair in outputs]
        self.places |= dict(zip((pair[0] for pair in outputs), made, strict=True))
        if not any(step.places) and not any(made):
            return
        rule = rule_of(node)
        if rule is None or _attributes(node) != _attributes(other):
            raise _Mixed(f"{_label(node)} may mix places of '{self.dimension}'")
        expected = [rule(step, node.outputs.index(value)) for value, _ in outputs]
        if None in expected or expected != made:
            raise _Mixed(f"{_label(node)} mixes places of '{self.dimension}'")

    def _of(self, value: ir.Value) -> Places | None:
        return self.places.get(value)

    def _seen(self, first: ir.Value, second: ir.Value) -> Places | None:
        if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
            raise _Mixed(f"the shape of '{first.name}' is not known")
        if not (first.shape.is_static() and second.shape.is_static()):
            raise _Mixed(f"the shape of '{first.name}' is not fixed")
        try:
            return places_of(first.shape.numpy(), second.shape.numpy(), self.sizes)
        except ValueError as error:
            raise _Mixed(f"'{first.name}' has {error}: '{self.dimension}'") from error

    def _constant(self, node: ir.Node, first: ir.Value, second: ir.Value) -> Places | None:
        """A constant: the same at every size, one for all places, or a shape."""
        if first.const_value is None or second.const_value is None:
            raise _Mixed(f"'{first.name}' is a constant at one size alone")
        if first.const_value is second.const_value:
            return None
        own, others = first.const_value.numpy(), second.const_value.numpy()
        if own.shape == others.shape and np.array_equal(own, others):
            return None
        if node.op_type in ("Reshape", "Expand") and node.inputs[1] is first:
            return None  # judged by what they make of it
        places = self._seen(first, second)
        if places is not None and places.count == 1:
            row = own.take([0], places.axis)
            if all(np.array_equal(array, np.broadcast_to(row, array.shape)) for array in (own, others)):
                return places
        raise _Mixed(f"the constant '{first.name}' depends on '{self.dimension}'")


def _attributes(node: ir.Node) -> dict[str, object]:
    """What may be compared: attributes that are no tensors and no graphs."""
    return {
        name: tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value
        for name, attribute in node.attributes.items()
        if attribute.type
        in (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.FLOAT)
    }


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name or '(unnamed)'}'"
