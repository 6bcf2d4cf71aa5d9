"""Operators on integers against what they become, run by ONNX Runtime without optimizations and by onnx.reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, Array, compare_all
from compiler.model.reference import Unoptimized
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.decompose_quantized import DECOMPOSE_QUANTIZED
from compiler.passes.quantized import is_quantized

RNG = np.random.default_rng(11)
TYPES = {"u8": np.uint8, "i8": np.int8}
ONNX_TYPES = {"u8": onnx.TensorProto.UINT8, "i8": onnx.TensorProto.INT8}


def integers(kind: str, *shape: int) -> Array:
    info = np.iinfo(TYPES[kind])
    return RNG.integers(info.min, info.max + 1, shape).astype(TYPES[kind])


def scale(channels: int = 0) -> Array:
    return RNG.uniform(0.005, 0.05, size=channels or ()).astype(np.float32)


def zero(kind: str, channels: int = 0, *, value: int | None = None) -> Array:
    centre = {"u8": 120, "i8": -7}[kind] if value is None else value
    return np.full(channels or (), centre, TYPES[kind])


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array],
    *,
    type_: int = 0,
    rank: int = 0,
    opset: int = 21,
) -> ir.Model:
    """What nobody reads is an output, of a type that onnx infers or that is given; a first size is open."""
    made = [name for node in nodes for name in node.output]
    read = {name for node in nodes for name in node.input}
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kinds[name], ["N", *array.shape[1:]]) for name, array in inputs.items()],
        [
            helper.make_tensor_value_info(name, type_, [f"{name}{axis}" for axis in range(rank)])
            for name in made
            if name not in read
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    for output in () if type_ else graph.output:
        output.ClearField("type")
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=False))


def assert_same(model: ir.Model, inputs: Mapping[str, Array], *, most: int = 1) -> ir.Model:
    """Integers differ by a tie's step at most, in few places; floats by their rounding."""
    want = Unoptimized(model).run(inputs)
    copy = model.clone()
    assert DECOMPOSE_QUANTIZED(copy).modified and not DECOMPOSE_QUANTIZED(copy).modified
    check_model(copy)
    got = Unoptimized(copy).run(inputs)
    assert [value.name for value in copy.graph.outputs] == [value.name for value in model.graph.outputs]
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        difference = np.abs(got[name].astype(np.float64) - array.astype(np.float64))
        if array.dtype.kind == "f":
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5 * float(np.abs(array).max(initial=1)))
        else:
            assert difference.max(initial=0) <= most and (difference > 0).mean() < 0.02
    return copy


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("x", "w"), [("u8", "u8"), ("u8", "i8"), ("i8", "i8")])
def test_qlinear_conv(x: str, w: str, group: int, bias: bool, channels: bool) -> None:
    many = 8 if channels else 0
    constants = {
        **{"xs": scale(), "xz": zero(x), "w": integers(w, 8, 4 // group, 3, 2)},
        **{"ws": scale(many), "wz": zero(w, many, value=0 if w == "i8" else None), "ys": scale() * 40, "yz": zero(x)},
        **({"b": RNG.integers(-900, 900, 8).astype(np.int32)} if bias else {}),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", *(["b"] if bias else [])]
    node = helper.make_node("QLinearConv", names, ["y"], group=group, pads=[1, 0, 1, 1], strides=[2, 1])
    inputs = {"x": integers(x, 2, 4, 7, 6)}
    found = assert_same(model_of([node], inputs, constants), inputs)
    assert [node.op_type for node in found.graph].count("Conv") == 1


@pytest.mark.parametrize(("shapes"), [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4))])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize(("a", "b"), [("u8", "u8"), ("u8", "i8"), ("i8", "i8")])
def test_qlinear_matmul(a: str, b: str, channels: bool, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    many = 4 if channels and len(shapes[1]) == 2 else 0
    constants = {
        **{"as": scale(), "az": zero(a), "b": integers(b, *shapes[1]), "bs": scale(many)},
        **{"bz": zero(b, many, value=0 if many else None), "ys": scale() * 30, "yz": zero(a)},
    }
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    inputs = {"a": integers(a, *shapes[0])}
    model = model_of([node], inputs, constants)
    found = assert_same(model, inputs)
    theirs = ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)[0]
    ours = ReferenceEvaluator(ir.to_proto(found)).run(None, inputs)[0]
    assert np.abs(theirs.astype(int) - ours.astype(int)).max() <= 1


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("second", [(2, 3, 4), (1, 3, 1), (4,)])
def test_additions_and_products_of_onnx_runtime(op: str, kind: str, second: tuple[int, ...]) -> None:
    constants = {
        **{"as": scale(), "az": zero(kind), "b": integers(kind, *second), "bs": scale(), "bz": zero(kind)},
        **{"ys": scale() * (2 if op == "QLinearAdd" else 4), "yz": zero(kind)},
    }
    node = helper.make_node(op, ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], domain="com.microsoft")
    inputs = {"a": integers(kind, 2, 3, 4)}
    assert_same(model_of([node], inputs, constants, type_=ONNX_TYPES[kind], rank=3), inputs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool"])
def test_functions_of_one_value_of_onnx_runtime(op: str, kind: str) -> None:
    more = {"QLinearLeakyRelu": {"alpha": 0.3}, "QLinearGlobalAveragePool": {"channels_last": 0}}.get(op, {})
    ys = np.float32(1 / 256) if op == "QLinearSigmoid" else scale()
    constants = {"xs": scale(), "xz": zero(kind), "ys": np.asarray(ys, np.float32), "yz": zero(kind)}
    node = helper.make_node(op, ["x", "xs", "xz", "ys", "yz"], ["y"], domain="com.microsoft", **more)
    inputs = {"x": integers(kind, 2, 3, 5, 4)}
    assert_same(model_of([node], inputs, constants, type_=ONNX_TYPES[kind], rank=4), inputs)


@pytest.mark.parametrize("kind", TYPES)
def test_concatenation_of_onnx_runtime(kind: str) -> None:
    constants = {
        name: value for part in ("a", "b", "y") for name, value in ((f"{part}s", scale()), (f"{part}z", zero(kind)))
    }
    names = ["ys", "yz", "a", "as", "az", "b", "bs", "bz"]
    node = helper.make_node("QLinearConcat", names, ["y"], domain="com.microsoft", axis=1)
    inputs = {"a": integers(kind, 2, 3, 4), "b": integers(kind, 2, 5, 4)}
    assert_same(model_of([node], inputs, constants, type_=ONNX_TYPES[kind], rank=3), inputs)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_gemm_of_onnx_runtime(alpha: float, transposed: int, bias: bool, quantized: bool) -> None:
    constants = {
        **{"as": scale(), "az": zero("u8"), "b": integers("i8", *((4, 6) if transposed else (6, 4)))},
        **{"bs": scale(), "bz": zero("i8", value=0), "c": RNG.integers(-900, 900, 4).astype(np.int32)},
        **{"ys": scale() * 20, "yz": zero("u8")},
    }
    names = ["a", "as", "az", "b", "bs", "bz", "c" if bias else "", *(["ys", "yz"] if quantized else [])]
    node = helper.make_node("QGemm", names, ["y"], domain="com.microsoft", transB=transposed, alpha=alpha)
    read = {key: value for key, value in constants.items() if key in names}
    inputs = {"a": integers("u8", 3, 6)}
    assert_same(
        model_of([node], inputs, read, type_=ONNX_TYPES["u8"] if quantized else onnx.TensorProto.FLOAT, rank=2), inputs
    )


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("zeros", ["", "x", "both", "channels"])
@pytest.mark.parametrize("group", [1, 2])
def test_conv_integer(group: int, zeros: str, cast: bool) -> None:
    many = 6 if zeros == "channels" else 0
    constants = {
        "w": integers("u8", 6, 4 // group, 3, 3),
        **({"xz": zero("u8")} if zeros else {}),
        **({"wz": zero("u8", many)} if zeros in ("both", "channels") else {}),
    }
    names = ["x", "w", *(name for name in ("xz", "wz") if name in constants)]
    nodes = [helper.make_node("ConvInteger", names, ["y"], group=group, pads=[1, 1, 1, 1])]
    if cast:
        nodes.append(helper.make_node("Cast", ["y"], ["f"], to=1))
    inputs = {"x": integers("u8", 2, 4, 6, 6)}
    if many:  # ONNX Runtime has no zero points of channels here
        model = model_of(nodes, inputs, constants)
        copy = model.clone()
        assert DECOMPOSE_QUANTIZED(copy).modified
        want = ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)[0]
        assert np.array_equal(next(iter(Unoptimized(copy).run(inputs).values())), want)
        return
    found = assert_same(model_of(nodes, inputs, constants), inputs, most=0)
    assert [node.op_type for node in found.graph].count(
        "Cast"
    ) == 2  # of the input, and of the sums to int32 or to float


@pytest.mark.parametrize(("shapes"), [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 4))])
@pytest.mark.parametrize("zeros", ["", "a", "both", "columns"])
@pytest.mark.parametrize(("a", "b"), [("u8", "u8"), ("u8", "i8"), ("i8", "i8")])
def test_matmul_integer(a: str, b: str, zeros: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    many = 4 if zeros == "columns" and len(shapes[1]) == 2 else 0
    constants = {
        "b": integers(b, *shapes[1]),
        **({"az": zero(a)} if zeros else {}),
        **({"bz": zero(b, many)} if zeros in ("both", "columns") else {}),
    }
    names = ["a", "b", *(name for name in ("az", "bz") if name in constants)]
    inputs = {"a": integers(a, *shapes[0])}
    assert_same(model_of([helper.make_node("MatMulInteger", names, ["y"])], inputs, constants), inputs, most=0)


@pytest.mark.parametrize("low, high", [(-1.0, 2.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-4, 1e-4)])
def test_a_product_that_is_quantized_dynamically(low: float, high: float) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    inputs = {"x": RNG.uniform(low, high, size=(4, 6)).astype(np.float32)}
    model = model_of(nodes, inputs, {"w": integers("i8", 6, 5)})
    found = assert_same(model, inputs)
    assert not is_quantized(found)
    types = {value.dtype for node in found.graph for value in node.outputs}
    assert ir.DataType.UINT8 not in types, "the integers stay floats where only a product reads them"


def test_integer_products_of_opset_11_need_no_quantizer_of_channels() -> None:
    """They were left alone, as ONNX Runtime's quantizer leaves a model of opset 11 or 12."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    inputs = {"x": RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)}
    found = assert_same(model_of(nodes, inputs, {"w": integers("i8", 3, 2, 3, 3)}, opset=11), inputs)
    assert "Conv" in [node.op_type for node in found.graph]


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_an_lstm_that_is_quantized_dynamically_is_one_of_its_weights(direction: str) -> None:
    """ONNX Runtime's quantizer makes it; no target but ONNX Runtime has it. Its own steps cost about 40 dB."""
    ways = 2 if direction == "bidirectional" else 1
    constants = {
        **{"w": integers("i8", ways, 5, 16), "r": integers("i8", ways, 4, 16)},
        **{"b": RNG.normal(size=(ways, 32)).astype(np.float32), "l": np.array([6, 4], np.int32)},
        **{f"{name}s": np.full(ways, 0.005, np.float32) for name in "wr"},
        **{f"{name}z": np.full(ways, 3, np.int8) for name in "wr"},
    }
    names = ["x", "w", "r", "b", "l", "", "", "", "ws", "wz", "rs", "rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y", "", "c"], domain="com.microsoft", hidden_size=4, direction=direction
    )
    inputs = {"x": RNG.normal(size=(6, 2, 5)).astype(np.float32)}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [6, 2, 5])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "c")],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    assert is_quantized(model)
    want = Unoptimized(model).run(inputs)
    assert DECOMPOSE_QUANTIZED(model).modified and not DECOMPOSE_QUANTIZED(model).modified
    assert [made.op_type for made in model.graph] == ["LSTM"]
    got = Unoptimized(model).run(inputs)
    assert all(TOLERANCES["fp16"].accepts(stats) for stats in compare_all(want, got).values()), compare_all(want, got)


