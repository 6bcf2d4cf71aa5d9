from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest

from compiler.artifact import Artifact, Evidence
from compiler.compress.quant import quantize
from compiler.errors import DataError, ProfileError, TargetUnavailable, UnsupportedModel
from compiler.fleet import Range
from compiler.fleet.detect import host_isa
from compiler.fleet.machine import available_cpus
from compiler.fleet.profile import Cpu, HardwareProfile, load_profile, validate_options
from compiler.model.graph import infer_strictly
from compiler.model.numerics import TOLERANCES, compare
from compiler.model.reference import Unoptimized
from compiler.target import Array, TargetPlan
from compiler.target.capability import find_unsupported
from compiler.target.testing import conformance_cases, evaluate, onnx_backend_cases, text_case
from targets.intel_openvino import TARGET, Options
from targets.intel_openvino.isa import VARIABLE
from targets.intel_openvino.quantized import INT8
from targets.intel_openvino.rules import computes
from targets.intel_openvino.toolchain import openvino

pytestmark = pytest.mark.needs_openvino
_GENOA = load_profile("amd-epyc-genoa")
_NET = text_case(
    "net",
    "(float[N,3,8,8] x) => (float[N,4,8,8] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Mul(r, k) }",
    weights={"w": (4, 3, 3, 3), "b": (4,), "k": (4, 1, 1)},
    batches=(1, 3, 4),
)


def _build(folder: Path, precision: str = "fp32", options: Options | None = None, *, threads: int = 1) -> Artifact:
    plan = TargetPlan(precision, options or Options(), dims=_NET.dims, threads=threads)
    folder.mkdir(exist_ok=True)
    return TARGET.build(_NET.model(), plan, _GENOA, workdir=folder)


def _bytes(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.root / name).read_bytes() for name in artifact.files}


def test_two_builds_in_one_process_give_the_same_bytes(tmp_path: Path) -> None:
    assert _bytes(_build(tmp_path / "a")) == _bytes(_build(tmp_path / "elsewhere"))


@pytest.mark.slow
def test_every_conformance_model_builds_to_the_same_bytes_twice(tmp_path: Path) -> None:
    differing, refused = [], []
    capability = TARGET.capability(_GENOA)
    for case in conformance_cases():
        if find_unsupported(case.model(), capability):
            continue  # refused before it is built
        plan = TargetPlan("fp32", Options(), dims=case.dims)
        try:
            pairs = [TARGET.build(case.model(), plan, _GENOA, workdir=tmp_path / case.name / part) for part in "ab"]
        except UnsupportedModel:
            refused.append(case.name)
            continue
        differing += [case.name] if _bytes(pairs[0]) != _bytes(pairs[1]) else []
    assert differing == []
    assert refused == ["cast", "int64-arithmetic"]  # integers of 64 bits of no known range


def test_another_process_gives_the_same_bytes_and_no_path_of_the_machine(tmp_path: Path) -> None:
    here = _bytes(_build(tmp_path / "here"))
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_intel_openvino as t;"
        "t._build(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there"), str(Path(__file__).parent)], check=True)
    assert here == {name: (tmp_path / "there" / name).read_bytes() for name in here}
    assert str(tmp_path).encode() not in b"".join(here.values())
    assert b"border" not in b"".join(here.values())


