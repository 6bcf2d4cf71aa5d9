"""Where the target `tvm` takes places of a dimension to be computed apart, ONNX's own evaluator computes them so.

Every case of ONNX's suite and of ours, with the first or the second axis of its inputs left open: what is said to be
apart gives the same together as place by place. Takes a minute: FLEETC_SLOW=1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.fleet.profile import HardwareProfile
from compiler.target import find_target
from compiler.target.testing import Case, conformance_cases, onnx_backend_cases
from targets.arm_tvm.graph.places import places_of, why_mixed
from targets.arm_tvm.graph.sizes import bind_size

SIZES = (4, 3)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Opened:
    """A case whose inputs have an open axis where they are as long as the first one."""

    proto: onnx.ModelProto
    inputs: Arrays
    axis: int
    names: frozenset[str]

    def at(self, places: list[int], inputs: Arrays) -> Arrays:
        """Some places of the inputs."""
        return {name: a.take(places, self.axis) if name in self.names else a for name, a in inputs.items()}


def opened(case: Case, axis: int) -> Opened | None:
    """The case with an axis left open; None where its first input has none, or is empty. Lists become constants."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto())
    inputs = {name: np.asarray(value) for name, value in case.inputs[0].items()}
    if not inputs:
        return None
    graph, (first, *others) = proto.graph, list(proto.graph.input)
    for value in [other for other in others if inputs[other.name].dtype == np.int64 and inputs[other.name].ndim < 2]:
        graph.initializer.append(numpy_helper.from_array(inputs.pop(value.name), value.name))
        graph.input.remove(value)
    lead = inputs[first.name]
    if lead.ndim <= axis or not lead.shape[axis]:
        return None
    names = {name for name, array in inputs.items() if array.ndim > axis and array.shape[axis] == lead.shape[axis]}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in names and len(dims) > axis:
            dims[axis].ClearField("dim_value")
            dims[axis].dim_param = "N"
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    return Opened(proto, inputs, axis, frozenset(names))


def cases() -> Iterator[Case]:
    target = find_target("reference")
    capability = target.capability(HardwareProfile(schema=1, name="any", target="reference"))
    yield from (*onnx_backend_cases(capability, per_op=0), *conformance_cases())


def bound(case: Opened) -> tuple[ir.Model, ir.Model, ir.Model]:
    model = ir.from_proto(case.proto)
    first, second = (bind_size(model, "N", size) for size in SIZES)
    return model, first, second


def outputs_of(case: Opened) -> tuple[list[np.ndarray], list[list[np.ndarray]]] | None:
    """All places together, and each alone; None where ONNX's evaluator does not take other sizes of the case."""
    evaluator, count = ReferenceEvaluator(case.proto), case.inputs[min(case.names)].shape[case.axis]
    draw = np.random.default_rng(0)
    inputs = case.at([place % count for place in range(SIZES[0])], case.inputs)
    for name in case.names:
        if inputs[name].dtype.kind == "f":  # places that are equal would hide a mistake
            inputs[name] = inputs[name] + 0.1 * draw.standard_normal(inputs[name].shape).astype(inputs[name].dtype)
    try:
        return evaluator.run(None, inputs), [evaluator.run(None, case.at([at], inputs)) for at in range(SIZES[0])]
    except (ValueError, IndexError, RuntimeError, TypeError, AssertionError):
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_places_that_are_taken_to_be_apart_are() -> None:
    compared: Counter[str] = Counter()
    wrong: list[str] = []
    for name, case in ((case.name, opened(case, axis)) for case in cases() for axis in (0, 1)):
        models = bound(case) if case is not None else None
        if case is None or models is None or why_mixed(*models, "N", SIZES):
            continue
        results = outputs_of(case)
        shapes: Mapping[str, tuple[ir.Shape, ir.Shape]] = {
            str(one.name): (one.shape, two.shape)  # type: ignore[misc]  # known: the places are
            for one, two in zip(models[1].graph.outputs, models[2].graph.outputs, strict=True)
        }
        for place, output in enumerate(shapes) if results is not None else ():
            places = places_of(*(shape.numpy() for shape in shapes[output]), SIZES)
            assert places is not None and results is not None
            together, alone = results[0][place], np.concatenate([own[place] for own in results[1]], places.axis)
            if not np.allclose(together, alone, rtol=1e-3, atol=1e-4, equal_nan=True):
                wrong.append(f"{name}: {output}")
            compared.update(node.op_type for node in case.proto.graph.node)
    assert not wrong
    assert len(compared) > 80
