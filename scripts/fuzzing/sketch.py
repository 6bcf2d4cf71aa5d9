"""A graph being drawn: every node is run by both oracles as soon as it is added, so that shapes and values are known.

The oracles are ONNX Runtime with its optimizations off and the evaluator of the onnx package. A node that one of them
refuses, or on which they disagree, is set aside and counted; the graph goes on without it.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.model.numerics import TOLERANCES, Array, compare

OPSETS = (7, 27)
"""The oldest opset that fleetc reads, and the newest one that ONNX Runtime does."""
SEPARATE_INITIALIZERS = 4
"""IR version from which on initializers need not be inputs."""
ELEMENTS_MAX = 4096
LARGEST = 1e4
"""Values beyond it are not kept: products of a few of them leave the range of float16, and differences say nothing."""

FLOATS = ("float32", "float16", "float64")
INTEGERS = ("int64", "int32", "int8", "uint8", "int16", "uint16", "uint32", "uint64")

_QUIET = 4


@dataclass
class Counts:
    """What became of the nodes that were drawn.

    Args:
        drawn: Operator → how many nodes were put into a graph.
        disagreed: Operator → on how many nodes the oracles gave different results.
        refused: Operator → how many nodes one of the oracles did not run.
    """

    drawn: Counter[str] = field(default_factory=Counter)
    disagreed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def __repr__(self) -> str:
        return "Counts()"


@dataclass(frozen=True)
class Graph:
    """A finished graph: the model, what goes in, and what ONNX Runtime computes node by node."""

    model: onnx.ModelProto
    inputs: dict[str, Array]
    expected: dict[str, Array]

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators of its main graph."""
        return tuple(sorted({node.op_type for node in self.model.graph.node}))

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model)


