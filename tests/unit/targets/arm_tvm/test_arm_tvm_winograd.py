"""Winograd kernels, run on the host, against the convolution's definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from arm_tvm_host import parallel_loops

from compiler.model.numerics import Array
from targets.arm_tvm.kernels.cook_toom import input_matrix, output_matrix, weight_matrix
from targets.arm_tvm.kernels.floating_point import winograd
from targets.arm_tvm.kernels.floating_point.families import all_choices
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine

NEON = Machine()
SCALAR_OPERANDS = Machine(vector_bits=256, registers=16, by_element=False, pairs=False)
FLOAT32_SQNR_DB = 100.0


@pytest.mark.parametrize("m", [2, 4, 6])
def test_transforms_give_every_product_of_a_signal_and_a_filter_once(m: int) -> None:
    found = np.einsum("ti,ij,il->tjl", output_matrix(m), weight_matrix(m), input_matrix(m))
    wanted = np.fromfunction(lambda t, j, line: line == t + j, (m, 3, m + 2))
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.needs_tvm
@pytest.mark.parametrize(
    ("workload", "parameters", "machine"),
    [
        (("float32", 1, 8, 10, 5, 12, (1, 1, 1, 1)), (2, 2, 4, 3), NEON),
        (("float32", 2, 6, 7, 9, 10, (0, 1, 2, 1)), (4, 1, 5, 1), NEON),
        (("float32", 2, 6, 13, 9, 10, (0, 1, 2, 1)), (6, 2, 5, 3), NEON),
        (("float32", 1, 4, 1, 3, 8, (1, 1, 1, 1)), (4, 1, 1, 2), NEON),
        (("float32", 1, 4, 1, 3, 8, (1, 1, 1, 1)), (6, 1, 1, 2), NEON),
        (("float32", 1, 16, 9, 8, 16, (1, 1, 1, 1)), (4, 2, 4, 2), SCALAR_OPERANDS),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_result_is_the_convolution_with_bias_residual_and_activation(
    workload: tuple[str, int, int, int, int, int, tuple[int, int, int, int]],
    parameters: tuple[int, int, int, int],
    machine: Machine,
) -> None:
    dtype, batch, channels, height, width, filters, padding = workload
    work = ConvWorkload(
        "blocked", dtype, batch, channels, height, width, filters, (3, 3), padding=padding, epilogue=("add", "relu")
    )
    choice = Choice("winograd", dict(zip(("m", "rows", "tiles", "blocks"), parameters, strict=True)))
    wanted, found = _run(work, choice, machine)
    assert _sqnr_db(wanted, found) > FLOAT32_SQNR_DB


@pytest.mark.needs_tvm
def test_one_band_of_one_group_spreads_its_products_over_threads() -> None:
    pytest.importorskip("tvm")
    work = ConvWorkload("blocked", "float32", 1, 64, 17, 17, 16, (3, 3), padding=(1, 1, 1, 1), epilogue=("add",))
    choice = Choice("winograd", {"m": 6, "rows": 3, "tiles": 3, "blocks": 4})
    assert parallel_loops(winograd.emit(work, choice, NEON)) == [64, 4]
    assert _sqnr_db(*_run(work, choice, NEON)) > FLOAT32_SQNR_DB


@pytest.mark.needs_tvm
def test_default_choice_of_random_shapes_is_right() -> None:
    random = np.random.default_rng(20)
    for _ in range(4):
        channels, filters, height, width = (int(size) for size in random.integers(1, 20, 4))
        padding = tuple(int(size) for size in random.integers(1, 3, 4))
        work = ConvWorkload(
            "blocked", "float32", 1, channels, height, width, filters, (3, 3), padding=padding, epilogue=("add",)
        )
        choice = winograd.choices(work, NEON)[0]
        assert _sqnr_db(*_run(work, choice, NEON)) > FLOAT32_SQNR_DB, (work, choice)


@pytest.mark.needs_tvm
@pytest.mark.parametrize(("m", "dtype"), [(2, "float32"), (4, "float32"), (6, "float32")])
def test_weights_may_be_transformed_when_the_kernel_runs(m: int, dtype: str) -> None:
    pytest.importorskip("tvm")
    work = ConvWorkload("blocked", dtype, 2, 9, 13, 14, 16, (3, 3), padding=(1, 1, 1, 1), epilogue=("add", "relu"))
    choice = Choice("winograd", {"m": m, "rows": 2, "tiles": 4, "blocks": 2, "late": 1})
    assert _sqnr_db(*_run(work, choice, NEON)) > FLOAT32_SQNR_DB


def test_every_tile_size_is_a_choice_with_enlarged_weights_and_with_those_of_the_model() -> None:
    work = ConvWorkload("blocked", "float16", 1, 64, 17, 17, 64, (3, 3), padding=(1, 1, 1, 1))
    raw = 64 * 64 * 2
    sizes = {(one.parameters["m"], one.weight_bytes // raw) for one in winograd.choices(work, NEON)}
    assert sizes == {(2, 9), (2, 16), (4, 9), (4, 36)}


def test_other_convolutions_are_declined() -> None:
    plain = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    accepted = ConvWorkload("blocked", "float32", 1, 8, 9, 9, 8, **plain)
    assert winograd.choices(accepted, NEON)
    for different in (
        {"strides": (2, 2)},
        {"dilations": (2, 2)},
        {"kernel": (5, 5)},
        {"groups": 8},
        {"padding": (3, 1, 1, 1)},
    ):
        assert not winograd.choices(ConvWorkload("blocked", "float32", 1, 8, 9, 9, 8, **{**plain, **different}), NEON)
    assert not winograd.choices(ConvWorkload("planar", "float32", 1, 8, 9, 9, 8, **plain), NEON)


def test_large_maps_take_large_tiles_and_one_pixel_is_not_worth_a_transform() -> None:
    def chosen(channels: int, size: int) -> Choice:
        work = ConvWorkload("blocked", "float32", 1, channels, size, size, channels, (3, 3), padding=(1, 1, 1, 1))
        return all_choices(work, NEON)[0]

    assert chosen(64, 17).parameters["m"] == 6
    assert chosen(128, 8).parameters["m"] == 4
    assert chosen(256, 1).family == "bordered"


def _run(work: ConvWorkload, choice: Choice, machine: Machine) -> tuple[Array, Array]:
    import tvm

    random = np.random.default_rng(4)
    lanes = machine.lanes(work.dtype)
    source = random.normal(size=(work.batch, work.channels, work.height, work.width))
    weights = random.normal(size=(work.filters, work.channels, 3, 3)) / np.sqrt(9 * work.channels)
    bias = random.normal(size=blocks(work.filters, lanes) * lanes)
    residual = random.normal(size=(work.batch, work.filters, *work.result))
    kernel = winograd.emit(work, choice, machine).with_attr("global_symbol", "kernel")
    compiled = tvm.compile(
        tvm.IRModule({"kernel": kernel}), target=tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
    )
    packed = winograd.pack(work, choice, weights, machine)
    given = (_blocked(source, lanes), packed, bias, _blocked(residual, lanes))
    result = tvm.runtime.tensor(np.full(given[3].shape, np.nan, work.dtype))
    compiled["kernel"](*(tvm.runtime.tensor(np.ascontiguousarray(array, work.dtype)) for array in given), result)
    found = result.numpy().transpose(0, 1, 4, 2, 3).reshape(work.batch, -1, *work.result)[:, : work.filters]
    return _convolved(source, weights, bias, residual, work), found


def _convolved(source: Array, weights: Array, bias: Array, residual: Array, work: ConvWorkload) -> Array:
    top, left, bottom, right = work.padding
    padded = np.pad(source, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    total = np.einsum("nchwpq,ocpq->nohw", windows, weights) + bias[: work.filters, None, None] + residual
    return np.maximum(total, 0) if "relu" in work.epilogue else total


def _blocked(array: Array, lanes: int) -> Array:
    batch, channels, height, width = array.shape
    full = np.zeros((batch, blocks(channels, lanes) * lanes, height, width))
    full[:, :channels] = array
    return full.reshape(batch, -1, lanes, height, width).transpose(0, 1, 3, 4, 2)


def _sqnr_db(wanted: Array, found: Array) -> float:
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)))


def test_weights_that_are_streamed_from_memory_count_where_times_are_predicted() -> None:
    wide = Machine(vector_bits=512, by_element=False, pairs=False, bytes_per_instruction=4.0)
    few_pixels = ConvWorkload("blocked", "float32", 1, 256, 4, 4, 256, (3, 3), padding=(1, 1, 1, 1))
    many_pixels = ConvWorkload("blocked", "float32", 1, 64, 34, 34, 64, (3, 3), padding=(1, 1, 1, 1))
    assert all_choices(few_pixels, wide)[0].family == "direct"
    assert all_choices(few_pixels, NEON)[0].family == "winograd"
    assert all_choices(many_pixels, wide)[0].family == "winograd"
