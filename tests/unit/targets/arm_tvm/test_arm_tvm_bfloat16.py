"""Products of bfloat16 with AMX and AVX512-BF16: which cores are offered them, and what kernels compute, by NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arm_tvm_host import blocked, convolved
from arm_tvm_models import make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from compiler.fleet.detect import host_isa
from compiler.fleet.profile import Cpu, HardwareProfile
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET
from targets.arm_tvm.bundle.processor import needed_flags
from targets.arm_tvm.graph.lower import import_relax
from targets.arm_tvm.kernels.floating_point.families import FAMILIES, alike, all_choices
from targets.arm_tvm.kernels.floating_point.sources import result_shape
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Bfloat16, Machine, machine_of
from targets.arm_tvm.options import Options
from targets.arm_tvm.run.amx import request_tiles

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

AVX512 = Machine(vector_bits=512, by_element=False, pairs=False, bfloat16=Bfloat16.AVX512)
AMX = replace(AVX512, bfloat16=Bfloat16.AMX)
SAPPHIRE_RAPIDS = Options("x86_64-linux-gnu", "sapphirerapids")
LANES = 16
CLOSE = 1e-4
"""Sums of float32 in another order; inputs that were not rounded would be off by 1e-2."""
needs_amx = pytest.mark.skipif(
    not {"amx_bf16", "avx512_bf16"} <= host_isa(), reason="this machine's processor lacks amx_bf16"
)


@st.composite
def workloads(draw: st.DrawFn) -> ConvWorkload:
    layout = draw(st.sampled_from(("blocked", "blocked", "planar", "rows")))
    epilogue = draw(st.sampled_from(((), ("relu",), ("add", "relu"), ("clip 0.0 6.0",))))
    batch, channels, filters = draw(st.integers(1, 3)), draw(st.integers(4, 70)), draw(st.integers(1, 70))
    if layout == "rows":
        width = draw(st.integers(1, 40))
        return ConvWorkload(layout, "float32", 1, channels, 1, width, filters, epilogue=epilogue, weights="bfloat16")
    size, small, pad = st.integers(7, 19), st.integers(1, 2), st.integers(0, 2)
    return ConvWorkload(
        layout,
        "float32",
        batch,
        channels % 3 + 1 if layout == "planar" else channels,
        draw(size),
        draw(size),
        filters,
        kernel=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        strides=(draw(small), draw(small)),
        dilations=(draw(small), draw(small)),
        padding=(draw(pad), draw(pad), draw(pad), draw(pad)),
        epilogue=epilogue,
        weights="bfloat16",
    )


@needs_amx
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), machine=st.sampled_from((AMX, AVX512)), seed=st.integers(0, 2**31))
def test_kernels_multiply_what_is_rounded_and_add_in_float32(
    workload: ConvWorkload, machine: Machine, seed: int
) -> None:
    choices = all_choices(workload, machine)
    np.testing.assert_allclose(*_run(workload, machine, choices[seed % len(choices)], seed), rtol=CLOSE, atol=CLOSE)


@needs_amx
def test_images_of_a_batch_share_tiles_of_pixels() -> None:
    workload = ConvWorkload("blocked", "float32", 8, 40, 3, 3, 48, kernel=(3, 3), padding=(1,) * 4, weights="bfloat16")
    for choice in all_choices(workload, AMX):
        np.testing.assert_allclose(*_run(workload, AMX, choice, 1), rtol=CLOSE, atol=CLOSE)


@needs_amx
@pytest.mark.parametrize("layout", ["blocked", "planar"])
def test_a_border_that_is_wider_than_the_window_gives_results_of_its_own(layout: str) -> None:
    channels = 20 if layout == "blocked" else 2
    work = ConvWorkload(layout, "float32", 2, channels, 9, 8, 40, padding=(2, 2, 1, 1), weights="bfloat16")
    np.testing.assert_allclose(*_run(work, AMX, all_choices(work, AMX)[0], 1), rtol=CLOSE, atol=CLOSE)


def test_every_size_of_a_batch_reads_the_same_weights() -> None:
    work = ConvWorkload("blocked", "float32", 8, 64, 8, 8, 64, kernel=(3, 3), padding=(1,) * 4, weights="bfloat16")
    for machine in (AMX, AVX512):
        for choice in all_choices(work, machine):
            for other in alike(replace(work, batch=1), machine, choice):
                assert other.parameters["blocks"] == choice.parameters["blocks"]
                assert other.weight_bytes == choice.weight_bytes == 64 * 64 * 9 * 2


@pytest.mark.parametrize(
    ("mcpu", "mattr", "instructions"),
    [
        ("sapphirerapids", (), "tdpbf16ps"),
        ("sapphirerapids", ("-amx-bf16",), "vdpbf16ps"),
        ("sapphirerapids", ("-avx512bf16",), ""),
        ("sapphirerapids", ("-avx512f",), ""),
        ("znver4", (), "vdpbf16ps"),
        ("icelake-server", (), ""),
        ("gracemont", (), ""),
    ],
)
def test_cores_that_multiply_bfloat16_are_offered_the_precision(
    mcpu: str, mattr: tuple[str, ...], instructions: str
) -> None:
    capability = TARGET.capability(_profile(mcpu, mattr))
    rules = {rule.name: rule for rule in capability.precisions}
    assert machine_of(Options("x86_64-linux-gnu", mcpu, mattr)).bfloat16 == instructions
    assert ("bf16" in rules) == bool(instructions) == ("bf16" not in capability.precision_refusals)
    assert instructions in (rules["bf16"].reason if instructions else "")
    assert not instructions or (rules["bf16"].gain > 1.0) == (instructions == "tdpbf16ps")


def test_a_processor_without_bfloat16_is_refused_by_name() -> None:
    assert {"amx_bf16", "avx512_bf16"} <= set(needed_flags(SAPPHIRE_RAPIDS))
    assert "amx_bf16" not in needed_flags(replace(SAPPHIRE_RAPIDS, mattr=("-amx-bf16",)))


def test_groups_of_channels_and_other_precisions_stay_float32() -> None:
    from targets.arm_tvm.graph.composites import find_composites

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "d"], ["y"], pads=[1] * 4, group=32),
    ]
    weights = {name: np.ones(shape, np.float32) for name, shape in (("w", (32, 32, 3, 3)), ("d", (32, 1, 3, 3)))}
    model = make(nodes, {"x": (1, 32, 8, 8)}, {"y": (1, 32, 8, 8)}, weights)
    for precision, first, family in (("fp32", "", "winograd"), ("bf16", "bfloat16", "amx_bf16")):
        module = import_relax(model, SAPPHIRE_RAPIDS, precision=precision)
        works = [part.workload for part in find_composites(module["main"]).values()]
        assert [work.weights for work in works] == [first, ""]
        assert all_choices(works[0], machine_of(SAPPHIRE_RAPIDS))[0].family == family


@needs_amx
def test_a_bundle_has_half_the_weights_and_rounds_inputs_alone(tmp_path: Path, cache_dir: Path) -> None:
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["c", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    shapes = {"w": (64, 64, 3, 3), "b": (64,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = make(nodes, {"x": (1, 64, 8, 8)}, {"y": (1, 64, 8, 8)}, weights)
    plan = TargetPlan("bf16", SAPPHIRE_RAPIDS, threads=1, cache_dir=cache_dir)
    artifact = TARGET.build(model, plan, _profile("sapphirerapids"), workdir=tmp_path)
    assert (tmp_path / "payload" / "weights.bin").stat().st_size < 0.51 * 4 * weights["w"].size
    x = rng.normal(size=(1, 64, 8, 8)).astype(np.float32)
    work = ConvWorkload(
        "blocked", "float32", 1, 64, 8, 8, 64, kernel=(3, 3), padding=(1,) * 4, epilogue=("add", "relu")
    )
    wanted = convolved(work, _rounded(x), _rounded(weights["w"]), weights["b"], x)
    result: Any = TARGET.load(artifact).run({"x": x})["y"]
    np.testing.assert_allclose(result, wanted, rtol=CLOSE, atol=CLOSE)


def _profile(mcpu: str, mattr: tuple[str, ...] = ()) -> HardwareProfile:
    options = {"mtriple": "x86_64-linux-gnu", "mcpu": mcpu, "mattr": list(mattr)}
    return HardwareProfile(
        schema=1, name="server", target="tvm", target_options=options, cpu=Cpu(model=mcpu, cores=2, isa=())
    )


def _rounded(values: Any) -> Any:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def _run(work: ConvWorkload, machine: Machine, choice: Choice, seed: int) -> tuple[Any, Any]:
    """What the kernel gives, and what NumPy makes of rounded inputs."""
    rng, matrix = np.random.default_rng(seed), work.layout == "rows"
    source = rng.normal(size=(work.batch, work.channels, work.height, work.width)).astype(np.float32)
    weights = rng.normal(size=(work.filters, work.channels, *work.kernel)).astype(np.float32)
    bias = rng.normal(size=work.filters).astype(np.float32)
    residual = rng.normal(size=(work.batch, work.filters, *work.result)).astype(np.float32)
    wanted = convolved(work, _rounded(source), _rounded(weights), bias, residual)
    given = [source, residual]
    if matrix:
        given = [np.ascontiguousarray(value[0, :, 0].T) for value in given]
    else:
        given = [source if work.layout == "planar" else blocked(source, LANES), blocked(residual, LANES)]
    padded = np.zeros(blocks(work.filters, LANES) * LANES, np.float32)
    padded[: work.filters] = bias
    arguments = [given[0], FAMILIES[choice.family].pack(work, choice, weights, machine), padded]
    found = _call(work, machine, choice, arguments + (given[1:] if "add" in work.epilogue else []))
    if matrix:
        return found.T[None, :, None], wanted
    return found.transpose(0, 1, 4, 2, 3).reshape(work.batch, -1, *work.result)[:, : work.filters], wanted


def _call(work: ConvWorkload, machine: Machine, choice: Choice, arguments: list[Any]) -> Any:
    import tvm

    if machine.bfloat16 is Bfloat16.AMX:
        request_tiles()
    function = FAMILIES[choice.family].emit(work, choice, machine).with_attr("global_symbol", "main")
    result = tvm.runtime.tensor(np.full(result_shape(work, LANES), np.nan, np.float32))
    compiled = tvm.compile(function, target=tvm.target.Target(SAPPHIRE_RAPIDS.target))
    compiled["main"](*map(tvm.runtime.tensor, arguments), result)
    return result.numpy()