def test_scales_of_channels_before_opset_13_are_left_alone_and_named() -> None:
    constants = {"xs": scale(), "xz": zero("u8"), "w": integers("i8", 3, 2, 3, 3), "ws": scale(3), "wz": zero("i8", 3)}
    names = ["x", "xs", "xz", "w", "ws", "wz", "xs", "xz"]
    model = model_of(
        [helper.make_node("QLinearConv", names, ["y"], name="c")],
        {"x": integers("u8", 1, 2, 5, 5)},
        constants,
        opset=12,
    )
    result = DECOMPOSE_QUANTIZED(model)
    assert not result.modified
    reason = "opset 12 has no DequantizeLinear for channels; export the model with opset 13 or newer"
    assert result.notes == (f"c: QLinearConv stays: {reason}",)


@pytest.mark.parametrize("between", ["Flatten", "Cast"])
def test_integers_that_are_moved_stay_floats_and_those_that_are_read_otherwise_do_not(between: str) -> None:
    more = {"to": onnx.TensorProto.INT32} if between == "Cast" else {}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node(between, ["q"], ["f"], **more),
        *([helper.make_node("MatMulInteger", ["f", "w", "z"], ["i"])] if between == "Flatten" else []),
    ]
    inputs = {"x": RNG.normal(size=(4, 2, 3)).astype(np.float32)}
    found = assert_same(model_of(nodes, inputs, {"w": integers("i8", 6, 5)} if between == "Flatten" else {}), inputs)
    types = {value.dtype for node in found.graph for value in node.outputs}
    assert (ir.DataType.UINT8 in types) == (between == "Cast")


