"""Activations: their functions against double precision, their expressions, and kernels that end with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from arm_tvm_models import make
from onnx import helper

from targets.arm_tvm.graph.composites import find_composites

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

LANES = 4
INPUTS = np.linspace(-30, 30, 4096).astype(np.float32)


def _computed(text: str, values: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """What a kernel that computes an expression gives on this machine."""
    import tvm

    from targets.arm_tvm.kernels.emitter import Emitter, load, store
    from targets.arm_tvm.kernels.expressions import evaluate

    emitter = Emitter()
    x, y = (emitter.parameter((len(values),), dtype, name) for name in "xy")
    with emitter.loop(len(values) // LANES) as at:
        found = evaluate(text, load(x, at * LANES, LANES), emitter=emitter, lanes=LANES, dtype=dtype)
        emitter.add(store(y, at * LANES, found, LANES))
    function = emitter.function().with_attr("global_symbol", "kernel")
    kernel = tvm.compile(tvm.IRModule({"kernel": function}), target="llvm")["kernel"]
    given, result = tvm.runtime.tensor(values.astype(dtype)), tvm.runtime.tensor(np.zeros(len(values), dtype))
    kernel(given, result)
    return result.numpy()


def _erf(values: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in values.astype(np.float64)])


@pytest.mark.parametrize(
    ("text", "expected", "error"),
    [
        ("sigmoid(x)", lambda x: 1 / (1 + np.exp(-x)), 3e-7),
        ("silu(x)", lambda x: x / (1 + np.exp(-x)), 5e-6),
        ("erf(x)", _erf, 4e-7),
        ("gelu(x)", lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2, 2e-6),
        ("multiply(x,clip(add(multiply(x,0.2),0.5),0.0,1.0))", lambda x: x * np.clip(x * 0.2 + 0.5, 0, 1), 2e-6),
    ],
)
def test_expression_is_as_near_as_float32_allows(text: str, expected: Any, error: float) -> None:
    np.testing.assert_allclose(_computed(text, INPUTS), expected(INPUTS.astype(np.float64)), rtol=0, atol=error)


def test_exp_keeps_its_relative_error_over_its_range() -> None:
    """Through sigmoid(x), which is e^x / (1 + e^x): below 0 its relative error is that of e^−x."""
    given = np.linspace(-86, 0, 4096).astype(np.float32)
    exact = 1 / (1 + np.exp(-given.astype(np.float64)))
    np.testing.assert_allclose(_computed("sigmoid(x)", given), exact, rtol=4e-7)


@pytest.mark.parametrize("value", [-1e30, -np.inf, 1e30, np.inf])
def test_extremes_give_the_limits(value: float) -> None:
    given = np.full(LANES, value, np.float32)
    np.testing.assert_allclose(_computed("sigmoid(x)", given), value > 0, atol=1e-37)
    np.testing.assert_allclose(_computed("erf(x)", given), np.sign(value), atol=1e-37)


def test_nan_becomes_a_bound() -> None:
    given = np.full(LANES, np.nan, np.float32)
    assert set(_computed("clip(x,-1.0,6.0)", given)) <= {-1.0, 6.0}
    assert np.isfinite(_computed("sigmoid(x)", given)).all()


def test_float16_is_rounded_once() -> None:
    given = np.linspace(-8, 8, 1024).astype(np.float16)
    exact = 1 / (1 + np.exp(-given.astype(np.float64)))
    np.testing.assert_allclose(_computed("sigmoid(x)", given, "float16"), exact, rtol=6e-4)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="sinus"):
        _computed("sinus(x)", INPUTS)


SIGMOID = helper.make_node("Sigmoid", ["c"], ["s"])
PRODUCT = helper.make_node("Mul", ["c", "s"], ["y"])


def _steps(nodes: list[Any], outputs: tuple[str, ...] = ("y",)) -> tuple[str, ...]:
    """Epilogue of a convolution with `nodes` behind it, from `c` to `y`."""
    from targets.arm_tvm.graph.lower import import_relax

    weights = {"w": np.ones((8, 8, 1, 1)), "k": np.array([1.0, 2.0] * 4).reshape(8, 1, 1), "two": np.array(2.0)}
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    model = make([conv, *nodes], {"x": (1, 8, 4, 4)}, dict.fromkeys(outputs, (1, 8, 4, 4)), weights)
    (found,) = find_composites(import_relax(model)["main"]).values()
    return found.workload.epilogue


def test_activation_that_reads_its_input_twice_is_one_step() -> None:
    assert _steps([SIGMOID, PRODUCT]) == ("multiply(x,sigmoid(x))",)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("HardSwish", "multiply("),
        ("HardSigmoid", "clip 0.0 1.0"),
        ("Sigmoid", "sigmoid("),
        ("Gelu", "gelu("),
        ("LeakyRelu", "maximum("),
    ],
)
def test_activation_of_one_operator_ends_the_kernel(name: str, last: str) -> None:
    assert _steps([helper.make_node(name, ["c"], ["y"])])[-1].startswith(last)


def test_division_by_a_number_is_a_product() -> None:
    assert _steps([helper.make_node("Div", ["c", "two"], ["y"])]) == ("multiply(x,0.5)",)


def test_value_that_something_else_reads_is_not_swallowed() -> None:
    assert _steps([SIGMOID, PRODUCT], ("y", "s")) == ()
    assert _steps([SIGMOID, PRODUCT], ("y", "c")) == ()


def test_product_with_one_factor_per_channel_is_no_activation() -> None:
    assert _steps([helper.make_node("Mul", ["c", "k"], ["y"])]) == ()
