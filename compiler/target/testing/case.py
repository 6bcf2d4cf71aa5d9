"""A conformance case: a tiny deterministic model, what goes in, and what has to come out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from compiler.fleet import Range
from compiler.model.numerics import Array, Arrays

if TYPE_CHECKING:
    import onnx_ir as ir

Weight = tuple[int, ...] | Array | np.generic
"""The value of an initializer, or the shape of a random one."""

OPSET = 21
BATCHES = (1, 3, 4)
"""Sizes at which cases with a symbolic batch are run; the middle one is the optimal one."""


@dataclass(frozen=True)
class Case:
    """One model with inputs.

    Args:
        name: Unique, kebab case; `onnx/test_…` for ONNX's own.
        proto: Makes the model; the same bytes every time.
        inputs: One or more sets of inputs by name, one per size of the symbolic dimensions that is to be tried.
        expected: The outputs of each set; None where ONNX's own evaluator is to be asked.
        dims: Symbolic dimension → its range.
        essential: Whether it belongs to the short list for targets that take seconds per case.
        tolerance: Name of the tolerance in float32 where summation order is not all that may differ; else empty.
    """

    name: str
    proto: Callable[[], onnx.ModelProto]
    inputs: tuple[Arrays, ...]
    expected: tuple[Arrays, ...] | None = None
    dims: Mapping[str, Range] = field(default_factory=dict)
    essential: bool = False
    tolerance: str = ""

    def model(self, *, bind: bool = False) -> ir.Model:
        """The model; with `bind`, every symbolic dimension has its optimal size."""
        import onnx_ir as ir

        model = ir.from_proto(self.proto())
        for value in (*model.graph.inputs, *model.graph.outputs) if bind else ():
            if value.shape is not None:
                sizes = [self.dims[str(size)].opt if str(size) in self.dims else size for size in value.shape]
                value.shape = ir.Shape(sizes)
        return model

    def answers(self) -> tuple[Arrays, ...]:
        """The expected outputs of every set of inputs, computed by ONNX's evaluator where they are not given."""
        return (
            self.expected if self.expected is not None else tuple(evaluate(self.proto(), sets) for sets in self.inputs)
        )


def evaluate(proto: onnx.ModelProto, inputs: Arrays) -> dict[str, Array]:
    """What ONNX's reference evaluator, which is slow and plain NumPy, computes."""
    from onnx.reference import ReferenceEvaluator

    names = [output.name for output in proto.graph.output]
    outputs = ReferenceEvaluator(proto).run(names, dict(inputs))
    return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}


def text_case(
    name: str,
    text: str,
    *,
    weights: Mapping[str, Weight] | None = None,
    values: Arrays | None = None,
    batches: tuple[int, ...] = (),
    opset: int = OPSET,
    essential: bool = False,
    tolerance: str = "",
) -> Case:
    """A case in ONNX's text syntax.

    Args:
        name: Seeds the weights and inputs.
        text: `(inputs) => (outputs) { nodes }`.
        weights: Initializer → its value, or the shape of normally distributed float32 ones, scaled by 1/√fan-in.
        values: Inputs that must not be random.
        batches: Sizes of the symbolic dimension `N` to try; the middle one is the optimal one.
        opset: Version of the default domain.
        essential: See `Case`.
        tolerance: See `Case`.
    """
    source = f'<ir_version: 10, opset_import: ["": {opset}]> {name.replace("-", "_")} {text}'
    made = {key: _weight(name, key, value) for key, value in (weights or {}).items()}

    def proto() -> onnx.ModelProto:
        model = onnx.parser.parse_model(source)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in made.items())
        return model

    typed = onnx.parser.parse_model(source).graph.input
    sets = tuple({value.name: _input(name, value, size, values or {}) for value in typed} for size in batches or (1,))
    dims = {"N": Range(batches[0], batches[len(batches) // 2], batches[-1])} if batches else {}
    return Case(name, proto, sets, dims=dims, essential=essential, tolerance=tolerance)


def ints(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Constants of int64."""
    return np.array(values, dtype=np.int64)


def _random(*parts: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(parts).encode()))


def _weight(case: str, name: str, value: Weight) -> Array:
    if not isinstance(value, tuple):
        return np.asarray(value)
    fan_in = max(1, int(np.prod(value[1:])))
    scaled: Array = (_random(case, name).standard_normal(value) / np.sqrt(fan_in)).astype(np.float32)
    return scaled


def _input(case: str, value: onnx.ValueInfoProto, size: int, values: Arrays) -> Array:
    if value.name in values:
        return np.asarray(values[value.name])
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [dim.dim_value or size for dim in value.type.tensor_type.shape.dim]
    random = _random(case, value.name)
    if kind == np.bool_:
        return random.integers(0, 2, shape).astype(np.bool_)
    return (
        random.integers(0, 3, shape).astype(kind) if kind.kind in "iu" else random.standard_normal(shape).astype(kind)
    )