def test_what_has_a_scale_for_each_row_and_column_is_left_alone_and_named() -> None:
    constants = {
        **{"as": np.full((3, 1), 0.1, np.float32), "az": np.zeros((3, 1), np.uint8), "b": integers("u8", 5, 4)},
        **{"bs": scale(), "bz": zero("u8"), "ys": scale(), "yz": zero("u8")},
    }
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], name="rows")
    model = model_of([node], {"a": integers("u8", 3, 5)}, constants)
    before = ir.to_proto(model).SerializeToString()
    result = DECOMPOSE_QUANTIZED(model)
    assert not result.modified and "rows: QLinearMatMul stays" in result.notes[0]
    assert ir.to_proto(model).SerializeToString() == before


def test_a_float_model_is_left_alone() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    model = model_of([node], {"a": np.ones((2, 3), np.float32)}, {"b": np.ones((3, 4), np.float32)})
    assert not DECOMPOSE_QUANTIZED(model).modified


INT8_ALONE = {"Add", "Cast", "Clip", "Conv", "DequantizeLinear", "Div", "Equal", "MatMul", "Max", "Min", "Mul", "Neg"}
INT8_ALONE |= {"QuantizeLinear", "ReduceMax", "ReduceMin", "Round", "Sub", "Where"}


def lacks(node: ir.Node) -> bool:
    """A target without operators on integers, whose quantizers are of int8."""
    quantizes = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    return node.domain != "" or node.op_type not in INT8_ALONE or (quantizes and ir.DataType.UINT8 in types)


