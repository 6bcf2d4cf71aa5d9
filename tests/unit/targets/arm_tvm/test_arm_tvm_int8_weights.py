"""Weights in int8, arithmetic in float32: kernels against NumPy, and models from the Q/DQ graph on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arm_tvm_host
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.fleet.profile import load_profile
from compiler.target import Array
from targets.arm_tvm import TARGET
from targets.arm_tvm.graph.capability import capability_of
from targets.arm_tvm.graph.lower import lower
from targets.arm_tvm.kernels.floating_point.families import FAMILIES
from targets.arm_tvm.kernels.floating_point.sources import result_shape
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine
from targets.arm_tvm.options import Options

NEON = Machine()
FLOAT32_SQNR_DB = 90.0
"""A kernel in float32 with m = 6 has 100 and more."""

PADDED: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "weights": "int8"}
DIRECT = [
    ConvWorkload("blocked", "float32", 1, 12, 6, 7, 20, epilogue=("add", "relu"), **PADDED),
    ConvWorkload("blocked", "float32", 2, 5, 4, 4, 6, (1, 1), weights="int8"),
    ConvWorkload("rows", "float32", 1, 12, 1, 5, 10, weights="int8"),
]
WINOGRAD = ConvWorkload("blocked", "float32", 2, 9, 13, 14, 16, epilogue=("add", "relu"), **PADDED)


@pytest.mark.needs_tvm
@pytest.mark.parametrize("work", DIRECT)
def test_direct_kernels_give_what_the_scaled_integers_give(work: ConvWorkload) -> None:
    pytest.importorskip("tvm")
    direct = {one.parameters["blocks"]: one for one in FAMILIES["direct"].choices(work, NEON)}
    for choice in (*direct.values(), *FAMILIES["bordered"].choices(work, NEON)[:1]):
        assert _sqnr_db(*_run(work, choice.family, choice)) > FLOAT32_SQNR_DB, choice


@pytest.mark.needs_tvm
@pytest.mark.parametrize("m", [2, 4, 6])
def test_winograd_transforms_integers_when_the_kernel_runs(m: int) -> None:
    pytest.importorskip("tvm")
    choice = Choice("winograd", {"m": m, "rows": 2, "tiles": 4, "blocks": 2})
    assert _sqnr_db(*_run(WINOGRAD, "winograd", choice)) > FLOAT32_SQNR_DB


def _model() -> ir.Model:
    """A convolution, Gemm with its weights transposed, and a product, all of whose weights are int8."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["g", "g_scale"], ["gf"], axis=0),
        helper.make_node("DequantizeLinear", ["m", "m_scale"], ["mf"], axis=1),
        helper.make_node("Conv", ["x", "wf", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "gf"], ["d"], transB=1),
        helper.make_node("MatMul", ["d", "mf"], ["y"]),
    ]
    random, shapes = np.random.default_rng(1), {"w": (16, 8, 3, 3), "g": (12, 16), "m": (12, 8)}
    weights = {name: random.integers(-127, 128, shape, dtype=np.int8) for name, shape in shapes.items()}
    filters = {"w": 16, "g": 12, "m": 8}
    weights |= {f"{name}_scale": random.uniform(0.001, 0.02, n).astype(np.float32) for name, n in filters.items()}
    weights["b"] = random.normal(size=16).astype(np.float32)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 8, 9, 9)), ("y", (1, 8)))
    ]
    graph = helper.make_graph(nodes, "stored", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.needs_tvm
@pytest.mark.parametrize("options", [arm_tvm_host.NEON, arm_tvm_host.AVX2])
def test_models_compute_in_float_what_their_integers_say(options: Options) -> None:
    pytest.importorskip("tvm")
    model, x = _model(), np.random.default_rng(2).normal(size=(1, 8, 9, 9)).astype(np.float32)
    wanted = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]
    found = arm_tvm_host.run_on_host(model, {"x": x}, options)["y"]
    assert _sqnr_db(wanted, found) > FLOAT32_SQNR_DB


@pytest.mark.needs_tvm
def test_weights_of_every_kind_of_product_stay_a_byte_each(tmp_path: Path, cache_dir: Path) -> None:
    pytest.importorskip("tvm")
    lowered = lower(_model(), arm_tvm_host.NEON, workdir=tmp_path, cache_dir=cache_dir, schedule={})
    sizes = sorted(array.size for array in lowered.weights if array.dtype == np.int8)
    assert sizes == sorted([16 * 8 * 9, 12 * 16, 12 * 8])
    assert not any(array.size in sizes for array in lowered.weights if array.dtype != np.int8)


def test_arm_cores_offer_it_and_others_say_why_not() -> None:
    for name, offered in (("raspberry-pi-4", True), ("raspberry-pi-5", True)):
        names = [rule.name for rule in TARGET.capability(load_profile(name)).precisions]
        assert ("int8-weights" in names) == offered
    assert "int8-weights" in capability_of("generic").precision_refusals


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