def test_nothing_but_the_named_files_is_left_in_the_folder(tmp_path: Path) -> None:
    artifact = _build(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(artifact.files)


def test_range_of_the_batch_stays_in_the_ir_and_holds(tmp_path: Path) -> None:
    artifact = _build(tmp_path)
    assert artifact.inputs[0].shape == ("N", 3, 8, 8)
    assert 'shape="1..4,3,8,8"' in (tmp_path / "payload/model.xml").read_text()
    runner = TARGET.load(artifact)
    assert runner.run({"x": np.zeros((4, 3, 8, 8), np.float32)})["y"].shape == (4, 4, 8, 8)
    with pytest.raises(DataError, match=r"1\.\.4"):
        runner.run({"x": np.zeros((5, 3, 8, 8), np.float32)})


def test_inputs_of_another_type_or_name_are_refused(tmp_path: Path) -> None:
    runner = TARGET.load(_build(tmp_path))
    with pytest.raises(DataError, match=r"x \(float32\); given: x \(float64\)"):
        runner.run({"x": np.zeros((1, 3, 8, 8), np.float64)})
    with pytest.raises(DataError, match="given: z"):
        runner.run({"z": np.zeros((1, 3, 8, 8), np.float32)})


@pytest.mark.parametrize("precision", ["fp32", "fp16-weights", "bf16"])
def test_result_is_inside_the_tolerance_of_its_precision(precision: str, tmp_path: Path) -> None:
    if not computes(precision, host_isa()):
        pytest.skip(f"this processor does not compute in {precision}")
    rule = next(rule for rule in TARGET.capability(_GENOA).precisions if rule.name == precision)
    result, evidence = _loaded_in_own_process(tmp_path, precision)
    stats = compare(evaluate(_NET.proto(), _NET.inputs[1])["y"], result)
    assert TOLERANCES[rule.tolerance].accepts(stats), stats
    assert evidence == Evidence.HOST


@pytest.mark.skipif("avx512f" not in host_isa(), reason="this processor has nothing beyond the device's AVX2")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_in_a_process_limited_to_an_older_processor_is_refused(precision: str, tmp_path: Path) -> None:
    if not computes(precision, host_isa()):
        pytest.skip(f"this processor does not compute in {precision}")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        _loaded_in_own_process(tmp_path, precision, ONEDNN_MAX_CPU_ISA="AVX2")
    assert f"limited to AVX2, with which OpenVINO computes nothing in {precision}" in failed.value.stderr


_RUN_BUILT = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]); import numpy as np, test_intel_openvino as t
runner = t.TARGET.load(t._build(Path(sys.argv[1]) / "own", sys.argv[2]))
np.save(Path(sys.argv[1]) / "y.npy", runner.run(t._NET.inputs[1])["y"])
print(runner.evidence)
"""


def _loaded_in_own_process(folder: Path, precision: str, **environment: str) -> tuple[Array, str]:
    """What the net computes where no other model has limited the instruction sets, and the evidence."""
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE} | environment
    command = [sys.executable, "-c", _RUN_BUILT, str(folder), precision, str(Path(__file__).parent)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return np.load(folder / "y.npy"), done.stdout.strip()


def test_fp32_is_not_computed_in_bfloat16_where_the_processor_has_it(tmp_path: Path) -> None:
    inputs = _NET.inputs[1]
    stats = compare(evaluate(_NET.proto(), inputs)["y"], TARGET.load(_build(tmp_path)).run(inputs)["y"])
    assert stats.sqnr_db > 100


def test_half_precision_weights_halve_the_file(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    big = text_case("big", "(float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", weights={"w": (64, 64)})
    sizes = []
    for folder, precision in zip(folders, ("fp32", "fp16-weights"), strict=True):
        TARGET.build(big.model(), TargetPlan(precision, Options()), _GENOA, workdir=folder)
        sizes.append((folder / "payload/model.bin").stat().st_size)
    assert sizes == [64 * 64 * 4, 64 * 64 * 2]


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("intel-n100", ["fp32", "int8", "int4-weights", "fp16-weights"]),
        ("amd-epyc-genoa", ["fp32", "bf16", "int8", "int4-weights", "fp16-weights"]),
        ("intel-xeon-sapphire-rapids", ["fp32", "bf16", "fp16", "int8", "int4-weights", "fp16-weights"]),
    ],
)
def test_precisions_follow_the_isa_of_the_profile(profile: str, names: list[str]) -> None:
    capability = TARGET.capability(load_profile(profile))
    assert [rule.name for rule in capability.precisions] == names
    assert set(capability.precision_refusals) == {"bf16", "fp16"} - set(names)


def test_streams_and_threads_are_the_plans_and_stand_in_the_facts(tmp_path: Path) -> None:
    latency = _build(tmp_path / "a", threads=8).facts["config"]
    busy = _build(tmp_path / "b", options=Options(performance_hint="throughput"), threads=8).facts["config"]
    own = _build(tmp_path / "c", options=Options(num_streams=3, threads=6), threads=8).facts["config"]
    assert [(c["NUM_STREAMS"], c["INFERENCE_NUM_THREADS"]) for c in (latency, busy, own)] == [  # type: ignore[index]
        ("1", "8"),
        ("4", "8"),
        ("3", "6"),
    ]


def test_a_request_has_the_threads_of_one_stream_as_on_the_device(tmp_path: Path) -> None:
    cpus = available_cpus()
    alone = TARGET.load(_build(tmp_path / "a", threads=8 * cpus))
    shared = TARGET.load(_build(tmp_path / "b", options=Options(num_streams=8), threads=8 * cpus))
    assert f"it ran on {cpus} threads" in alone.note and "threads" not in shared.note


def test_host_without_the_arithmetic_of_the_precision_is_refused(tmp_path: Path) -> None:
    if computes("fp16", host_isa()):
        pytest.skip("this processor computes in float16")
    artifact = _build(tmp_path, "fp16")
    with pytest.raises(TargetUnavailable, match="neither avx512_fp16 nor amx_fp16"):
        TARGET.load(artifact)


def test_host_without_a_flag_that_is_only_faster_runs_and_says_so(tmp_path: Path) -> None:
    plan = TargetPlan("fp32", Options(), dims=_NET.dims)
    profile = HardwareProfile(
        schema=1,
        name="p",
        target="openvino",
        cpu=Cpu(model="x", cores=1, isa=("avx1024",)),
    )
    runner = TARGET.load(TARGET.build(_NET.model(), plan, profile, workdir=tmp_path))
    assert "avx1024" in runner.note and "speed is this machine's" in runner.note  # type: ignore[attr-defined]


def test_input_handed_straight_to_an_output_keeps_its_name(tmp_path: Path) -> None:
    case = text_case("pass", "(float[2] x, float[2] z) => (float[2] y, float[2] w) { y = Identity(x) w = Neg(z) }")
    artifact = TARGET.build(case.model(), TargetPlan("fp32", Options()), _GENOA, workdir=tmp_path)
    assert [spec.name for spec in artifact.inputs] == ["x", "z"]
    assert [spec.name for spec in artifact.outputs] == ["y", "w"]


def test_model_openvino_cannot_convert_is_refused_with_its_words(tmp_path: Path) -> None:
    case = text_case("mod", "(float[3] a, float[3] b) => (float[3] y) { y = Mod(a, b) }")
    with pytest.raises(UnsupportedModel, match="fmod"):
        TARGET.build(case.model(), TargetPlan("fp32", Options()), _GENOA, workdir=tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(double[3] a) => (double[3] y) { y = Relu(a) }", "DOUBLE"),
        ('(int32[3] a, int32[3] b) => (int32[3] y) { y = BitShift<direction="LEFT">(a, b) }', "INT32"),
        ("(float[2] a, int64[1] r) => (float[4] y) { y = Tile(a, r) }", "must be a constant"),
        ("(float[2] a) => (float[2] y) { y = DFT(a) }", "no operator DFT"),
    ],
)
def test_what_openvino_computes_wrongly_is_refused_beforehand(text: str, reason: str) -> None:
    refusals = find_unsupported(text_case("refused", text).model(), TARGET.capability(_GENOA))
    assert len(refusals) == 1
    assert reason in refusals[0].reason


@pytest.mark.parametrize(
    ("attributes", "taken"),
    [
        ('activations = ["Sigmoid", "Tanh", "Relu"]', True),
        ('direction = "bidirectional", activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"]', True),
        ('activations = ["HardSigmoid", "Tanh", "Tanh"]', False),  # the plugin does not compile it
        # the second direction's are ignored
        ('direction = "bidirectional", activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]', False),
        ("input_forget = 1", False),  # ignored
    ],
)
def test_recurrent_layers_that_openvino_computes_otherwise_are_not_claimed(attributes: str, taken: bool) -> None:
    directions = 2 if "bidirectional" in attributes else 1
    types = f"(float[5,2,6] x, float[{directions},16,6] w, float[{directions},16,4] r)"
    text = f"{types} => (float[5,{directions},2,4] y) {{ y = LSTM<hidden_size = 4, {attributes}>(x, w, r) }}"
    refusals = find_unsupported(text_case("layer", text).model(), TARGET.capability(_GENOA))
    assert (not refusals) == taken
    assert all(len(refusal.reason) < 500 for refusal in refusals)


def test_frontend_has_a_rule_for_every_operator_the_capability_names() -> None:
    from targets.intel_openvino.toolchain import openvino

    missing = []
    for name in TARGET.capability(_GENOA).ops:
        schema = onnx.defs.get_schema(name)
        takes, gives = (
            [f"{side}{i}" for i in range(count)]
            for side, count in (("x", schema.min_input), ("y", max(1, schema.min_output)))
        )
        typed = [onnx.helper.make_tensor_value_info(value, 1, [1, 2, 3, 4]) for value in takes]
        outputs = [onnx.helper.make_tensor_value_info(value, 1, None) for value in gives]
        graph = onnx.helper.make_graph([onnx.helper.make_node(name, takes, gives)], "g", typed, outputs)
        try:
            openvino().Core().read_model(onnx.helper.make_model(graph).SerializeToString())
        except RuntimeError as error:
            missing += [name] if "No conversion rule" in str(error) else []
    assert missing == []


def test_options_refuse_an_unknown_hint_and_key() -> None:
    wrong = HardwareProfile(
        schema=1, name="p", target="openvino", target_options={"performance_hint": "fast", "strems": 2}
    )
    with pytest.raises(ProfileError, match=r"did you mean 'num_streams'") as raised:
        validate_options(Options, wrong)
    assert "'latency' or 'throughput'" in str(raised.value)
    assert validate_options(Options, _GENOA).performance_hint == "throughput"


def test_missing_openvino_names_the_extra(tmp_path: Path) -> None:
    """In an environment whose site-packages is this one's without OpenVINO."""
    for folder in filter(os.path.isdir, sys.path):
        for entry in Path(folder).iterdir() if folder.endswith("site-packages") else ():
            if not entry.name.startswith("openvino") and not (tmp_path / entry.name).exists():
                (tmp_path / entry.name).symlink_to(entry)
    code = (
        "from targets.intel_openvino import TARGET; from compiler.fleet.profile import load_profile;"
        "TARGET.capability(load_profile('intel-n100')); TARGET.check(load_profile('intel-n100'))"
    )
    root = str(Path(__file__).parents[3])
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    environment = {"PYTHONPATH": os.pathsep.join([root, str(tmp_path), *standard]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "TargetUnavailable: OpenVINO is not installed" in done.stderr or "fleetc[openvino]" in done.stderr, (
        done.stderr
    )


def test_openvino_sends_and_writes_no_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys; from targets.intel_openvino.toolchain import openvino; openvino();"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry.')))"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_importing_the_target_and_asking_what_it_can_imports_no_openvino() -> None:
    code = (
        "import sys; from targets.intel_openvino import TARGET; from compiler.fleet.profile import load_profile;"
        "p = load_profile('intel-n100'); TARGET.capability(p); TARGET.check(p); TARGET.toolchain();"
        "print('openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_onnx_cases_of_claimed_operators_are_many() -> None:
    assert len(onnx_backend_cases(TARGET.capability(_GENOA))) > 800


def test_dimension_without_range_is_left_open(tmp_path: Path) -> None:
    plan = TargetPlan("fp32", Options(), dims={"M": Range(1, 1, 2)})
    artifact = TARGET.build(_NET.model(), plan, _GENOA, workdir=tmp_path)
    assert artifact.inputs[0].shape[0] == "N"


def _quantized_net() -> tuple[ir.Model, ir.Model, list[dict[str, np.ndarray]]]:
    """A residual block in float and in the target's int8, and inputs for it."""
    case = text_case(
        "block",
        "(float[N,16,8,8] x) => (float[N,4] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) "
        "c = Conv<pads=[1,1,1,1]>(r, v, b) s = Add(c, r) t = Relu(s) d = Conv<pads=[1,1,1,1]>(t, v, b) "
        "g = GlobalAveragePool(d) f = Flatten(g) y = MatMul(f, m) }",
        weights={"w": (16, 16, 3, 3), "v": (16, 16, 3, 3), "b": (16,), "m": (16, 4)},
        batches=(1, 4),
    )
    model = ir.from_proto(infer_strictly(ir.to_proto(case.model())))
    for index, node in enumerate(model.graph):
        node.name = node.name or f"node{index}"
    rng = np.random.default_rng(4)
    batches = [{"x": rng.normal(size=(4, 16, 8, 8)).astype(np.float32)} for _ in range(8)]
    return model, quantize(model, batches, INT8).model, batches


def test_int8_weights_are_stored_as_bytes(tmp_path: Path) -> None:
    model, low, _ = _quantized_net()
    sizes = []
    for precision, net in (("fp32", model), ("int8", low)):
        plan = TargetPlan(precision, Options(), dims={"N": Range(1, 4, 4)})
        artifact = TARGET.build(net, plan, _GENOA, workdir=tmp_path / precision)
        sizes.append((artifact.root / "payload/model.bin").stat().st_size)
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.skipif(not computes("int8", host_isa()), reason="this processor has no VNNI")
def test_int8_is_computed_in_bytes_and_is_inside_its_tolerance(tmp_path: Path) -> None:
    _, low, batches = _quantized_net()
    plan = TargetPlan("int8", Options(), dims={"N": Range(1, 4, 4)})
    artifact = TARGET.build(low, plan, _GENOA, workdir=tmp_path)
    found = TARGET.load(artifact).run(batches[0])["y"]
    assert TOLERANCES["int8"].accepts(compare(Unoptimized(low).run(batches[0])["y"], found))
    compiled = openvino().Core().compile_model(tmp_path / "payload/model.xml", "CPU")
    computed = {
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    }
    assert computed <= {"u8", "i8"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_row_that_the_lowest_number_masks_as_a_whole_is_no_nan(precision: str, tmp_path: Path) -> None:
    if not computes(precision, host_isa()):
        pytest.skip(f"this processor does not compute in {precision}")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]); import test_intel_openvino as t;"
        "t._check_masked_row(sys.argv[1], Path(sys.argv[2]))"
    )
    # a process of its own: another model may have limited the instruction sets of this one
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", code, precision, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _check_masked_row(precision: str, folder: Path) -> None:
    text = (
        "(float[2,8,8] x, bool[2,8,8] m) => (float[2,8,8] y) { k = Where(m, x, low) p = Softmax(k) y = MatMul(p, w) }"
    )
    case = text_case("masked", text, weights={"w": (8, 8)})
    model = case.model()
    value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == "low")
    value.const_value = ir.tensor(np.float32(np.finfo(np.float32).min), name="low")
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    model.graph.register_initializer(value)
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((2, 8, 8)).astype(np.float32), "m": rng.random((2, 8, 8)) > 0.4}
    inputs["m"][:, 3] = False
    artifact = TARGET.build(
        model, TargetPlan(precision, Options()), load_profile("intel-xeon-sapphire-rapids"), workdir=folder
    )
    runner = TARGET.load(artifact)
    try:
        result = runner.run(inputs)["y"]
    finally:
        runner.close()
    assert TOLERANCES[precision].accepts(compare(Unoptimized(model).run(inputs)["y"], result))
