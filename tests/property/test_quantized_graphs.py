"""The quantizer on random graphs: valid, same interface, never twice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphs import models
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from compiler.compress.quant import is_quantized, quantize
from compiler.errors import DataError, UnsupportedModel
from compiler.model.graph import check_model, infer_strictly
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat


def scheme_of(moving: TensorFormat, *, adds: bool) -> QuantScheme:
    weight = TensorFormat("int8", granularity="channel")
    product = OpScheme({0: moving}, {1: weight}, fuses=("Relu", "Add"))
    handing_on = dict.fromkeys(
        ("MaxPool", "Flatten", "Concat", "Reshape"), OpScheme({0: moving}, quantizes_output=False)
    )
    sums = {"Add": OpScheme({0: moving, 1: moving}, fuses=("Relu",))} if adds else {}
    ops = {"Conv": product, "Gemm": product, "MatMul": OpScheme({0: moving, 1: moving}, {1: weight})}
    return QuantScheme("random", {**ops, **handing_on, **sums})


SCHEMES = [
    scheme_of(TensorFormat("int8"), adds=True),
    scheme_of(TensorFormat("uint8", symmetric=False), adds=False),
    scheme_of(TensorFormat("int8", positive="uint8"), adds=True),
]


@settings(max_examples=40, deadline=None, print_blob=True, database=None, suppress_health_check=list(HealthCheck))
@given(text=models(steps_max=12), scheme=st.sampled_from(SCHEMES))
def test_quantized_graphs_are_valid_keep_their_interface_and_run(text: str, scheme: QuantScheme) -> None:
    model = ir.from_proto(infer_strictly(ir.to_proto(ir.from_onnx_text(text))))
    assume(not is_quantized(model))
    inputs = _inputs(model)
    try:
        want = Unoptimized(model).run(inputs)
    except UnsupportedModel:  # ONNX Runtime does not run some graphs of Ifs, quantized or not
        assume(False)
    try:
        found = quantize(model, [inputs], scheme)
    except (UnsupportedModel, DataError) as error:  # nothing to quantize, or NaN in the float model already
        assume("NaN" not in str(error) and "no operator" not in str(error))
        raise
    check_model(found.model)
    assert _interface(found.model) == _interface(model)
    got = Unoptimized(found.model).run(inputs)
    assert {name: array.shape for name, array in want.items()} == {name: array.shape for name, array in got.items()}
    assert is_quantized(found.model)


def _interface(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    return [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]


def _inputs(model: ir.Model) -> Arrays:
    rng = np.random.default_rng(6)
    shapes = {str(v.name): [d if isinstance(d, int) else 2 for d in v.shape or ()] for v in model.graph.inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
