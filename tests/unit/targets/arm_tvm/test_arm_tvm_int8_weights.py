"""Weights in int8, arithmetic in float32: kernels against NumPy, and models from the Q/DQ graph on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.target import Array
from targets.arm_tvm.kernels.floating_point.families import FAMILIES
from targets.arm_tvm.kernels.floating_point.sources import result_shape
from targets.arm_tvm.kernels.floating_point.workload import ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine

NEON = Machine()
FLOAT32_SQNR_DB = 90.0
"""A kernel in float32 with m = 6 has 100 and more."""

PADDED: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "weights": "int8"}
CASES = [
    ("direct", ConvWorkload("blocked", "float32", 1, 12, 6, 7, 20, epilogue=("add", "relu"), **PADDED)),
    ("direct", ConvWorkload("blocked", "float32", 2, 5, 4, 4, 6, (1, 1), weights="int8")),
    ("direct", ConvWorkload("rows", "float32", 1, 12, 1, 5, 10, weights="int8")),
    ("winograd", ConvWorkload("blocked", "float32", 1, 9, 8, 9, 16, epilogue=("add", "relu"), **PADDED)),
    ("winograd", ConvWorkload("blocked", "float32", 2, 8, 13, 13, 8, epilogue=("relu",), **PADDED)),
]


@pytest.mark.needs_tvm
@pytest.mark.parametrize(("family", "work"), CASES)
def test_kernels_give_what_the_scaled_integers_give(family: str, work: ConvWorkload) -> None:
    pytest.importorskip("tvm")
    seen = set()
    for choice in FAMILIES[family].choices(work, NEON):
        form = choice.parameters.get("m", choice.parameters["blocks"])
        if form not in seen:
            seen.add(form)
            assert _sqnr_db(*_run(work, family, choice)) > FLOAT32_SQNR_DB, choice
    assert family != "winograd" or seen == {2, 4, 6}


def test_every_choice_takes_a_byte_for_a_weight() -> None:
    work = ConvWorkload("blocked", "float32", 1, 64, 17, 17, 64, **PADDED)
    choices = [choice for family in FAMILIES.values() for choice in family.choices(work, NEON)]
    assert {choice.family for choice in choices} == {"direct", "winograd"}
    assert {choice.weight_bytes for choice in choices} == {64 * 64 * 9}


def test_the_digest_of_workloads_of_floats_is_what_tuning_logs_have() -> None:
    assert "weights" not in ConvWorkload("blocked", "float32", 1, 64, 17, 17, 64).to_dict()
    assert ConvWorkload("blocked", "float32", 1, 64, 17, 17, 64, **PADDED).to_dict()["weights"] == "int8"


def _run(work: ConvWorkload, family: str, choice: Any) -> tuple[Array, Array]:
    import tvm

    random, lanes = np.random.default_rng(4), NEON.lanes(work.dtype)
    source = random.normal(size=(work.batch, work.channels, work.height, work.width))
    weights = random.integers(-127, 128, size=(work.filters, work.channels, *work.kernel), dtype=np.int8)
    factor, bias = random.uniform(0.001, 0.01, work.filters), random.normal(size=work.filters)
    residual = random.normal(size=(work.batch, work.filters, *work.result))
    full = blocks(work.filters, lanes) * lanes - work.filters
    given = [_laid_out(source, work, lanes), FAMILIES[family].pack(work, choice, weights, NEON)]
    given += [np.pad(values, (0, full)).astype(np.float32) for values in (factor, bias)]
    given += [_laid_out(residual, work, lanes)] if "add" in work.epilogue else []
    kernel = FAMILIES[family].emit(work, choice, NEON).with_attr("global_symbol", "kernel")
    target = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
    compiled = tvm.compile(tvm.IRModule({"kernel": kernel}), target=target)
    result = tvm.runtime.tensor(np.full(result_shape(work, lanes), np.nan, np.float32))
    compiled["kernel"](*map(tvm.runtime.tensor, given), result)
    wanted = _convolved(source, weights * factor[:, None, None, None], bias, work)
    wanted = wanted + residual if "add" in work.epilogue else wanted
    return np.maximum(wanted, 0) if "relu" in work.epilogue else wanted, _plain(result.numpy(), work)


def _convolved(source: Array, weights: Array, bias: Array, work: ConvWorkload) -> Array:
    top, left, bottom, right = work.padding
    padded = np.pad(source, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, work.kernel, (2, 3))
    return np.einsum("nchwpq,ocpq->nohw", windows, weights) + bias[:, None, None]


def _laid_out(array: Array, work: ConvWorkload, lanes: int) -> Array:
    batch, channels, height, width = array.shape
    if work.layout == "rows":
        return np.ascontiguousarray(array.reshape(channels, width).T, np.float32)
    full = np.zeros((batch, blocks(channels, lanes) * lanes, height, width))
    full[:, :channels] = array
    split = full.reshape(batch, -1, lanes, height, width).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(split, np.float32)


def _plain(found: Array, work: ConvWorkload) -> Array:
    if work.layout == "rows":
        return found.T.reshape(1, work.filters, 1, work.width)
    return found.transpose(0, 1, 4, 2, 3).reshape(work.batch, -1, *work.result)[:, : work.filters]


def _sqnr_db(wanted: Array, found: Array) -> float:
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)))
