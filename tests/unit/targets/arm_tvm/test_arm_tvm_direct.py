"""The direct kernels and their kin on this machine, against NumPy, over shapes that leave every kind of rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from arm_tvm_host import blocked, convolved, parallel_loops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targets.arm_tvm.kernels.floating_point import bordered, direct, strided
from targets.arm_tvm.kernels.floating_point.families import alike
from targets.arm_tvm.kernels.floating_point.sources import result_shape
from targets.arm_tvm.kernels.floating_point.workload import ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

NEON = Machine()
AVX512 = Machine(vector_bits=512, by_element=False, pairs=False)


@st.composite
def workloads(draw: st.DrawFn) -> ConvWorkload:
    layout = draw(st.sampled_from(("blocked", "planar")))
    size, small, pad = st.integers(5, 20), st.integers(1, 2), st.integers(0, 2)
    return ConvWorkload(
        layout,
        "float32",
        draw(small),
        draw(st.integers(1, 3 if layout == "planar" else 19)),
        draw(size),
        draw(size),
        draw(st.integers(1, 40)),
        kernel=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        strides=(draw(small), draw(small)),
        dilations=(draw(small), draw(small)),
        padding=(draw(pad), draw(pad), draw(pad), draw(pad)),
        epilogue=draw(st.sampled_from(((), ("relu",), ("add", "relu"), ("clip 0.0 6.0",)))),
    )


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), machine=st.sampled_from((NEON, AVX512)), seed=st.integers(0, 2**31))
def test_convolution_equals_numpy_for_any_shape(workload: ConvWorkload, machine: Machine, seed: int) -> None:
    found, expected = _run(workload, machine, seed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5, 13])
def test_product_of_matrices_equals_numpy(rows: int) -> None:
    workload = ConvWorkload("rows", "float32", 1, 24, 1, rows, 40, epilogue=("relu",))
    rng = np.random.default_rng(rows)
    source = rng.normal(size=(rows, 24)).astype(np.float32)
    weights, bias = rng.normal(size=(40, 24)).astype(np.float32), rng.normal(size=40).astype(np.float32)
    found = _call(workload, NEON, source, weights.reshape(40, 24, 1, 1), bias, None)
    np.testing.assert_allclose(found, np.maximum(source @ weights.T + bias, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("filters", "side", "least"), [(16, 24, 8), (96, 23, 8), (80, 13, 8), (512, 10, 8)])
def test_pointwise_convolutions_are_spread_over_threads(filters: int, side: int, least: int) -> None:
    workload = ConvWorkload("blocked", "float32", 1, 64, side, side, filters)
    choice = direct.choices(workload, AVX512)[0]
    assert sum(parallel_loops(direct.emit(workload, choice, AVX512))) >= least
    found, expected = _run(workload, AVX512, seed=filters)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_kernels_of_a_few_microseconds_are_not_spread_over_threads() -> None:
    workload = ConvWorkload("blocked", "float32", 1, 32, 4, 4, 64)
    assert parallel_loops(direct.emit(workload, direct.choices(workload, AVX512)[0], AVX512)) == []


@pytest.mark.parametrize(("channels", "filters"), [(24, 37), (23, 40), (6, 5), (9, 3)])
@pytest.mark.parametrize("machine", [NEON, AVX512])
def test_rows_that_end_within_a_vector_equal_numpy(channels: int, filters: int, machine: Machine) -> None:
    workload = ConvWorkload("rows", "float32", 1, channels, 1, 5, filters, epilogue=("add", "relu"))
    rng = np.random.default_rng(channels)
    source, residual = (rng.normal(size=(5, size)).astype(np.float32) for size in (channels, filters))
    weights, bias = (rng.normal(size=size).astype(np.float32) for size in ((filters, channels), filters))
    found = _call(workload, machine, source, weights.reshape(filters, channels, 1, 1), bias, residual)
    expected = np.maximum(source @ weights.T + bias + residual, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_depthwise_convolutions_are_declined() -> None:
    assert direct.choices(ConvWorkload("blocked", "float32", 1, 8, 9, 9, 8, groups=8), NEON) == ()


@pytest.mark.parametrize(
    ("channels", "filters", "groups"),
    [(16, 24, 2), (12, 20, 2), (16, 16, 8), (8, 16, 8), (6, 9, 3), (32, 64, 4)],
    ids=["whole blocks", "half blocks", "two in a block", "a multiplier", "ragged", "several blocks"],
)
@pytest.mark.parametrize("machine", [NEON, AVX512])
def test_grouped_convolution_equals_numpy(channels: int, filters: int, groups: int, machine: Machine) -> None:
    workload = ConvWorkload(
        *("blocked", "float32", 2, channels, 6, 7, filters),
        kernel=(3, 3),
        padding=(1, 1, 1, 1),
        groups=groups,
        epilogue=("add", "relu"),
    )
    found, expected = _run(workload, machine, groups)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_groups_share_no_products_where_they_fill_blocks() -> None:
    dense = ConvWorkload("blocked", "float32", 1, 64, 9, 9, 64, kernel=(3, 3))
    costs = [direct.choices(replace(dense, groups=groups), NEON)[0].cost for groups in (1, 2, 4)]
    assert costs[0] > 1.8 * costs[1] > 3.2 * costs[2]


def test_tiles_fit_the_registers_and_come_cheapest_first() -> None:
    found = direct.choices(ConvWorkload("blocked", "float32", 1, 64, 17, 17, 64, kernel=(3, 3)), NEON)
    costs = [choice.cost for choice in found]
    sums = [choice.parameters["blocks"] * choice.parameters["rows"] * choice.parameters["columns"] for choice in found]
    assert costs == sorted(costs)
    assert max(sums) < NEON.registers


SMALL = ConvWorkload(
    "blocked", "float32", 2, 9, 4, 4, 13, kernel=(3, 3), padding=(1, 1, 1, 1), epilogue=("add", "relu")
)


@pytest.mark.parametrize(
    "workload",
    [
        SMALL,
        replace(SMALL, height=3, width=5, filters=24),
        replace(SMALL, height=7, width=6, strides=(2, 2), padding=(0, 1, 2, 0)),
        replace(SMALL, height=5, width=5, dilations=(2, 2), padding=(2, 2, 2, 2)),
        replace(SMALL, height=1, width=1),
        replace(SMALL, kernel=(5, 5), padding=(2, 2, 2, 2), epilogue=()),
    ],
    ids=["square", "other sides", "stride", "dilation", "one pixel", "large window"],
)
def test_small_map_without_what_lies_on_padding_equals_numpy(workload: ConvWorkload) -> None:
    found, expected = _run(workload, NEON, 3, family=bordered)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_only_small_maps_with_padding_have_code_for_each_place() -> None:
    assert bordered.choices(SMALL, NEON)
    assert not bordered.choices(replace(SMALL, padding=(0, 0, 0, 0)), NEON)
    assert not bordered.choices(replace(SMALL, height=40, width=40, kernel=(7, 7), padding=(3, 3, 3, 3)), NEON)
    assert not bordered.choices(SMALL, AVX512)


def test_direct_and_bordered_kernels_read_the_same_packed_weights() -> None:
    larger = replace(SMALL, height=40, width=40)
    like = bordered.choices(SMALL, NEON)[0]
    ways = alike(larger, NEON, like)
    assert {way.family for way in ways} == {"direct"}
    assert {way.parameters["blocks"] for way in ways} == {like.parameters["blocks"]}
    weights = np.random.default_rng(1).normal(size=(13, 9, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        bordered.pack(SMALL, like, weights, NEON), direct.pack(larger, ways[0], weights, NEON)
    )


def test_fewer_products_are_predicted_to_take_fewer_instructions() -> None:
    work = ConvWorkload("blocked", "float32", 1, 256, 4, 4, 256, kernel=(3, 3), padding=(1, 1, 1, 1))
    costs = [family.choices(work, NEON)[0].cost for family in (bordered, direct)]
    assert 100 / 144 < costs[0] / costs[1] < 0.8


STEM = ConvWorkload("planar", "float32", 2, 3, 17, 29, 10, kernel=(7, 7), strides=(2, 2), epilogue=("add", "relu"))


@pytest.mark.parametrize(
    ("m", "workload"),
    [
        (4, STEM),
        (3, replace(STEM, width=24, padding=(3, 3, 3, 2), batch=1)),
        (2, replace(STEM, width=27, channels=1, kernel=(5, 5), strides=(1, 2))),
        (2, replace(STEM, width=13, kernel=(3, 6), batch=1)),
    ],
    ids=["four results a tile", "padding", "window of five", "even window"],
)
def test_first_convolution_with_a_stride_equals_numpy(m: int, workload: ConvWorkload) -> None:
    choice = next(choice for choice in strided.choices(workload, NEON) if choice.parameters["m"] == m)
    found, expected = _run(workload, NEON, 5, family=strided, choice=choice)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_strided_kernels_are_for_planes_that_tiles_fill() -> None:
    assert not strided.choices(replace(STEM, layout="blocked", channels=8), NEON)
    assert not strided.choices(replace(STEM, strides=(1, 1)), NEON)
    assert not strided.choices(replace(STEM, kernel=(3, 3)), NEON)
    assert not strided.choices(replace(STEM, width=27), NEON), "eleven results in a row"
    assert not strided.choices(STEM, AVX512)


def _run(
    workload: ConvWorkload, machine: Machine, seed: int, *, family: Any = direct, choice: Any = None
) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    shape = (workload.batch, workload.channels, workload.height, workload.width)
    source = rng.normal(size=shape).astype(np.float32)
    channels = workload.channels // workload.groups
    weights = rng.normal(size=(workload.filters, channels, *workload.kernel)).astype(np.float32)
    bias = rng.normal(size=workload.filters).astype(np.float32)
    result = (workload.batch, workload.filters, *workload.result)
    residual = rng.normal(size=result).astype(np.float32) if "add" in workload.epilogue else None
    lanes = machine.lanes("float32")
    given_source = blocked(source, lanes) if workload.layout == "blocked" else source
    given_residual = None if residual is None else blocked(residual, lanes)
    found = _call(workload, machine, given_source, weights, bias, given_residual, family=family, choice=choice)
    plain = found.transpose(0, 1, 4, 2, 3).reshape(workload.batch, -1, *workload.result)[:, : workload.filters]
    return plain, convolved(workload, source, weights, bias, residual)


def _call(
    workload: ConvWorkload,
    machine: Machine,
    source: Any,
    weights: Any,
    bias: Any,
    residual: Any,
    *,
    family: Any = direct,
    choice: Any = None,
) -> Any:
    import tvm

    choice = choice or family.choices(workload, machine)[0]
    lanes = machine.lanes("float32")
    function = family.emit(workload, choice, machine).with_attr("global_symbol", "main")
    target = tvm.target.Target({"kind": "llvm", "mattr": ["+fma"]})
    full_bias = np.zeros(blocks(workload.filters, lanes) * lanes, np.float32)
    full_bias[: workload.filters] = bias
    arguments = [source, family.pack(workload, choice, weights, machine), full_bias]
    arguments += [] if residual is None else [residual]
    result = tvm.runtime.tensor(np.zeros(result_shape(workload, lanes), np.float32))
    tvm.compile(function, target=target)["main"](*map(tvm.runtime.tensor, arguments), result)
    return result.numpy()
