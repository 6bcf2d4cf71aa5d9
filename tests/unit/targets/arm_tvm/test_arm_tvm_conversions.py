"""Operators that are converted otherwise than by TVM's importer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import make
from onnx import helper

from compiler.model.save import save_model
from targets.arm_tvm.graph.composites import find_composites

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


def _transposed(window: int, **attributes: Any) -> str:
    """What a transposed convolution of 3 channels to 2 on 4 × 5 is imported as."""
    from targets.arm_tvm.graph.lower import import_relax

    weights = {"w": np.ones((3, 2, window, window)), "b": np.arange(2.0)}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)
    size = 2 * 4 if window == 2 else 2 * 4 + 1, 2 * 5 if window == 2 else 2 * 5 + 1
    return import_relax(make([node], {"x": (1, 3, 4, 5)}, {"y": (1, 2, *size)}, weights)).script()


def test_transposed_convolution_whose_windows_lie_side_by_side_is_pointwise() -> None:
    text = _transposed(2, strides=[2, 2])
    assert "R.nn.conv2d(" in text
    assert "transpose" not in text


@pytest.mark.parametrize(
    ("window", "attributes"),
    [(3, {"strides": [2, 2]}), (2, {"strides": [2, 2], "dilations": [2, 2], "pads": [0, 0, 1, 1]})],
    ids=["overlapping", "with holes"],
)
def test_other_transposed_convolutions_are_left_to_tvm(window: int, attributes: dict[str, Any]) -> None:
    assert "R.nn.conv2d_transpose(" in _transposed(window, **attributes)


def test_transposed_convolution_equals_its_definition() -> None:
    import tvm
    from tvm import relax

    from targets.arm_tvm.graph.lower import import_relax

    rng = np.random.default_rng(1)
    x, w, b = (rng.normal(size=size).astype(np.float32) for size in ((1, 3, 4, 5), (3, 2, 2, 3), 2))
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 3])
    module = import_relax(make([node], {"x": x.shape}, {"y": (1, 2, 8, 15)}, {"w": w, "b": b}))
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    expected = np.einsum("ncij,cfpq->nfipjq", x, w).reshape(1, 2, 8, 15) + b[:, None, None]
    np.testing.assert_allclose(machine["main"](tvm.runtime.tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


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
