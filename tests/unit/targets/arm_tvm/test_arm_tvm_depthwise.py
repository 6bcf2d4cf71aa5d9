"""Depthwise kernels, run on the host, against the convolution's definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.model.numerics import Array
from targets.arm_tvm.kernels.floating_point import depthwise
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine

NEON = Machine()
SQNR_DB = 120.0


def _workload(channels: int, height: int, width: int, **rest: Any) -> ConvWorkload:
    return ConvWorkload("blocked", "float32", 2, channels, height, width, channels, groups=channels, **rest)


@pytest.mark.needs_tvm
@pytest.mark.parametrize(
    "workload",
    [
        _workload(6, 9, 13, kernel=(3, 3), padding=(1, 1, 1, 1), epilogue=("relu",)),
        _workload(8, 10, 11, kernel=(3, 3), strides=(2, 2), padding=(0, 0, 1, 1), epilogue=("clip 0.0 6.0",)),
        _workload(4, 14, 7, kernel=(5, 5), padding=(2, 2, 2, 2), epilogue=("add", "relu")),
        _workload(5, 12, 12, kernel=(3, 3), dilations=(2, 3), padding=(2, 3, 2, 3)),
        _workload(4, 1, 2, kernel=(5, 5), padding=(2, 2, 2, 2)),
    ],
    ids=["ragged", "stride", "residual", "dilation", "window larger than the map"],
)
def test_default_choice_is_the_convolution_of_each_channel(workload: ConvWorkload) -> None:
    wanted, found = _run(workload, depthwise.choices(workload, NEON)[0])
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)) > SQNR_DB


def test_convolutions_that_mix_channels_are_declined() -> None:
    assert not depthwise.choices(ConvWorkload("blocked", "float32", 1, 8, 9, 9, 8, (3, 3)), NEON)
    assert not depthwise.choices(ConvWorkload("blocked", "float32", 1, 8, 9, 9, 16, (3, 3), groups=8), NEON)
    assert not depthwise.choices(_workload(8, 9, 9, kernel=(9, 9)), NEON)


def _run(work: ConvWorkload, choice: Choice) -> tuple[Array, Array]:
    import tvm

    random, lanes = np.random.default_rng(7), NEON.lanes(work.dtype)
    source = random.normal(size=(work.batch, work.channels, work.height, work.width))
    weights = random.normal(size=(work.channels, 1, *work.kernel))
    bias = np.zeros(blocks(work.channels, lanes) * lanes)
    bias[: work.channels] = random.normal(size=work.channels)
    residual = random.normal(size=(work.batch, work.channels, *work.result))
    kernel = depthwise.emit(work, choice, NEON).with_attr("global_symbol", "kernel")
    compiled = tvm.compile(tvm.IRModule({"kernel": kernel}), target=tvm.target.Target("llvm"))
    given = [_blocked(source, lanes), depthwise.pack(work, choice, weights, NEON), bias]
    given += [_blocked(residual, lanes)] if "add" in work.epilogue else []
    result = tvm.runtime.tensor(np.full(_blocked(residual, lanes).shape, np.nan, work.dtype))
    compiled["kernel"](*(tvm.runtime.tensor(np.ascontiguousarray(array, work.dtype)) for array in given), result)
    found = result.numpy().transpose(0, 1, 4, 2, 3).reshape(work.batch, -1, *work.result)[:, : work.channels]
    return _convolved(source, weights, bias, residual, work), found


def _convolved(source: Array, weights: Array, bias: Array, residual: Array, work: ConvWorkload) -> Array:
    top, left, bottom, right = work.padding
    padded = np.pad(source, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, columns = work.result
    total = np.zeros((work.batch, work.channels, rows, columns)) + bias[: work.channels, None, None]
    for i, j in np.ndindex(*work.kernel):
        down, across = i * work.dilations[0], j * work.dilations[1]
        shifted = padded[:, :, down :: work.strides[0], across :: work.strides[1]][:, :, :rows, :columns]
        total += shifted * weights[:, 0, i, j][:, None, None]
    total = total + residual if "add" in work.epilogue else total
    total = np.maximum(total, 0) if "relu" in work.epilogue else total
    return np.clip(total, 0, 6) if "clip 0.0 6.0" in work.epilogue else total


def _blocked(array: Array, lanes: int) -> Array:
    batch, channels, height, width = array.shape
    full = np.zeros((batch, blocks(channels, lanes) * lanes, height, width))
    full[:, :channels] = array
    return full.reshape(batch, -1, lanes, height, width).transpose(0, 1, 3, 4, 2)
