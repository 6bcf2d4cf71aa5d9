"""Operators that are converted otherwise than by TVM's importer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from arm_tvm_models import make, reference
from onnx import TensorProto, helper, numpy_helper

from compiler.model.save import save_model
from targets.arm_tvm.graph.composites import find_composites
from targets.arm_tvm.graph.rowwise import find_plain_kernels
from targets.arm_tvm.kernels.machine import Machine

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

NAN, INF = float("nan"), float("inf")


def _clip(low: float | None, high: float | None) -> str:
    """What Clip with these constant bounds is imported as."""
    from targets.arm_tvm.graph.lower import import_relax

    bounds = {name: np.array(value) for name, value in (("low", low), ("high", high)) if value is not None}
    names = ["x", "low" if low is not None else "", *(["high"] if high is not None else [])]
    node = helper.make_node("Clip", names, ["y"])
    return import_relax(make([node], {"x": (2, 3)}, {"y": (2, 3)}, bounds)).script()


@pytest.mark.parametrize(
    ("low", "high", "operator"),
    [(0.0, 6.0, "R.clip("), (-1.0, None, "R.maximum("), (None, 2.0, "R.minimum("), (-INF, 2.0, "R.minimum(")],
)
def test_clip_of_constant_bounds_is_one_operator(low: float | None, high: float | None, operator: str) -> None:
    text = _clip(low, high)
    assert operator in text
    assert "isnan" not in text


@pytest.mark.parametrize(("low", "high"), [(NAN, 1.0), (0.0, NAN), (2.0, 1.0)])
def test_clip_of_bounds_that_are_no_interval_is_left_to_tvm(low: float, high: float) -> None:
    assert "R.clip(" not in _clip(low, high)


def test_clip_behind_a_convolution_is_a_step_of_its_kernel() -> None:
    assert _epilogue([helper.make_node("Clip", ["c", "low", "high"], ["y"])]) == ("clip 0.0 6.0",)


def _epilogue(nodes: list[Any]) -> tuple[str, ...]:
    """Steps of the kernel of a convolution with `nodes` behind it, from `c` to `y`."""
    from targets.arm_tvm.graph.lower import import_relax

    weights = {"w": np.ones((8, 8, 1, 1)), "low": np.array(0.0), "high": np.array(6.0)}
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    module = import_relax(make([conv, *nodes], {"x": (1, 8, 4, 4)}, {"y": (1, 8, 4, 4)}, weights))
    (found,) = find_composites(module["main"]).values()
    return found.workload.epilogue


def _node(operator: str, shape: tuple[int, ...], weights: dict[str, np.ndarray], **attributes: Any) -> ir.Model:
    """A model of one node whose first input is `x`."""
    node = helper.make_node(operator, ["x", *weights], ["y"], **attributes)
    proto = helper.make_model(
        helper.make_graph(
            [node],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def _imported(model: ir.Model) -> Any:
    from targets.arm_tvm.graph.lower import import_relax

    return import_relax(model)


def _check(model: ir.Model) -> None:
    """What is imported computes what ONNX Runtime does."""
    import tvm
    from tvm import relax

    x = np.random.default_rng(3).normal(size=model.graph.inputs[0].shape.numpy()).astype(np.float32)
    machine = relax.VirtualMachine(tvm.compile(_imported(model), target="llvm"), tvm.cpu())
    (expected,) = reference(model, {"x": x}).values()
    np.testing.assert_allclose(machine["main"](tvm.runtime.tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


TRANSPOSED = {
    "side by side": ((2, 3), {"strides": [2, 3]}),
    "halves of windows overlap": ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "odd windows": ((3, 3), {"strides": [2, 2]}),
    "padded and one more": ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "padded more on one side": ((5, 4), {"strides": [3, 2], "pads": [2, 0, 1, 1]}),
    "stride 1": ((3, 3), {"pads": [1, 1, 1, 1]}),
    "stride of more than a window": ((2, 2), {"strides": [3, 3]}),
}


@pytest.mark.parametrize(("window", "attributes"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolution_is_a_convolution_of_the_same_results(
    window: tuple[int, int], attributes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(3, 2, *window)), "b": rng.normal(size=2)}
    model = _node("ConvTranspose", (2, 3, 4, 5), {k: v.astype(np.float32) for k, v in weights.items()}, **attributes)
    text = _imported(model).script()
    assert "R.nn.conv2d(" in text and "conv2d_transpose" not in text
    _check(model)


LEFT = {
    "holes": {"strides": [2, 2], "dilations": [2, 2], "pads": [0, 0, 1, 1]},
    "more padding than a window reads": {"strides": [1, 1], "pads": [2, 2, 2, 2]},
}


@pytest.mark.parametrize("attributes", LEFT.values(), ids=LEFT)
def test_other_transposed_convolutions_are_left_to_tvm(attributes: dict[str, Any]) -> None:
    model = _node("ConvTranspose", (1, 3, 7, 7), {"w": np.ones((3, 2, 2, 2), np.float32)}, **attributes)
    assert "R.nn.conv2d_transpose(" in _imported(model).script()


@pytest.mark.parametrize("axis", [0, 1, -2, -1])
def test_softmax_of_an_inner_axis_is_made_along_the_last_one(axis: int) -> None:
    model = _node("Softmax", (3, 4, 5), {}, axis=axis)
    assert "R.nn.softmax(" in _imported(model).script() and "axis=-1" in _imported(model).script()
    _check(model)


@pytest.mark.parametrize("shape", [(2, 3, 20), (1, 3, 4, 5)])
def test_instance_normalization_is_one_kernel(shape: tuple[int, ...]) -> None:
    weights = {"scale": np.array([0.5, 2, -1], np.float32), "shift": np.array([1, 0, 3], np.float32)}
    model = _node("InstanceNormalization", shape, weights, epsilon=1e-3)
    (kernel,) = find_plain_kernels(_imported(model)["main"], Machine(), claimed=()).values()
    assert kernel.name.startswith("instancenorm")
    _check(model)


def test_weights_in_a_file_beside_the_model_are_read_from_wherever_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The importer takes such a file for one of the working folder."""
    from targets.arm_tvm.graph.lower import import_relax

    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = make([node], {"x": (2, 64)}, {"y": (2, 64)}, {"w": np.ones((64, 64), np.float32)})
    (tmp_path / "model").mkdir()
    save_model(model, tmp_path / "model" / "border.onnx", external_above_bytes=0)
    assert (tmp_path / "model" / "border.data").exists()
    monkeypatch.chdir(tmp_path)
    assert "R.matmul(" in import_relax(ir.load(tmp_path / "model" / "border.onnx")).script()