@pytest.mark.parametrize("kind", TYPES)
def test_a_target_of_int8_alone_gets_a_model_of_quantizers_and_float_operators(kind: str) -> None:
    constants = {
        **{"s": scale(), "z": zero(kind), "w": integers("i8", 8, 4, 3, 3), "ws": scale(8)},
        **{"wz": zero("i8", 8, value=0), "ys": scale() * 40, "b": RNG.integers(-900, 900, 8).astype(np.int32)},
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "ws", "wz", "ys", "z", "b"], ["c"], name="conv"),
        helper.make_node("DequantizeLinear", ["c", "ys", "z"], ["y"]),
    ]
    inputs = {"x": RNG.normal(scale=2, size=(2, 4, 6, 6)).astype(np.float32)}
    model = model_of(nodes, inputs, constants)
    want = Unoptimized(model).run(inputs)["y"]
    assert DecomposeOperators(lacks)(model).modified
    check_model(model)
    assert not [node.op_type for node in model.graph if lacks(node)]
    assert next(node for node in model.graph if node.op_type == "Conv").metadata_props["fleetc.origin"] == "conv"
    steps = np.abs(Unoptimized(model).run(inputs)["y"] - want) / constants["ys"]
    assert steps.max() < 1.5 and (steps > 0.5).mean() < 0.02


def test_a_target_that_has_the_operators_keeps_them() -> None:
    nodes = [helper.make_node("MatMulInteger", ["a", "b"], ["y"])]
    model = model_of(nodes, {"a": integers("u8", 3, 5)}, {"b": integers("i8", 5, 4)})
    assert not DecomposeOperators(lambda node: False)(model).modified
