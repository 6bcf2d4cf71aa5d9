"""Builds bundles and runs them: for x86_64 on the host, for aarch64 under QEMU."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import conv_model, make, needs_aarch64, reference
from onnx import TensorProto, helper

from compiler.artifact import Artifact, Evidence
from compiler.errors import DataError, ToolchainFailed, UnsupportedModel
from compiler.fleet.profile import HardwareProfile
from compiler.model.numerics import TOLERANCES, compare_all, write_arrays
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.run import run_passes
from compiler.passes.select_branches import SelectBranches
from compiler.target import TargetPlan
from compiler.target.request import ExecuteTask
from compiler.target.worker import execute
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.graph.capability import find_details
from targets.arm_tvm.run.emulate import emulator, host_arch

pytestmark = pytest.mark.needs_tvm
PI5 = Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+fullfp16", "+dotprod"))
HOST = Options(f"{host_arch()}-linux-gnu")
IMAGE = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
aarch64 = pytest.param(PI5, marks=[pytest.mark.needs_emulator, needs_aarch64], id="aarch64")
host = pytest.param(HOST, id="host")


def build(model, options: Options, workdir: Path, cache_dir: Path, profile: HardwareProfile) -> Artifact:
    plan = TargetPlan("fp32", options, threads=2, cache_dir=cache_dir)
    return TARGET.build(model, plan, profile, workdir=workdir)


@pytest.mark.parametrize("options", [aarch64, host])
def test_bundle_computes_what_the_reference_computes(options, tmp_path, cache_dir, pi5):
    model = conv_model()
    runner = TARGET.load(build(model, options, tmp_path / "out", cache_dir, pi5))

    found = runner.run({"image": IMAGE})

    (stats,) = compare_all(reference(model, {"image": IMAGE}), found).values()
    assert TOLERANCES["fp32"].accepts(stats)
    assert runner.evidence == (Evidence.HOST if options is HOST else Evidence.EMULATOR)


def test_bundle_names_and_orders_its_tensors_as_the_model_does(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("Sub", ["second in", "first.in"], ["d/1"]), helper.make_node("Neg", ["d/1"], ["e"])]
    shapes = {"first.in": (2, 3), "second in": (2, 3)}
    model = make(nodes, shapes, {"e": (2, 3), "d/1": (2, 3)})
    inputs = {"first.in": np.full((2, 3), 5, np.float32), "second in": np.full((2, 3), 2, np.float32)}

    found = TARGET.load(build(model, HOST, tmp_path / "out", cache_dir, pi5)).run(inputs)

    assert list(found) == ["e", "d/1"]
    np.testing.assert_array_equal(found["d/1"], np.full((2, 3), -3, np.float32))
    np.testing.assert_array_equal(found["e"], np.full((2, 3), 3, np.float32))


@pytest.mark.parametrize("options", [aarch64, host])
def test_integers_booleans_and_scalars_pass_through(options, tmp_path, cache_dir, pi5):
    nodes = [
        helper.make_node("Where", ["mask", "i", "zero"], ["kept"]),
        helper.make_node("Not", ["mask"], ["inverse"]),
        helper.make_node("ReduceSum", ["i"], ["sum"], keepdims=0),
    ]
    kinds = {"mask": TensorProto.BOOL, "inverse": TensorProto.BOOL}
    kinds |= dict.fromkeys(("i", "kept", "sum"), TensorProto.INT64)
    weights = {"zero": np.array(0, np.int64)}
    outputs = {"kept": (4,), "inverse": (4,), "sum": ()}
    model = make(nodes, {"mask": (4,), "i": (4,)}, outputs, weights, dtypes=kinds)
    inputs = {"mask": np.array([True, False, True, True]), "i": np.array([1, 2, 3, 1 << 40])}

    found = TARGET.load(build(model, options, tmp_path / "out", cache_dir, pi5)).run(inputs)

    for name, expected in reference(model, inputs).items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_any_number_of_threads_gives_the_same_bits(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Sigmoid", ["p"], ["y"])]
    rng = np.random.default_rng(1)
    model = make(nodes, {"x": (96, 64)}, {"y": (96, 80)}, {"w": rng.standard_normal((64, 80))})
    runner = TARGET.load(build(model, HOST, tmp_path / "out", cache_dir, pi5))
    x = {"x": rng.standard_normal((96, 64)).astype(np.float32)}
    results = []
    for threads in (1, 2, 3):
        runner.threads = threads
        results.append(runner.run(x)["y"].tobytes())
    assert len(set(results)) == 1
    (stats,) = compare_all(reference(model, x), runner.run(x)).values()
    assert TOLERANCES["fp32"].accepts(stats)


def test_model_without_arithmetic_is_built(tmp_path, cache_dir, pi5):
    model = make([helper.make_node("Identity", ["x"], ["y"])], {"x": (2, 2)}, {"y": (2, 2)})
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    found = TARGET.load(build(model, HOST, tmp_path / "out", cache_dir, pi5)).run({"x": x})
    np.testing.assert_array_equal(found["y"], x)


def test_sorting_model_brings_the_library_that_sorts(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("TopK", ["x", "k"], ["values", "indices"])]
    kinds = {"indices": TensorProto.INT64}
    model = make(nodes, {"x": (6,)}, {"values": (2,), "indices": (2,)}, {"k": np.array([2])}, dtypes=kinds)
    artifact = build(model, HOST, tmp_path / "out", cache_dir, pi5)
    assert "runtime/libtvm_runtime_extra.so" in artifact.files
    found = TARGET.load(artifact).run({"x": np.array([1, 9, 3, 7, 5, 0], np.float32)})
    np.testing.assert_array_equal(found["indices"], [1, 3])


@pytest.mark.parametrize("options", [PI5, HOST], ids=["aarch64", "host"])
def test_same_model_gives_the_same_bytes_in_another_folder_and_another_cache(options, tmp_path, cache_dir, pi5):
    other_cache = tmp_path / "other-cache"
    first = build(conv_model(), options, tmp_path / "one", cache_dir, pi5)
    if options is PI5:  # the libraries take long to make, and the first build has them now
        shutil.copytree(cache_dir / "tvm-runtime", other_cache / "tvm-runtime")
    second = build(conv_model(), options, tmp_path / "deeper" / "two", other_cache, pi5)

    assert first.files == second.files
    assert digests(first) == digests(second)
    assert not [name for name in first.files if str(tmp_path).encode() in (first.root / name).read_bytes()]


def digests(artifact: Artifact) -> dict[str, str]:
    return {name: hashlib.sha256((artifact.root / name).read_bytes()).hexdigest() for name in artifact.files}


@needs_aarch64
@pytest.mark.needs_emulator
def test_a_condition_that_data_decide_takes_either_branch(tmp_path, cache_dir, pi5):
    """TVM imports no If: the model of both branches is what a build gives it."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y) <float zero = {0}>
        { m = ReduceMax<keepdims = 0>(x) c = Greater(m, zero)
          y = If(c) <then_branch = t () => (float[1,4] p) { h = Exp(x) p = Neg(h) },
                     else_branch = e () => (float[1,4] q) { a = Abs(x) q = Sqrt(a) }> }"""
    source, model = ir.from_onnx_text(text), ir.from_onnx_text(text)
    run_passes(model, [INFER_SHAPES, SelectBranches(lambda node: node.op_type == "If"), *TARGET.passes(pi5)])
    runner = TARGET.load(build(model, PI5, tmp_path / "out", cache_dir, pi5))
    for sign in (1, -1):
        inputs = {"x": sign * np.array([[0.5, 1.5, 0.25, 4.0]], np.float32)}
        (stats,) = compare_all(reference(source, inputs), runner.run(inputs)).values()
        assert TOLERANCES["fp32"].accepts(stats)


@needs_aarch64
@pytest.mark.needs_emulator
def test_instruction_count_grows_with_the_work(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    counts = []
    for size in (16, 32):
        model = make(nodes, {"x": (size, size)}, {"y": (size, size)})
        runner = TARGET.load(build(model, PI5, tmp_path / str(size), cache_dir, pi5))
        counts.append(runner.count_instructions({"x": np.ones((size, size), np.float32)}))
    assert 16**3 / 4 < counts[0] < counts[1]


def test_unsupported_form_of_a_node_is_refused_by_name(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("MaxPool", ["x"], ["y", "where"], name="pool7", kernel_shape=[2, 2])]
    model = make(nodes, {"x": (1, 1, 4, 4)}, {"y": (1, 1, 3, 3)})
    with pytest.raises(UnsupportedModel, match="MaxPool 'pool7': only its first output"):
        build(model, HOST, tmp_path / "out", cache_dir, pi5)


def test_normalization_with_a_broadcast_scale_is_refused(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("LayerNormalization", ["x", "s"], ["y"], name="norm", axis=1)]
    model = make(nodes, {"x": (1, 3, 4)}, {"y": (1, 3, 4)}, {"s": np.ones(4)})
    with pytest.raises(UnsupportedModel, match="LayerNormalization 'norm': its scale"):
        build(model, HOST, tmp_path / "out", cache_dir, pi5)


@pytest.mark.parametrize(
    ("scale", "mode", "reason"),
    [(1.7, "linear", "size is rounded"), (3.0, "nearest", "power of two"), (2.0, "nearest", ""), (1.5, "linear", "")],
)
def test_resize_is_taken_where_it_is_exact(scale, mode, reason):
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode)]
    size = int(4 * scale)
    scales = {"scales": np.array([1, 1, scale, scale], np.float32)}
    model = make(nodes, {"x": (1, 1, 4, 4)}, {"y": (1, 1, size, size)}, scales)
    refusals = [refusal.reason for refusal in find_details(model)]
    assert all(reason in found for found in refusals)
    assert bool(refusals) == bool(reason)


def test_node_that_the_importer_rejects_is_named(tmp_path, cache_dir, pi5):
    nodes = [helper.make_node("Pow", ["x", "two"], ["y"], name="square")]
    model = make(nodes, {"x": (2,)}, {"y": (2,)}, {"two": np.array([2])})
    with pytest.raises(UnsupportedModel, match="Pow 'square': TVM cannot import the node"):
        build(model, HOST, tmp_path / "out", cache_dir, pi5)


def test_symbolic_dimension_is_refused(tmp_path, cache_dir, pi5):
    model = make([helper.make_node("Neg", ["x"], ["y"])], {"x": ("batch", 2)}, {"y": ("batch", 2)})
    with pytest.raises(UnsupportedModel, match="'x' has no fixed shape"):
        build(model, HOST, tmp_path / "out", cache_dir, pi5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache_dir):
    """A host bundle, copied to another place after it was built."""
    from compiler.fleet.profile import load_profile

    place = tmp_path_factory.mktemp("bundle")
    artifact = build(conv_model("the image"), HOST, place / "built", cache_dir, load_profile("raspberry-pi-5"))
    shutil.copytree(artifact.root, place / "copied there")
    shutil.rmtree(artifact.root)
    np.save(place / "good.npy", IMAGE)
    return place


def start(folder: Path, *arguments: str, threads: int = 1) -> subprocess.CompletedProcess:
    command = [folder / "copied there" / "run", *arguments]
    environment = {"TVM_NUM_THREADS": str(threads)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_copied_folder_runs_from_any_place(folder):
    assert start(folder, "good.npy", "out.npy").returncode == 0
    assert np.load(folder / "out.npy").shape == (1, 5)


def test_help_lists_inputs_and_outputs(folder):
    text = start(folder, "--help").stdout
    assert "input 1: float32 1x3x16x16 'the image'" in text
    assert "output 1: float32 1x5 'scores'" in text


def test_repeat_prints_ordered_latency_percentiles(folder):
    report = json.loads(start(folder, "--repeat", "20", "good.npy", "out.npy", threads=2).stdout)
    latency = report["latency_us"]
    assert report["repeat"] == 20
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["sorted"] == sorted(latency["sorted"])
    assert len(report["processor_us"]) == 20 and 0 <= report["processor_us"][0] <= report["processor_us"][-1]
    assert [latency["sorted"][rank - 1] for rank in (10, 18, 20)] == [latency["p50"], latency["p90"], latency["p99"]]


BAD_FILES = {
    "shape is 1x3x8x8": lambda: IMAGE[:, :, ::2, ::2].copy(),
    "shape is 3x16x16": lambda: IMAGE[0],
    "dtype is '<f8'": lambda: IMAGE.astype(np.float64),
    "dtype is '>f4'": lambda: IMAGE.astype(">f4"),
    "Fortran order": lambda: np.asfortranarray(IMAGE),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_array_that_does_not_fit_is_refused(folder, message):
    np.save(folder / "bad.npy", BAD_FILES[message]())
    ended = start(folder, "bad.npy", "out.npy")
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "truncated header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "too long"),
        (b"\x93NUMPY\x01\x00\x04\x00{'a'", "no 'descr'"),
    ],
)
def test_damaged_npy_is_refused(folder, data, message):
    (folder / "bad.npy").write_bytes(data)
    ended = start(folder, "bad.npy", "out.npy")
    assert ended.returncode == 2
    assert message in ended.stderr


def test_truncated_and_overlong_data_are_refused(folder):
    whole = (folder / "good.npy").read_bytes()
    for data, message in ((whole[:-1], "truncated data"), (whole + b"x", "trailing data")):
        (folder / "bad.npy").write_bytes(data)
        ended = start(folder, "bad.npy", "out.npy")
        assert ended.returncode == 2
        assert message in ended.stderr


@pytest.mark.parametrize(
    "arguments", [["good.npy"], ["--repeat", "0", "a", "b"], ["--fast", "a", "b"], ["no.npy", "b"]]
)
def test_wrong_command_line_ends_with_2(folder, arguments):
    ended = start(folder, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("run: ")


def test_damaged_model_library_ends_with_1(folder, tmp_path):
    shutil.copytree(folder / "copied there", tmp_path / "copied there")
    (tmp_path / "copied there" / "payload" / "model.so").write_bytes(b"\x7fELF")
    shutil.copy(folder / "good.npy", tmp_path)
    ended = start(tmp_path, "good.npy", "out.npy")
    assert ended.returncode == 1
    assert "model.so" in ended.stderr


def test_report_tells_start_up_memory_and_where_it_ran(folder):
    report = json.loads(start(folder, "--repeat", "1", "good.npy", "out.npy").stdout)
    allowed = sorted(os.sched_getaffinity(0))
    assert report["load_ms"] > 0 and report["first_ms"] > 0
    assert 1 << 10 < report["peak_kib"] < 1 << 18
    assert report["threads"] == 1
    assert sorted(report["cpus"]) == allowed[: min(4, len(allowed))]  # the profile has four fast cores


def test_runner_keeps_to_the_cpus_it_is_given(folder):
    first = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(first), folder / "copied there" / "run", "--repeat", "1", "good.npy", "out.npy"]
    ended = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, timeout=60)
    report = json.loads(ended.stdout)
    assert (report["cpus"], report["threads"]) == ([first], 1)


def test_threads_are_no_more_than_the_cores_of_the_device(folder, tmp_path):
    shutil.copytree(folder / "copied there", tmp_path / "one")
    (tmp_path / "one" / "payload" / "cores.txt").write_text("threads 9\nfast_cores 1\n")
    command = [tmp_path / "one" / "run", "--repeat", "1", folder / "good.npy", tmp_path / "out.npy"]
    report = json.loads(subprocess.run(command, env={}, capture_output=True, text=True, timeout=60).stdout)
    assert (len(report["cpus"]), report["threads"]) == (1, 1)
    asked = subprocess.run(command, env={"TVM_NUM_THREADS": "64"}, capture_output=True, text=True, timeout=60)
    assert json.loads(asked.stdout)["threads"] == 1
    assert "as many threads are started as the model has cores, 1" in asked.stderr


@pytest.mark.parametrize("text", ["", "threads 0\nfast_cores 1\n", "threads 2\n"])
def test_cores_file_without_its_numbers_ends_with_1(folder, tmp_path, text):
    shutil.copytree(folder / "copied there", tmp_path / "copied there")
    (tmp_path / "copied there" / "payload" / "cores.txt").write_text(text)
    shutil.copy(folder / "good.npy", tmp_path)
    ended = start(tmp_path, "good.npy", "out.npy")
    assert ended.returncode == 1
    assert "cores.txt" in ended.stderr


@pytest.mark.parametrize("change", [-1, 64])
def test_weights_of_another_size_end_with_1(folder, tmp_path, change):
    shutil.copytree(folder / "copied there", tmp_path / "copied there")
    weights = tmp_path / "copied there" / "payload" / "weights.bin"
    os.truncate(weights, weights.stat().st_size + change)
    shutil.copy(folder / "good.npy", tmp_path)
    ended = start(tmp_path, "good.npy", "out.npy")
    assert ended.returncode == 1
    assert "weights.bin" in ended.stderr and "copy the folder again" in ended.stderr


@pytest.mark.parametrize("options", [aarch64, host])
def test_weights_are_resident_once(options, tmp_path, cache_dir, pi5):
    """A copy of them would show: they weigh more than everything else in the process."""
    megabytes, peaks = 48, []
    rows = megabytes * (1 << 20) // 4 // 1024
    for width in (1024, 1):
        weight = np.ones((rows, width), np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
        model = make(nodes, {"x": (1, rows)}, {"y": (1, width)}, {"w": weight})
        runner = TARGET.load(build(model, options, tmp_path / str(width), cache_dir, pi5))
        peaks.append(runner.peak_memory_bytes({"x": np.ones((1, rows), np.float32)}))
    weights_mib = (peaks[0] - peaks[1]) / (1 << 20)
    assert megabytes * 0.9 < weights_mib < megabytes * 1.1


def test_host_bundle_is_executed_although_instructions_are_asked_for(tmp_path, cache_dir, pi5):
    artifact = build(conv_model(), HOST, tmp_path / "out", cache_dir, pi5)
    write_arrays(tmp_path / "in.npz", {"image": IMAGE})
    inputs, outputs = (tmp_path / "in.npz",), (tmp_path / "out.npz",)
    answer = execute(ExecuteTask(artifact, inputs, outputs, counted=inputs[0]))
    assert (answer.evidence, answer.instructions) == ("measured-host", None)
    assert (tmp_path / "out.npz").exists()


def test_runner_checks_inputs_and_reports_failures(tmp_path, cache_dir, pi5):
    artifact = build(conv_model(), HOST, tmp_path / "out", cache_dir, pi5)
    runner = TARGET.load(artifact)
    with pytest.raises(DataError, match="takes inputs image"):
        runner.run({"picture": IMAGE})
    with pytest.raises(DataError, match="takes float32"):
        runner.run({"image": IMAGE.astype(np.float64)})
    assert len(runner.latencies_ms({"image": IMAGE}, 3)) == 3
    os.truncate(artifact.root / "payload" / "model.so", 100)
    with pytest.raises(ToolchainFailed, match="bundle failed"):
        runner.run({"image": IMAGE})


@needs_aarch64
@pytest.mark.needs_emulator
def test_unknown_core_is_emulated_by_another_and_says_so(tmp_path, cache_dir, pi5):
    runner = TARGET.load(
        build(conv_model(), Options("aarch64-linux-gnu", "cortex-x4"), tmp_path / "out", cache_dir, pi5)
    )
    assert "cortex-x4" in runner.note
    assert emulator(runner.cpu)[-1] == "max"
