"""Small models for the tests of this target."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.arm_tvm.run.emulate import why_not_runnable

Array = np.ndarray
needs_aarch64 = pytest.mark.skipif(bool(why_not_runnable("aarch64")), reason=why_not_runnable("aarch64"))


def conv_model(name_of_input: str = "image") -> ir.Model:
    """Conv → Relu → global pool → Gemm, (1, 3, 16, 16) → (1, 5)."""
    rng = np.random.default_rng(7)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)),
        "b": rng.standard_normal(8),
        "m": rng.standard_normal((8, 5)),
    }
    nodes = [
        helper.make_node("Conv", [name_of_input, "w", "b"], ["c"], name="conv", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "m"], ["scores"], name="gemm"),
    ]
    return make(nodes, {name_of_input: (1, 3, 16, 16)}, {"scores": (1, 5)}, weights)


def make(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int | str, ...]],
    outputs: dict[str, tuple[int | str, ...]],
    weights: dict[str, Array] | None = None,
    *,
    dtypes: dict[str, int] | None = None,
    opset: int = 20,
) -> ir.Model:
    """A checked model; tensors are float32 unless `dtypes` says otherwise."""
    kinds = dtypes or {}
    values = [
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in group.items()
        ]
        for group in (inputs, outputs)
    ]
    constants = [
        numpy_helper.from_array(value.astype(np.float32) if value.dtype.kind == "f" else value, name)
        for name, value in (weights or {}).items()
    ]
    graph = helper.make_graph(nodes, "test", *values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def reference(model: ir.Model, inputs: dict[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime computes without optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [str(value.name) for value in model.graph.outputs]
    return dict(zip(names, session.run(names, inputs), strict=True))
