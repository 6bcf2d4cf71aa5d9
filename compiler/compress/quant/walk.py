"""Runs the float and the quantized model side by side on calibration data, one node at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.plan import QuantPlan, TensorQuant
from compiler.compress.quant.weights import dequantize, round_weight
from compiler.compress.threads import in_parallel
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.values import constant_of


class Step:
    """The node that was computed last.

    Args:
        node: The node.
        expected: Its first result in the float model, one array per batch.
        low: Its inputs in the quantized model by name, already rounded, for each batch.
        session: Computes the node alone.
    """

    def __init__(self, node: ir.Node, expected: list[Array], low: list[dict[str, Array]], session: Unoptimized) -> None:
        self.node, self.expected, self.low, self._session = node, expected, low, session
        self._first = next(str(value.name) for value in node.outputs if value.name)
        self._results: list[dict[str, Array]] | None = None

    @property
    def results(self) -> list[dict[str, Array]]:
        """All results in the quantized model by name, for each batch."""
        if self._results is None:  # not before somebody asks: most callers exchange the weights first
            self._results = in_parallel(self._session.run, self.low)
        return self._results

    @property
    def found(self) -> list[Array]:
        """The first result in the quantized model, one array per batch."""
        return [result[self._first] for result in self.results]

    def compute_with(self, weight: Array, index: int) -> None:
        """Computes the results with another constant for that input."""
        name = str(self.node.inputs[index].name)  # type: ignore[union-attr]  # a node with weights reads them
        for feeds in self.low:
            feeds[name] = weight
        self._results = None

    def replace(self, arrays: list[Array]) -> None:
        """Exchanges the first result; later nodes read it."""
        self._results = [result | {self._first: array} for result, array in zip(self.results, arrays, strict=True)]


def walk(model: ir.Model, plan: QuantPlan, batches: Sequence[Arrays]) -> Iterator[Step]:
    """Computes both models in graph order; values without later readers are released.

    Args:
        model: The float model, without subgraphs.
        plan: Plan of the quantized model.
        batches: Inputs; values of all of them are in memory at a time.

    Raises:
        UnsupportedModel: ONNX Runtime does not run a node.
    """
    readers = Counter(id(value) for node in model.graph for value in node.inputs if value is not None)
    exact: dict[int, list[Array]] = {
        id(value): [batch[str(value.name)] for batch in batches] for value in model.graph.inputs
    }
    low = dict(exact)
    places = range(len(batches))
    for node in model.graph:
        session = Unoptimized(_alone(model, node))
        expected = in_parallel(session.run, [_feeds(node, exact, index) for index in places])
        step = Step(node, [], [_low_feeds(node, low, index, plan) for index in places], session)
        made = [value for value in node.outputs if value.name]
        for value in made:
            exact[id(value)] = [result[str(value.name)] for result in expected]
        step.expected = exact[id(made[0])]
        yield step
        # after the yield: the caller may have replaced them
        for value in made:
            low[id(value)] = [result[str(value.name)] for result in step.results]
        _forget(node, readers, exact, low)


def can_walk(model: ir.Model) -> bool:
    """Whether nodes can be computed one by one: none has a subgraph, none calls a function."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    plain = all(attribute.type not in kinds for node in model.graph for attribute in node.attributes.values())
    return plain and not model.functions and all(any(out.name for out in node.outputs) for node in model.graph)


def fake_quantize(array: Array, quant: TensorQuant) -> Array:
    """A value after QuantizeLinear and DequantizeLinear."""
    return dequantize(round_weight(array.astype(np.float32), quant), quant).astype(np.float32)


def _forget(node: ir.Node, readers: Counter[int], *known: dict[int, list[Array]]) -> None:
    for value in node.inputs:
        if value is not None:
            readers[id(value)] -= 1
            if not readers[id(value)]:
                for values in known:
                    values.pop(id(value), None)


def _alone(model: ir.Model, node: ir.Node) -> ir.Model:
    """A model of one node whose inputs are graph inputs, constants too."""
    fresh: dict[str, ir.Value] = {}
    for value in node.inputs:
        if value is not None and str(value.name) not in fresh:
            fresh[str(value.name)] = ir.Value(name=value.name, type=value.type)
    inputs = [None if value is None else fresh[str(value.name)] for value in node.inputs]
    copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
    for made, value in zip(copy.outputs, node.outputs, strict=True):
        made.name, made.type = value.name, value.type
    outputs = [made for made in copy.outputs if made.name]
    opsets = dict(model.graph.opset_imports)
    graph = ir.Graph(list(fresh.values()), outputs, nodes=[copy], name="alone", opset_imports=opsets)
    return ir.Model(graph, ir_version=model.ir_version)


def _feeds(node: ir.Node, values: dict[int, list[Array]], index: int) -> dict[str, Array]:
    return {str(value.name): _array(value, values, index) for value in node.inputs if value is not None}


def _low_feeds(node: ir.Node, values: dict[int, list[Array]], index: int, plan: QuantPlan) -> dict[str, Array]:
    feeds = _feeds(node, values, index)
    reads = plan.reads.get(str(node.name), ())
    for position, value in enumerate(node.inputs):
        name = "" if value is None else str(value.name)
        weight = plan.weights.get(f"{node.name}/{position}")
        if position in reads:
            feeds[name] = fake_quantize(feeds[name], plan.tensors[name])
        elif weight is not None:
            feeds[name] = fake_quantize(feeds[name], weight)
    return feeds


def _array(value: ir.Value, values: dict[int, list[Array]], index: int) -> Array:
    if id(value) in values:
        return values[id(value)][index]
    constant = constant_of(value)
    if constant is None:
        raise KeyError(value.name)
    return constant
