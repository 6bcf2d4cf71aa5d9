"""Q/DQ models in integers: what is recognized, and that the kernels compute what the model says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from arm_tvm_models import Array, needs_aarch64
from integer_models import Quantizing, residual_network

from compiler.artifact import Artifact
from compiler.fleet.detect import host_isa
from compiler.model.numerics import Arrays, compare
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET
from targets.arm_tvm.graph.quantized.rewrite import DOMAIN, use_integers
from targets.arm_tvm.kernels.integer.conv import dot_for
from targets.arm_tvm.kernels.integer.dot_products import dot_of
from targets.arm_tvm.kernels.integer.scheme import int8_rule
from targets.arm_tvm.kernels.integer.specs import ConvSpec, Dot, Epilogue, Image
from targets.arm_tvm.kernels.integer.tiles import tile_choices, workload_digest
from targets.arm_tvm.kernels.x86_cores import CORES
from targets.arm_tvm.options import Options

SQNR_DB = 40.0
"""A sum on the edge between two steps may fall on either side of it; in so shallow a network few do."""
BOARDS = {
    "sdot": Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+dotprod")),
    "smmla": Options("aarch64-linux-gnu", "neoverse-v1", ("+neon", "+dotprod", "+i8mm")),
    "widen": Options("aarch64-linux-gnu", "cortex-a72", ("+neon",)),
}
HOST = Options("x86_64-linux-gnu", "x86-64-v3")
HOSTS = {
    "generic": (HOST, {"avx2", "fma"}),
    "avx_vnni": (Options("x86_64-linux-gnu", "gracemont"), {"avx2", "fma", "avx_vnni"}),
    "amx_int8": (Options("x86_64-linux-gnu", "sapphirerapids"), {"avx512_fp16", "avx512_vnni", "amx_tile", "amx_int8"}),
    "avx512_vnni": (Options("x86_64-linux-gnu", "icelake-server"), {"avx512vl", "avx512vbmi", "avx512_vnni"}),
}
"""How an x86-64 processor multiplies → what is compiled for, and flags of those that can run it."""


def expected(model: ir.Model, inputs: Arrays) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def built(model: ir.Model, options: Options, folder: Path, cache_dir: Path, pi5: object) -> Artifact:
    plan = TargetPlan(precision="int8", options=options, cache_dir=cache_dir)
    return TARGET.build(model, plan, pi5, workdir=folder)


def assert_agrees(model: ir.Model, inputs: Arrays, artifact: Artifact, *, sqnr_db: float = SQNR_DB) -> None:
    found = TARGET.load(artifact).run(inputs)
    for name, want in expected(model, inputs).items():
        stats = compare(want, found[name])
        assert stats.sqnr_db >= sqnr_db, (name, stats)


def image(*shape: int) -> Array:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def ops(model: ir.Model, dot: Dot = "sdot") -> list[str]:
    return [node.op_type for node in use_integers(model, dot).model.graph if node.domain != DOMAIN]


def test_a_quantized_network_keeps_no_float_operator() -> None:
    rewritten = use_integers(residual_network(), "sdot")
    assert {node.domain for node in rewritten.model.graph} == {DOMAIN}
    assert len([kernel for kernel in rewritten.kernels.values() if kernel.name == "int8_conv"]) == 4


def test_activations_between_kernels_never_leave_int8() -> None:
    rewritten = use_integers(residual_network(unsigned=True), "sdot")
    names = [kernel.name for kernel in rewritten.kernels.values()]
    assert names.count("int8_pack") == 1
    assert names.count("int8_unpack") == 1


def test_the_rewritten_model_leaves_the_given_one_as_it_was() -> None:
    model = residual_network()
    before = ir.to_proto(model).SerializeToString()
    use_integers(model, "sdot")
    assert ir.to_proto(model).SerializeToString() == before


def test_a_residual_and_its_activation_are_computed_in_the_convolution() -> None:
    kernels = use_integers(residual_network(), "sdot").kernels.values()
    (depthwise,) = [kernel.spec for kernel in kernels if kernel.name == "int8_depthwise"]
    assert isinstance(depthwise, ConvSpec)
    assert depthwise.epilogue.residual_scale == pytest.approx(0.05 / 0.06)
    assert depthwise.epilogue.low == 0


def test_a_schedule_takes_the_place_of_the_predicted_tile() -> None:
    first = next(kernel for kernel in use_integers(residual_network(), "sdot").kernels.values() if kernel.way)
    assert isinstance(first.spec, ConvSpec) and first.way is not None
    other = tile_choices(first.spec, first.dot)[1]
    schedule = {workload_digest(first.spec, first.dot): other.to_dict()}
    tiles = [kernel.way for kernel in use_integers(residual_network(), "sdot", schedule).kernels.values()]
    assert other in tiles
    gone = {workload_digest(first.spec, first.dot): other.to_dict() | {"columns": 99}}
    assert first.way in [kernel.way for kernel in use_integers(residual_network(), "sdot", gone).kernels.values()]


def one_conv(weights: str = "w", **attributes: object) -> ir.Model:
    net = Quantizing()
    data = net.steps("image", 0.03)
    net.weights("w", (16, 16, 3, 3))
    net.constants["float"] = net.rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    net.add("Conv", [data, weights], "c", pads=[1] * 4, **attributes)
    return net.model({"image": (1, 16, 8, 8)}, {net.steps("c", 0.1): (1, 16, 8, 8)})


def test_a_convolution_with_float_weights_stays_in_float() -> None:
    assert "Conv" in ops(one_conv("float"))
    assert "Conv" not in ops(one_conv())


def test_what_has_no_integer_kernel_stays_in_float_and_its_convolution_does_not() -> None:
    net = Quantizing()
    data = net.steps("image", 0.03)
    net.add("Conv", [data, net.weights("w", (16, 16, 1, 1))], "c")
    net.add("Softmax", ["c"], "s")
    net.add("Mul", ["c", "s"], "y")
    assert ops(net.model({"image": (1, 16, 8, 8)}, {"y": (1, 16, 8, 8)})) == ["Softmax", "Mul"]


def test_a_graph_output_that_is_quantized_keeps_its_name_and_type() -> None:
    net = Quantizing(unsigned=True)
    data = net.steps("image", 0.03)
    net.add("Conv", [data, net.weights("w", (20, 16, 1, 1))], "c")
    net.steps("c", 0.1)
    net.nodes.pop()
    model = net.model({"image": (1, 16, 8, 8)}, {"c_q": (1, 20, 8, 8)}, dtypes={"c_q": ir.DataType.UINT8})
    (output,) = use_integers(model, "sdot").model.graph.outputs
    assert (output.name, output.dtype, tuple(output.shape or ())) == ("c_q", ir.DataType.UINT8, (1, 20, 8, 8))


@pytest.mark.parametrize(
    ("dot", "unsigned", "least"),
    [
        ("generic", False, -127),
        ("generic", True, -128),
        ("avx_vnni", True, -127),
        ("avx512_vnni", False, -128),
        ("amx_int8", True, -128),
    ],
)
def test_the_network_computes_on_the_host_what_the_model_says(
    dot: str, unsigned: bool, least: int, tmp_path: Path, cache_dir: Path, pi5: object
) -> None:
    options, needed = HOSTS[dot]
    if missing := needed - host_isa():
        pytest.skip(f"this machine's processor lacks {', '.join(sorted(missing))}")
    assert dot_of(options.arch, options.mcpu, options.mattr) == dot
    model = residual_network(unsigned=unsigned, least=least)
    assert_agrees(model, {"image": image(1, 3, 40, 40)}, built(model, options, tmp_path, cache_dir, pi5))


@needs_aarch64
@pytest.mark.parametrize("least", [-127, -128])
@pytest.mark.parametrize("dot", BOARDS)
def test_the_network_computes_under_the_emulator_what_the_model_says(
    dot: str, least: int, tmp_path: Path, cache_dir: Path, pi5: object
) -> None:
    model = residual_network(least=least)
    assert_agrees(model, {"image": image(1, 3, 40, 40)}, built(model, BOARDS[dot], tmp_path, cache_dir, pi5))


def test_a_matrix_product_of_ragged_width_is_computed_in_integers(tmp_path: Path, cache_dir: Path, pi5: object) -> None:
    net = Quantizing(unsigned=True)
    data = net.steps("image", 0.03)
    net.add("MatMul", [data, net.weights("w", (40, 21), 1)], "m")
    net.add("Add", ["m", net.bias("b", 21)], "y")
    model = net.model({"image": (2, 5, 40)}, {"y": (2, 5, 21)})
    assert ops(model) == []
    assert_agrees(model, {"image": image(2, 5, 40)}, built(model, HOST, tmp_path, cache_dir, pi5), sqnr_db=100.0)


def test_joined_images_stay_integers(tmp_path: Path, cache_dir: Path, pi5: object) -> None:
    net = Quantizing()
    data = net.steps("image", 0.03)
    net.add("Conv", [data, net.weights("w", (32, 16, 3, 3))], "c", pads=[1] * 4)
    joined = net.steps(net.add("Concat", [net.steps("c", 0.03), data], "j", axis=1), 0.03)
    net.add("Conv", [joined, net.weights("v", (16, 48, 5, 5))], "y", pads=[4] * 4, dilations=[2, 2])
    model = net.model({"image": (1, 16, 9, 9)}, {"y": (1, 16, 9, 9)})
    assert ops(model) == []
    assert_agrees(model, {"image": image(1, 16, 9, 9)}, built(model, HOST, tmp_path, cache_dir, pi5))


def test_a_batch_of_images_is_computed_one_by_one(tmp_path: Path, cache_dir: Path, pi5: object) -> None:
    net = Quantizing(unsigned=True)
    data = net.steps("image", 0.03)
    net.add("Conv", [data, net.weights("w", (8, 5, 3, 3))], "c", pads=[1] * 4, strides=[2, 1])
    mean = net.steps(net.add("GlobalAveragePool", [net.steps("c", 0.05)], "g"), 0.02)
    net.add("Flatten", [mean], "y")
    model = net.model({"image": (3, 5, 7, 9)}, {"y": (3, 8)})
    assert_agrees(model, {"image": image(3, 5, 7, 9)}, built(model, HOST, tmp_path, cache_dir, pi5))


@pytest.mark.parametrize(
    ("mcpu", "mattr", "dot"),
    [
        ("cortex-a72", ("+neon",), "widen"),
        ("cortex-a76", (), "sdot"),
        ("cortex-a76", ("-dotprod",), "widen"),
        ("generic", ("+dotprod",), "sdot"),
        ("neoverse-v1", ("+neon",), "smmla"),
        ("neoverse-v1", ("-i8mm",), "sdot"),
    ],
)
def test_the_features_of_a_core_decide_how_it_multiplies(mcpu: str, mattr: tuple[str, ...], dot: str) -> None:
    assert dot_of("aarch64", mcpu, mattr) == dot


@pytest.mark.parametrize(
    ("mcpu", "mattr", "dot"),
    [
        ("haswell", (), "generic"),
        ("skylake-avx512", (), "generic"),
        ("icelake-server", (), "avx512_vnni"),
        ("icelake-server", ("-avx512vnni",), "generic"),
        ("sapphirerapids", (), "amx_int8"),
        ("sapphirerapids", ("-amx-int8",), "avx512_vnni"),
        ("sapphirerapids", ("-avx512f",), "avx_vnni"),
        ("gracemont", (), "avx_vnni"),
        ("x86-64", ("+avx2", "+avxvnni"), "avx_vnni"),
    ],
)
def test_x86_cores_multiply_by_the_widest_vectors_they_have(mcpu: str, mattr: tuple[str, ...], dot: str) -> None:
    assert dot_of("x86_64", mcpu, mattr) == dot


@pytest.mark.needs_tvm
def test_the_extensions_of_x86_cores_are_those_that_llvm_compiles_for() -> None:
    tvm = pytest.importorskip("tvm")
    from tvm.target.codegen import llvm_get_cpu_features

    for core in frozenset().union(*CORES.values()):
        options = Options("x86_64-linux-gnu", core)
        features = {str(feature) for feature in llvm_get_cpu_features(tvm.target.Target(options.target))}
        assert {name for name, cores in CORES.items() if core in cores} == features & set(CORES), core


def test_a_core_without_dot_products_is_not_promised_speed() -> None:
    from compiler.fleet.profile import load_profile

    rules = {
        name: next(rule for rule in TARGET.capability(load_profile(name)).precisions if rule.name == "int8")
        for name in ("raspberry-pi-4", "raspberry-pi-5", "aws-graviton3")
    }
    assert rules["raspberry-pi-4"].gain < 1.0 < rules["raspberry-pi-5"].gain < rules["aws-graviton3"].gain
    assert "not faster" in rules["raspberry-pi-4"].reason


def test_x86_cores_with_dot_products_are_promised_speed_and_eight_bits_for_what_is_never_negative() -> None:
    rules = {dot: int8_rule(dot) for dot in ("generic", "avx_vnni", "avx512_vnni", "amx_int8")}
    assert rules["generic"].gain < 1.0 < rules["avx512_vnni"].gain < rules["amx_int8"].gain
    assert rules["avx_vnni"].gain > rules["avx512_vnni"].gain  # float32 is slower there
    schemes = {dot: rule.scheme for dot, rule in rules.items()}
    assert schemes["generic"] == int8_rule("sdot").scheme != schemes["amx_int8"] == schemes["avx_vnni"]
    assert schemes["amx_int8"] is not None and schemes["amx_int8"].ops["Conv"].inputs[0].positive == "uint8"


def test_amx_is_left_to_windows_that_fill_its_tiles() -> None:
    image = Image(1, 32, 3, 3)
    spec = ConvSpec(image, image, (3, 3), (1, 1), (1, 1), (1, 1), 0, False, Epilogue())
    assert dot_for(spec, "amx_int8") == "amx_int8"
    assert dot_for(replace(spec, depthwise=True), "amx_int8") == "avx512_vnni"
    assert dot_for(replace(spec, result=Image(1, 32, 1, 1)), "amx_int8") == "avx512_vnni"
