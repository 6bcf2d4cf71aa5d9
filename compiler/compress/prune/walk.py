"""State that the operators' rules share while channels are traced through a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.prune.atoms import Atoms, Ids
from compiler.passes.values import constant_of, display_name

Role: TypeAlias = Literal["makes", "reads", "follows"]

Labels: TypeAlias = dict[int, Ids]
"""Axis → the atom at every position along it; a missing axis has no channels that could be cut."""


@dataclass(frozen=True)
class Cut:
    """An axis of an initializer that is cut with its atoms.

    Args:
        initializer: Its name.
        axis: The axis.
        ids: One atom per position.
        role: `makes` (output channels of a weight), `reads` (input channels of a weight), `follows` (a parameter
            per channel).
        node: Display name of the node that uses it.
    """

    initializer: str
    axis: int
    ids: Ids
    role: Role
    node: str


@dataclass(frozen=True)
class Count:
    """A number in the graph that is a count of channels: one element of a constant input, or an attribute.

    Args:
        output: Name of the node's first output.
        place: Index of the input, or name of the attribute.
        element: Index into the constant; 0 for an attribute.
        ids: The atoms it counts; the new number is that of the remaining ones, divided by `per`.
        per: Atoms per unit (channels per attention head).
    """

    output: str
    place: int | str
    element: int
    ids: Ids
    per: int = 1


@dataclass
class Walk:
    """The state of one walk through a graph, in topological order."""

    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[str, Labels] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    used: set[tuple[str, int]] = field(default_factory=set)

    def of(self, value: ir.Value | None) -> Labels:
        """Labels of a value; empty for one without."""
        return self.labels.get(str(value.name), {}) if value is not None else {}

    def give(self, value: ir.Value, labels: Labels) -> None:
        """Sets the labels of an output."""
        self.labels[str(value.name)] = labels

    def cut(self, node: ir.Node, index: int, axis: int, ids: Ids, role: Role) -> None:
        """Notes that an axis of the node's constant input `index` is cut with these atoms."""
        value = node.inputs[index]
        assert value is not None  # noqa: S101  # rules ask for the array first
        self.cuts.append(Cut(str(value.name), axis, ids, role, display_name(node)))
        self.used.add((str(node.outputs[0].name), index))

    def count(self, node: ir.Node, place: int | str, element: int, ids: Ids, *, per: int = 1) -> None:
        """Notes that a number of the node counts these atoms."""
        self.counts.append(Count(str(node.outputs[0].name), place, element, ids, per))

    def fix(self, labels: Labels, reason: str) -> None:
        """Marks all atoms of these labels as never cut."""
        for ids in labels.values():
            self.atoms.fix(ids, reason)

    def fix_inputs(self, node: ir.Node, reason: str) -> None:
        """Marks all atoms that the node or its subgraphs read as never cut."""
        for value in node.inputs:
            self.fix(self.of(value), reason)
        for attribute in node.attributes.values():
            for graph in _graphs(attribute):
                for inner in graph.all_nodes():
                    for value in inner.inputs:
                        self.fix(self.of(value), reason)


def _graphs(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def weight(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    """The array of an input that is an initializer, which can be cut; None otherwise."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None or value.is_graph_output():
        return None
    return constant_of(value)


def opset_of(node: ir.Node) -> int:
    """Version of ONNX's operators that the node's graph is written in."""
    return node.graph.opset_imports.get("", 1) if node.graph is not None else 1


def sizes(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The shape: an integer per fixed dimension, a name per symbolic one; None where it is not known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)