class Sketch:
    """The graph so far.

    Args:
        draw: Hypothesis' function that draws from a strategy.
        counts: Where the nodes are counted.
    """

    def __init__(self, draw: st.DrawFn, counts: Counts) -> None:
        self._draw, self._counts = draw, counts
        self.opset = self.integer(*OPSETS)
        self.kind = self.choice("float32", "float32", "float32", "float32", "float32", "float16", "float64")
        self.values: dict[str, Array] = {}
        self._inputs: dict[str, Array] = {}
        self._constants: dict[str, Array] = {}
        self._nodes: list[onnx.NodeProto] = []

    # what is drawn

    def choice(self, *options: Any) -> Any:
        """One of these; Hypothesis shrinks towards the first."""
        return self._draw(st.sampled_from(options))

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        return self._draw(st.integers(low, high))

    def chance(self, per_cent: int) -> bool:
        """True in about so many of 100 draws."""
        return self._draw(st.integers(0, 99)) >= 100 - per_cent

    def subset(self, options: Sequence[int], least: int = 0) -> list[int]:
        """Some of these, in order."""
        if not options:
            return []
        return sorted(self._draw(st.lists(st.sampled_from(list(options)), min_size=least, max_size=3, unique=True)))

    def permutation(self, length: int) -> list[int]:
        """Some order of so many axes."""
        return list(self._draw(st.permutations(range(length))))

    # values

    def value(self, *, kinds: Sequence[str] = (), rank: int | None = None, least: int = 0) -> str:
        """A value of one of these element types (by default the graph's), as old as the graph or a new input.

        Args:
            kinds: Names of NumPy element types.
            rank: The rank it must have; None: any.
            least: The lowest rank.
        """
        wanted = kinds or (self.kind,)
        fitting = [
            name
            for name, array in self.values.items()
            if array.dtype.name in wanted and (rank is None or array.ndim == rank) and array.ndim >= least
        ]
        if fitting and not self.chance(15):
            return str(self.choice(*reversed(fitting)))
        return self.feed(self.choice(*wanted), self.shape(self.integer(max(1, least), 4) if rank is None else rank))

    def shape(self, rank: int) -> tuple[int, ...]:
        """Sizes of 1 to 5."""
        return tuple(self.integer(1, 5) for _ in range(rank))

    def feed(self, kind: str, shape: Sequence[int], *, low: int = -4, high: int = 5) -> str:
        """A new input of the graph, or now and then a constant."""
        array = self.array(kind, shape, low=low, high=high)
        return self.constant(array) if self.chance(12) else self.input(array)

    def input(self, array: Array) -> str:
        """A new input of the graph."""
        name = f"x{len(self._inputs)}"
        self._inputs[name] = self.values[name] = array
        return name

    def constant(self, array: Array | Sequence[int], *, kind: str = "") -> str:
        """A new initializer; a list is one of int64."""
        name = f"c{len(self._constants)}"
        self._constants[name] = np.asarray(array, dtype=kind or (None if isinstance(array, np.ndarray) else np.int64))
        self.values[name] = self._constants[name]
        return name

    def weight(self, shape: Sequence[int], *, kind: str = "", scale: float = 0.5) -> str:
        """An initializer of normally distributed numbers."""
        return self.constant((self.array(kind or self.kind, shape) * scale).astype(kind or self.kind))

    def positive(self, shape: Sequence[int], *, kind: str = "") -> str:
        """An initializer of numbers from about 0.3 to 2."""
        return self.constant((np.abs(self.array("float32", shape)) * 0.5 + 0.3).astype(kind or self.kind))

    def array(self, kind: str, shape: Sequence[int], *, low: int = -4, high: int = 5) -> Array:
        """Random numbers by a drawn seed."""
        random = np.random.default_rng(self.integer(0, 10_000))
        if kind == "bool":
            return random.integers(0, 2, shape).astype(bool)
        if kind.startswith(("int", "uint")):
            return random.integers(0 if kind.startswith("u") else low, high, shape).astype(kind)
        spread = self.choice(1.0, 1.0, 1.0, 0.0, 20.0)
        return (random.standard_normal(shape) * spread).astype(kind)

    def of(self, name: str) -> Array:
        """What the value is on the graph's inputs."""
        return self.values[name]

    # nodes

    def node(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; its outputs, or nothing where an oracle refuses it or the two disagree."""
        attributes = {name: value for name, value in attributes.items() if value is not None and value != []}
        names = [f"v{len(self._nodes)}_{index}" if index else f"v{len(self._nodes)}" for index in range(outputs)]
        made = helper.make_node(operator, inputs, names, name=f"n{len(self._nodes)}", **attributes)
        results = self._results(made)
        if results is None:
            return []
        self._nodes.append(made)
        self._counts.drawn[operator] += 1
        self.values |= results
        return names

    def _results(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        feeds = {name: self.values[name] for name in _read_by(node) if name in self.values}
        model = self._model([node], feeds, dict.fromkeys(node.output))
        first = run_runtime(model, feeds)
        second = None if first is None else run_evaluator(model, feeds)
        if first is None or second is None:
            self._counts.refused[node.op_type] += 1
            return None
        declared = self._model([node], feeds, dict(first))
        if not all(map(_agrees, first.values(), second.values())) or not is_inferred(declared):
            self._counts.disagreed[node.op_type] += 1
            return None
        return first if all(map(_is_usable, first.values())) else None

    def finish(self) -> Graph | None:
        """The graph of all nodes; its outputs are the values that nothing reads, and now and then one more."""
        made = [name for node in self._nodes for name in node.output if name]
        read = {name for node in self._nodes for name in _read_by(node)}
        outputs = [name for name in made if name not in read]
        inner = [name for name in made if name in read]
        if inner and self.chance(20):
            outputs.append(self.choice(*inner))
        if not outputs:
            return None
        used = read | set(outputs)
        inputs = {name: array for name, array in self._inputs.items() if name in used}
        expected = {name: self.values[name] for name in outputs}
        constants = {name: array for name, array in self._constants.items() if name in used}
        model = self._model(self._nodes, inputs, {name: self.values[name] for name in outputs}, constants)
        return Graph(model, inputs, expected) if is_inferred(model) else None

    def _model(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: dict[str, Array],
        outputs: dict[str, Array | None],
        constants: dict[str, Array] | None = None,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            nodes,
            "fuzz",
            [_declared(name, array) for name, array in inputs.items()],
            [_declared(name, array) for name, array in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        oldest = max(SEPARATE_INITIALIZERS, helper.find_min_ir_version_for(opsets))
        return helper.make_model(graph, opset_imports=opsets, ir_version=oldest)


def run_runtime(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array] | None:
    """What ONNX Runtime computes without optimizations; None where it refuses."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))
    except Exception:  # its exceptions have no common base, and whatever it says, it is no oracle for this node
        return None


def run_evaluator(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array] | None:
    """What ONNX's own evaluator computes; None where it fails."""
    names = [output.name for output in model.graph.output]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            values = ReferenceEvaluator(model).run(names, feeds)
        return dict(zip(names, map(np.asarray, values), strict=True))
    except Exception:  # written in NumPy: an operator that it does not take ends in any exception
        return None
    finally:
        logging.disable(logging.NOTSET)


def is_inferred(model: onnx.ModelProto) -> bool:
    """Whether ONNX infers the shapes that ONNX Runtime computes; for pools rounded up it did not always."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return False
    return True


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs, and what subgraphs read of the graph around them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            own = {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
            for inner in attribute.g.node:
                yield from (name for name in _read_by(inner) if name not in own)
                own |= set(inner.output)
            yield from (output.name for output in attribute.g.output if output.name not in own)


def _declared(name: str, array: Array | None) -> onnx.ValueInfoProto:
    if array is None:
        return helper.make_empty_tensor_value_info(name)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _agrees(first: Array, second: Array) -> bool:
    if first.dtype != second.dtype:
        return False
    level = {"float32": "fp32", "float64": "fp32", "float16": "fp16"}.get(first.dtype.name, "exact")
    return TOLERANCES[level].accepts(compare(first, second))


def _is_usable(array: Array) -> bool:
    if array.size > ELEMENTS_MAX or array.dtype.kind not in "fiub" or array.dtype == ml_dtypes.bfloat16:
        return False
    return array.size == 0 or (np.isfinite(array).all() and np.abs(array.astype(np.float64)).max() <= LARGEST)
