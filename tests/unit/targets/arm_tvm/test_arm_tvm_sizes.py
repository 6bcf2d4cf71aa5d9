"""A range of sizes in one bundle: weights once, any size computed as the reference does, others refused."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_host import AVX2, NEON
from arm_tvm_models import make, needs_aarch64, reference
from integer_models import Quantizing, residual_network
from onnx import helper

from compiler.artifact import Artifact
from compiler.errors import DataError, UnsupportedModel
from compiler.fleet import Range
from compiler.fleet.profile import load_profile
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.graph.fold_constants import fold_constants
from targets.arm_tvm.graph.lower import import_relax
from targets.arm_tvm.graph.packing import choose_alike, choose_kernels
from targets.arm_tvm.graph.quantized.rewrite import DOMAIN, use_integers
from targets.arm_tvm.graph.sizes import bind_size
from targets.arm_tvm.kernels.floating_point.families import FAMILIES
from targets.arm_tvm.kernels.integer.specs import Dot
from targets.arm_tvm.kernels.machine import machine_of
from targets.arm_tvm.run.emulate import host_arch

pytestmark = pytest.mark.needs_tvm
HOST = Options(f"{host_arch()}-linux-gnu")
PI5 = Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+fullfp16", "+dotprod"))
DRAW = np.random.default_rng(11)


def network(batch: int | str = "batch") -> ir.Model:
    """Images and a table for all of them → scores, and the sum over time of a recurrent layer's second axis."""
    draw = np.random.default_rng(7)
    weights = {
        "w": draw.standard_normal((32, 16, 3, 3)) / 12,
        "m": draw.standard_normal((32, 5)),
        "lw": draw.standard_normal((1, 16, 5)) / 3,
        "lr": draw.standard_normal((1, 16, 4)) / 3,
        "first": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "m"], ["s"], name="gemm"),
        helper.make_node("Mul", ["s", "table"], ["scores"], name="scale"),
        helper.make_node("Unsqueeze", ["scores", "first"], ["steps"], name="steps"),
        helper.make_node("LSTM", ["steps", "lw", "lr"], ["states"], name="lstm", hidden_size=4),
    ]
    inputs = {"x": (batch, 16, 9, 9), "table": (1, 5)}
    return make(nodes, inputs, {"scores": (batch, 5), "states": (1, 1, batch, 4)}, weights)


def inputs_of(batch: int) -> dict[str, np.ndarray]:
    return {
        "x": DRAW.standard_normal((batch, 16, 9, 9)).astype(np.float32),
        "table": DRAW.standard_normal((1, 5)).astype(np.float32),
    }


def build(model: ir.Model, dims: dict[str, Range], workdir: Path, cache_dir: Path, options: Options = HOST) -> Artifact:
    plan = TargetPlan("fp32", options, dims=dims, threads=1, cache_dir=cache_dir)
    return TARGET.build(model, plan, load_profile("raspberry-pi-5"), workdir=workdir)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Artifact:
    """Built at 1 and 3 for every batch from 1 to 7."""
    return build(network(), {"batch": Range(1, 3, 7)}, tmp_path_factory.mktemp("bundle"), cache_dir)


def assert_right(found: dict[str, np.ndarray], inputs: dict[str, np.ndarray], model: ir.Model) -> None:
    expected = reference(model, inputs)
    assert {name: array.shape for name, array in found.items()} == {n: array.shape for n, array in expected.items()}
    assert all(TOLERANCES["fp32"].accepts(stats) for stats in compare_all(expected, found).values())


def test_every_batch_of_the_range_is_computed_as_the_reference_does(bundle: Artifact) -> None:
    runner = TARGET.load(bundle)
    for batch in range(1, 8):
        inputs = inputs_of(batch)
        assert_right(runner.run(inputs), inputs, network())


