"""Softmax and normalisations on this machine, against NumPy, for rows that end within a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from targets.arm_tvm.kernels.floating_point.rows import (
    Rows,
    emit_instance_norm,
    emit_layer_norm,
    emit_rms_norm,
    emit_softmax,
)
from targets.arm_tvm.kernels.machine import Machine

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

NEON = Machine()
EPSILON = 1e-5
TOLERANCE = {"float32": 2e-6, "float16": 2e-3}
sizes = pytest.mark.parametrize("size", [1, 3, 7, 16, 39, 100])
types = pytest.mark.parametrize("dtype", ["float32", "float16"])


def _run(function: Any, *arrays: np.ndarray) -> np.ndarray:
    import tvm

    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    kernel = tvm.compile(module, target="llvm")["kernel"]
    tensors = [tvm.runtime.tensor(array) for array in (*arrays, np.zeros_like(arrays[0]))]
    kernel(*tensors)
    return tensors[-1].numpy()


def _check(function: Any, arrays: list[np.ndarray], expected: Callable[..., np.ndarray]) -> None:
    dtype = arrays[0].dtype
    exact = expected(*(array.astype(np.float64) for array in arrays))
    bound = TOLERANCE[dtype.name] * max(1.0, float(np.abs(exact).max()))
    np.testing.assert_allclose(_run(function, *arrays), exact, rtol=0, atol=bound)


def _softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


@sizes
@types
def test_softmax_equals_numpy(size: int, dtype: str) -> None:
    x = (np.random.default_rng(size).normal(size=(3, size)) * 8).astype(dtype)
    _check(emit_softmax(Rows(3, size, dtype), NEON), [x], _softmax)


def test_masked_elements_get_nothing() -> None:
    x = np.array([[1.0, -np.inf, 2.0, -1e30, 0.5]], np.float32)
    found = _run(emit_softmax(Rows(1, 5, "float32"), NEON), x)
    np.testing.assert_allclose(found, _softmax(x.astype(np.float64)), atol=1e-6)
    assert found[0, 1] < 1e-37


@sizes
@types
def test_layer_norm_equals_numpy(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    arrays = [rng.normal(3, 2, (2, size)), rng.normal(size=size), rng.normal(size=size)]

    def expected(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON) * scale + shift

    function = emit_layer_norm(Rows(2, size, dtype), NEON, epsilon=EPSILON)
    _check(function, [array.astype(dtype) for array in arrays], expected)


@sizes
@types
def test_instance_norm_equals_numpy(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    arrays = [rng.normal(3, 2, (2 * 3, size)), rng.normal(size=3), rng.normal(size=3)]

    def expected(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return normal * np.tile(scale, 2)[:, None] + np.tile(shift, 2)[:, None]

    function = emit_instance_norm(Rows(6, size, dtype), NEON, channels=3, epsilon=EPSILON)
    _check(function, [array.astype(dtype) for array in arrays], expected)


@sizes
@types
def test_rms_norm_equals_numpy(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    arrays = [rng.normal(size=(2, size)), rng.normal(size=size)]

    def expected(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * scale

    function = emit_rms_norm(Rows(2, size, dtype), NEON, epsilon=EPSILON)
    _check(function, [array.astype(dtype) for array in arrays], expected)
