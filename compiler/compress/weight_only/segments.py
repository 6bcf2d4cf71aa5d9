"""A model run in pieces on calibration data: only one piece's weights and sums are in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compiler.compress.threads import in_parallel
from compiler.compress.weight_only.layers import WeightKind, WeightLayer
from compiler.model.frontend.extract import read_by
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized

_AT_ONCE = 4
"""Batches whose tapped values are in memory together."""


@dataclass(frozen=True)
class Segment:
    """Some neighbouring nodes of a model.

    Args:
        number: Its place, from 0.
        nodes: Their names, in order.
        layers: The weights that they read and no earlier segment does.
    """

    number: int
    nodes: tuple[str, ...]
    layers: tuple[WeightLayer, ...]

    @property
    def products(self) -> tuple[WeightLayer, ...]:
        """Those of its weights that are matrices of products alone."""
        return tuple(layer for layer in self.layers if layer.kind == WeightKind.PRODUCT)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of what those products read."""
        return tuple(sorted({layer.reads for layer in self.products}))


def cut_segments(model: ir.Model, layers: Sequence[WeightLayer], *, most_bytes: int) -> tuple[Segment, ...]:
    """Cuts a graph into pieces.

    Args:
        model: Every node has a name.
        layers: Its weights.
        most_bytes: Weights of one piece in float32; a single larger one is a piece of its own.
    """
    by_node: dict[str, list[WeightLayer]] = {}
    for layer in layers:
        by_node.setdefault(layer.node, []).append(layer)
    pieces: list[tuple[list[str], list[WeightLayer]]] = [([], [])]
    for node in model.graph:
        new = by_node.get(str(node.name), [])
        held = sum(4 * layer.elements for layer in pieces[-1][1])
        if new and pieces[-1][1] and held + sum(4 * layer.elements for layer in new) > most_bytes:
            pieces.append(([], []))
        pieces[-1][0].append(str(node.name))
        pieces[-1][1].extend(new)
    return tuple(Segment(number, tuple(nodes), tuple(held)) for number, (nodes, held) in enumerate(pieces))


@dataclass
class Stream:
    """The values that go from one segment to the next, for each batch of calibration data.

    Args:
        model: The whole model; left as it is.
        segments: Its pieces.
        batches: Inputs of the model; replaced, batch by batch, by what later segments read.
    """

    model: ir.Model
    segments: tuple[Segment, ...]
    batches: list[dict[str, Array]]
    _later: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = {str(node.name): node for node in self.model.graph}
        read = [
            {str(value.name) for name in segment.nodes for value in read_by(nodes[name])} for segment in self.segments
        ]
        # what is read behind each segment; outputs of the model are nobody's input here
        self._later = [set().union(*read[number + 1 :]) for number in range(len(read))]

    def run(self, segment: Segment, taps: Collection[str]) -> Iterator[Arrays]:
        """The tapped values of every batch; the stream then stands behind the segment."""
        piece = _piece(self.model, segment, {*taps, *self._later[segment.number]})
        # what the last segment computes may be nobody's input
        session = Unoptimized(piece) if len(piece.graph) else None
        names = [str(value.name) for value in piece.graph.inputs]

        def compute(batch: dict[str, Array]) -> dict[str, Array]:
            return {} if session is None else session.run({name: batch[name] for name in names})

        for first in range(0, len(self.batches), _AT_ONCE):
            some = self.batches[first : first + _AT_ONCE]
            for number, (batch, made) in enumerate(zip(some, in_parallel(compute, some), strict=True), first):
                known = {**batch, **made}
                yield {name: known[name] for name in taps}
                later = self._later[segment.number]
                self.batches[number] = {name: array for name, array in known.items() if name in later}


def _piece(model: ir.Model, segment: Segment, wanted: Collection[str]) -> ir.Model:
    """The segment as a model of its own: what it reads from outside is its input. Weights are shared."""
    copy = model.clone()
    graph = copy.graph
    inside = set(segment.nodes)
    nodes = _needed([node for node in graph if str(node.name) in inside], wanted)
    inside = {str(node.name) for node in nodes}
    made = {value for node in nodes for value in node.outputs}
    read = {value: None for node in nodes for value in read_by(node)}
    inputs = [
        ir.Value(name=value.name, type=value.type, shape=value.shape)
        for value in read
        if value not in made and value.const_value is None
    ]
    by_name = {str(value.name): value for value in inputs}
    for value in [*read]:
        if str(value.name) in by_name:
            for node, index in list(value.uses()):
                if str(node.name) in inside:
                    node.replace_input_with(index, by_name[str(value.name)])
    outputs = [value for node in nodes for value in node.outputs if value.name in wanted]
    weights = [value for value in read if value.const_value is not None]
    graph.outputs.clear()
    dropped = [node for node in graph if str(node.name) not in inside]
    graph.remove(nodes)
    for node in reversed(dropped):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    for value in weights:
        graph.initializers.pop(str(value.name), None)
    part = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=weights, opset_imports=dict(graph.opset_imports), name="segment"
    )
    return ir.Model(part, ir_version=copy.ir_version)


def _needed(nodes: list[ir.Node], wanted: Collection[str]) -> list[ir.Node]:
    """The nodes that some wanted value depends on, in their order."""
    names = set(wanted)
    needed = []
    for node in reversed(nodes):
        if any(value.name in names for value in node.outputs):
            needed.append(node)
            names |= {str(value.name) for value in read_by(node)}
    return needed[::-1]


def sum_squares(batches: Iterator[Arrays], names: Collection[str]) -> dict[str, np.ndarray]:
    """Σ x·xᵀ over all rows of each tapped value (inputs, inputs), float32; and the count of rows divided out."""
    sums: dict[str, np.ndarray] = {}
    rows = dict.fromkeys(names, 0)
    for batch in batches:
        for name in names:
            flat = batch[name].reshape(-1, batch[name].shape[-1]).astype(np.float32, copy=False)
            rows[name] += len(flat)
            # a product of a matrix with its own transpose: numpy computes one triangle only (BLAS syrk)
            product = flat.T @ flat
            sums[name] = product if name not in sums else np.add(sums[name], product, out=sums[name])
    return {name: total / np.float32(max(1, rows[name])) for name, total in sums.items()}