def test_a_bundle_that_stays_loaded_takes_one_batch_after_another(bundle: Artifact) -> None:
    served = TARGET.load(bundle).stay_loaded()
    try:
        for batch in (1, 7, 2, 3, 3, 5, 1):
            inputs = inputs_of(batch)
            assert_right(served.run(inputs), inputs, network())
    finally:
        served.close()


def test_the_borders_have_the_names_of_the_model(bundle: Artifact) -> None:
    assert [spec.shape for spec in bundle.inputs] == [("batch", 16, 9, 9), (1, 5)]
    assert [spec.shape for spec in bundle.outputs] == [("batch", 5), (1, 1, "batch", 4)]


def test_weights_are_stored_once(bundle: Artifact, tmp_path: Path, cache_dir: Path) -> None:
    fixed = build(network(3), {}, tmp_path, cache_dir)
    assert (bundle.root / "payload/weights.bin").stat().st_size == (fixed.root / "payload/weights.bin").stat().st_size


@pytest.mark.parametrize("batch", [0, 8])
def test_a_batch_out_of_the_range_is_refused_by_name(bundle: Artifact, tmp_path: Path, batch: int) -> None:
    with pytest.raises(DataError, match="batch"):
        TARGET.load(bundle).run(inputs_of(batch))
    files = [tmp_path / name for name in ("x.npy", "table.npy", "scores.npy", "states.npy")]
    for file, array in zip(files, inputs_of(batch).values(), strict=False):
        np.save(file, array)
    ended = subprocess.run([bundle.root / "run", *files], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "batch" in ended.stderr
    assert "1 to 7" in ended.stderr


def test_a_request_out_of_the_range_is_refused_by_name_and_the_program_goes_on(bundle: Artifact) -> None:
    served = TARGET.load(bundle).stay_loaded()
    try:
        # past the check of its own: the program must not rely on it
        served._artifact = _without_check(bundle)
        with pytest.raises(DataError, match="batch is 8; this bundle takes 1 to 7"):
            served.run(inputs_of(8))
    finally:
        served.close()


def _without_check(artifact: Artifact) -> Artifact:
    sizes = dict(artifact.facts["sizes"])  # type: ignore[call-overload]
    return replace(artifact, facts={**artifact.facts, "sizes": sizes | {"most": 99}})


def test_help_says_which_sizes_are_taken(bundle: Artifact) -> None:
    shown = subprocess.run([bundle.root / "run", "--help"], capture_output=True, text=True, check=True).stdout
    assert "input 1: float32 1x16x9x9 to 7x16x9x9 'x'" in shown
    assert "batch: any size from 1 to 7" in shown


def test_files_of_different_batches_are_refused(cache_dir: Path, tmp_path: Path) -> None:
    model = make([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ("n", 2), "b": ("n", 2)}, {"y": ("n", 2)})
    artifact = build(model, {"n": Range(1, 1, 4)}, tmp_path / "out", cache_dir)
    inputs = {"a": np.ones((2, 2), np.float32), "b": np.ones((3, 2), np.float32)}
    with pytest.raises(DataError, match="takes inputs of one n; given are"):
        TARGET.load(artifact).run(inputs)
    for name, array in inputs.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = [tmp_path / name for name in ("a.npy", "b.npy", "y.npy")]
    ended = subprocess.run([artifact.root / "run", *files], capture_output=True, text=True)
    assert (ended.returncode, "shape is 3x2, input 'b' takes 2x2" in ended.stderr) == (2, True)


def test_a_range_of_one_size_is_built_at_that_size_alone(cache_dir: Path, tmp_path: Path) -> None:
    artifact, inputs = build(network(), {"batch": Range(3, 3, 3)}, tmp_path, cache_dir), inputs_of(3)
    assert "sizes" not in artifact.facts and artifact.inputs[0].shape == (3, 16, 9, 9)
    assert_right(TARGET.load(artifact).run(inputs), inputs, network())


def test_every_width_is_built_where_pixels_are_mixed(cache_dir: Path, tmp_path: Path) -> None:
    weights = {"w": DRAW.standard_normal((8, 8, 3, 3)) / 8}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", strides=[1, 2], pads=[1] * 4)]
    model = make(nodes, {"x": (1, 8, 6, "width")}, {"y": (1, 8, 6, "half")}, weights)
    runner = TARGET.load(build(model, {"width": Range(5, 6, 8)}, tmp_path / "out", cache_dir))
    for width in range(5, 9):
        inputs = {"x": DRAW.standard_normal((1, 8, 6, width)).astype(np.float32)}
        assert_right(runner.run(inputs), inputs, model)
    with pytest.raises(DataError, match="given are 'x'"):
        runner.run({"x": np.zeros((1, 8, 6, 9), np.float32)})


def test_two_ranges_are_refused() -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n", "m")}, {"y": ("n", "m")})
    with pytest.raises(UnsupportedModel, match=r"builds a range of one dimension, and these are 2: n 1\.\.4"):
        build(model, {"n": Range(1, 1, 4), "m": Range(1, 1, 4)}, Path(), Path())


@pytest.mark.needs_emulator
@needs_aarch64
def test_integers_of_any_batch_are_those_of_each_sample_on_arm(cache_dir: Path, tmp_path: Path) -> None:
    net = Quantizing()
    image = net.steps("image", 0.03)
    net.add("Conv", [image, net.weights("w", (32, 16, 3, 3)), net.bias("b", 32)], "c", pads=[1] * 4)
    mean = net.steps(net.add("GlobalAveragePool", [net.steps("c", 0.05)], "g"), 0.05)
    net.add("Gemm", [net.add("Flatten", [mean], "f"), net.weights("m", (32, 10), 1)], "scores")
    model = net.model({"image": ("batch", 16, 8, 8)}, {"scores": ("batch", 10)})
    runner = TARGET.load(build(model, {"batch": Range(1, 2, 4)}, tmp_path / "out", cache_dir, PI5))
    images = DRAW.standard_normal((3, 16, 8, 8)).astype(np.float32)
    (together,) = runner.run({"image": images}).values()
    single = [runner.run({"image": images[index : index + 1]})["scores"] for index in (0, 2)]
    np.testing.assert_array_equal(together[[0, 2]], np.concatenate(single))


@pytest.mark.parametrize("dot", ["sdot", "smmla", "widen", "avx512_vnni", "avx_vnni", "amx_int8", "generic"])
def test_integer_weights_are_packed_alike_at_every_batch(dot: Dot) -> None:
    model = residual_network(batch="batch")
    best = use_integers(bind_size(model, "batch", 8), dot)
    for batch in (1, 32):
        other = use_integers(bind_size(model, "batch", batch), dot, packings=best.packings)
        assert packed_constants(other.model) <= packed_constants(best.model)


def packed_constants(model: ir.Model) -> set[bytes]:
    """All that kernels are given beside activations."""
    own = [node for node in model.graph if node.domain == DOMAIN]
    values = [value.const_value for node in own for value in node.inputs if value is not None]
    return {tensor.numpy().tobytes() for tensor in values if tensor is not None}


@pytest.mark.parametrize("options", [NEON, AVX2], ids=["neon", "avx2"])
def test_float_weights_are_packed_alike_at_every_batch(options: Options) -> None:
    machine = machine_of(options)
    model = network()
    modules = [fold_constants(import_relax(bind_size(model, "batch", size), options)) for size in (8, 1, 32)]
    chosen = choose_kernels(modules[0], machine, schedule={}, others=modules[1:])
    wanted = [FAMILIES[way.family].pack(part.workload, way, part.weights, machine) for part, way in chosen.values()]
    for module in modules[1:]:
        others = choose_alike(module, machine, chosen)
        packed = [FAMILIES[way.family].pack(part.workload, way, part.weights, machine) for part, way in others.values()]
        assert len(packed) == len(wanted)
        assert all(np.array_equal(*pair) for pair in zip(packed, wanted, strict=True))
