"""What is tied to what, and what is never cut, on small graphs of every kind."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.compress.prune.cut import cut_channels, why_not
from compiler.compress.prune.groups import Ties, find_ties
from compiler.compress.prune.prepare import prepare
from compiler.model.graph import check_model
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.probe import run_unoptimized
from tests.masking import mask_channels

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def ready(signature: str, constants: dict[str, str], body: str) -> ir.Model:
    """A model from text; a constant is told as `float[4,3]` and gets numbers that differ."""
    model = ir.from_onnx_text(
        f"{HEADER}\ng ({signature.split('=>')[0]}) => ({signature.split('=>')[1]})\n"
        f"<{', '.join(declared(name, kind) for name, kind in constants.items())}>\n{{ {body} }}"
    )
    INFER_SHAPES(model)
    return prepare(model)


def declared(name: str, kind: str) -> str:
    type_, _, given = kind.partition("=")
    if given:
        return f"{type_} {name} = {given}"
    count = int(np.prod([int(size) for size in type_[type_.index("[") + 1 : -1].split(",")]))
    return f"{type_} {name} = {{{','.join(str(((index * 7) % 13 - 6) / 5) for index in range(count))}}}"


def groups(ties: Ties) -> list[tuple[str, int]]:
    return [(group.name, len(group.channels)) for group in ties.groups]


def assert_cut_equals_masked(model: ir.Model, ties: Ties, removed: set[int]) -> ir.Model:
    inputs = {
        str(value.name): np.random.default_rng(1)
        .standard_normal([size if isinstance(size, int) else 2 for size in value.shape or ()])
        .astype(np.float32)
        for value in model.graph.inputs
    }
    small = cut_channels(model, ties, removed)
    check_model(small)
    wanted, found = run_unoptimized(mask_channels(model, ties, removed), inputs), run_unoptimized(small, inputs)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    return small


RESIDUAL = (
    "float[N,3,4,4] x => float[N,2,4,4] y",
    {"a": "float[4,3,1,1]", "b": "float[4,4,1,1]", "c": "float[6,4,1,1]", "d": "float[4,6,1,1]", "e": "float[2,4,1,1]"},
    """[first] s = Conv(x, a) [inner] i = Conv(s, c) r = Relu(i) [last] l = Conv(r, d) t = Add(s, l)
    [head] y = Conv(t, e)""",
)


def test_residual_addition_ties_both_makers_and_leaves_the_inner_width_free() -> None:
    signature, constants, body = RESIDUAL
    ties = find_ties(ready(signature, {name: kind for name, kind in constants.items() if name != "b"}, body))
    assert groups(ties) == [("first", 4), ("inner", 6)]
    assert ties.groups[0].makers == ("first", "last")
    assert ties.groups[0].readers == ("inner", "head")
    assert "output 'y'" in ties.kept["head"]


def test_zero_padded_shortcut_loses_padding_with_the_channels_that_meet_it() -> None:
    model = ready(
        "float[N,3,4,4] x => float[N,2,4,4] y",
        {"a": "float[2,3,1,1]", "b": "float[4,2,1,1]", "c": "float[2,4,1,1]", "p": "int64[8]={0,0,0,0,0,2,0,0}"},
        "[narrow] s = Conv(x, a) [wide] w = Conv(s, b) z = Pad(s, p) t = Add(z, w) [head] y = Conv(t, c)",
    )
    ties = find_ties(model)
    assert groups(ties) == [("narrow", 4)]
    small = assert_cut_equals_masked(model, ties, {ties.groups[0].channels[3], ties.groups[0].channels[0]})
    pads = next(node for node in small.graph if node.op_type == "Pad").inputs[1]
    assert pads is not None and pads.const_value is not None
    assert pads.const_value.numpy().tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_attention_heads_are_cut_whole() -> None:
    shape = "int64[4]={0,0,2,3}"
    model = ready(
        "float[N,5,6] x => float[N,5,6] y",
        {
            **{name: "float[6,6]" for name in ("q", "k", "v", "o")},
            **{f"s{index}": shape for index in range(3)},
            "m": "int64[3]={0,0,6}",
        },
        """[query] qm = MatMul(x, q) [key] km = MatMul(x, k) [value] vm = MatMul(x, v)
        qr = Reshape(qm, s0) qt = Transpose<perm=[0,2,1,3]>(qr) kr = Reshape(km, s1) kt = Transpose<perm=[0,2,3,1]>(kr)
        vr = Reshape(vm, s2) vt = Transpose<perm=[0,2,1,3]>(vr) w = MatMul(qt, kt) p = Softmax<axis=-1>(w)
        h = MatMul(p, vt) ht = Transpose<perm=[0,2,1,3]>(h) hr = Reshape(ht, m) [out] y = MatMul(hr, o)""",
    )
    ties = find_ties(model)
    assert [(group.makers, len(group.channels)) for group in ties.groups] == [(("query", "key", "value"), 2)]
    small = assert_cut_equals_masked(model, ties, {ties.groups[0].channels[1]})
    assert [list(value.shape or ()) for value in small.graph.outputs] == [["N", 5, 6]]


def test_squeeze_excite_gate_is_tied_to_what_it_scales() -> None:
    model = ready(
        "float[N,3,4,4] x => float[N,2,4,4] y",
        {"a": "float[4,3,1,1]", "b": "float[2,4,1,1]", "c": "float[4,2,1,1]", "d": "float[2,4,1,1]"},
        """[trunk] s = Conv(x, a) g = GlobalAveragePool(s) [squeeze] q = Conv(g, b) [excite] e = Conv(q, c)
        u = Sigmoid(e) t = Mul(s, u) [head] y = Conv(t, d)""",
    )
    ties = find_ties(model)
    assert groups(ties) == [("trunk", 4), ("squeeze", 2)]
    assert ties.groups[0].makers == ("trunk", "excite")
    assert_cut_equals_masked(model, ties, {ties.groups[0].channels[2], ties.groups[1].channels[0]})


def test_grouped_convolution_loses_the_same_channel_of_every_group() -> None:
    model = ready(
        "float[N,3,4,4] x => float[N,2,4,4] y",
        {"a": "float[4,3,1,1]", "b": "float[6,2,1,1]", "c": "float[2,6,1,1]"},
        "[first] s = Conv(x, a) [grouped] t = Conv<group=2>(s, b) [head] y = Conv(t, c)",
    )
    ties = find_ties(model)
    assert groups(ties) == [("first", 2), ("grouped", 3)]
    assert_cut_equals_masked(model, ties, {ties.groups[0].channels[0], ties.groups[1].channels[1]})


def test_depthwise_convolution_loses_its_filter_and_a_group() -> None:
    model = ready(
        "float[N,3,4,4] x => float[N,2,4,4] y",
        {"a": "float[4,3,1,1]", "b": "float[4,1,3,3]", "c": "float[2,4,1,1]"},
        "[first] s = Conv(x, a) [deep] t = Conv<group=4, pads=[1,1,1,1]>(s, b) [head] y = Conv(t, c)",
    )
    ties = find_ties(model)
    small = assert_cut_equals_masked(model, ties, {ties.groups[0].channels[0]})
    assert next(node for node in small.graph if node.name == "deep").attributes.get_int("group", 1) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[first] s = Conv(x, a) y = DepthToSpace<blocksize=2>(s)", "DepthToSpace"),
        ("[first] s = Conv(x, a) t = Softmax<axis=1>(s) y = Identity(t)", "normalises over it"),
        ("[first] s = Conv(x, a) y = ReduceMean<keepdims=0>(s, one)", "reduces over it"),
        ("[first] s = Conv(x, a) t = CumSum(s, axis) y = Identity(t)", "CumSum"),
    ],
)
def test_what_cannot_be_followed_is_named_with_its_reason(body: str, reason: str) -> None:
    shapes = {"DepthToSpace": "float[N,1,8,8] y", "reduces over it": "float[N,4,4] y"}
    model = ready(
        f"float[N,3,4,4] x => {shapes.get(reason, 'float[N,4,4,4] y')}",
        {"a": "float[4,3,1,1]", "one": "int64[1]={1}", "axis": "int64[1]={2}"},
        body,
    )
    ties = find_ties(model)
    assert not ties.groups
    assert reason in ties.kept["first"]


def test_shared_weights_are_cut_once_for_all_their_readers() -> None:
    model = ready(
        "float[N,4,4,4] x => float[N,2,4,4] y",
        {"a": "float[4,4,1,1]", "c": "float[2,4,1,1]"},
        "[first] s = Conv(x, a) [second] t = Conv(s, a) [head] y = Conv(t, c)",
    )
    ties = find_ties(model)
    assert not ties.groups
    assert "shared" in ties.kept["first"]


def test_all_channels_of_a_layer_cannot_go() -> None:
    signature, constants, body = RESIDUAL
    model = ready(signature, {name: kind for name, kind in constants.items() if name != "b"}, body)
    ties = find_ties(model)
    assert "all of its 6 channels" in why_not(ties, ties.groups[1].channels)
    with pytest.raises(ValueError, match="all of its 6 channels"):
        cut_channels(model, ties, ties.groups[1].channels)
    assert "cannot be cut" in why_not(ties, {10**6})


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MatMul"])
def test_an_operator_of_another_domain_is_tied_to_no_rule_of_onnx(op: str) -> None:
    """Only the name is ONNX's: what such an operator does with its channels nobody knows, and nothing of it is cut."""
    kinds = {"w": "float[4,3,1,1]", "f": "float[3,3,1,1]", "h": "float[2,4,1,1]"}
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20, "own": 1]>
        g (float[1,3,4,4] a) => (float[1,2,4,4] z)
        <{", ".join(declared(name, kind) for name, kind in kinds.items())}>
        {{ [first] x = Conv(a, f) [alien] y = own.{op}(x, w) [last] z = Conv(y, h) }}"""
    )
    INFER_SHAPES(model)
    for value in (value for node in model.graph for value in node.outputs if value.name == "y"):
        value.shape, value.dtype = ir.Shape([1, 4, 4, 4]), ir.DataType.FLOAT
    ties = find_ties(model)
    assert "alien" not in {cut.node for cut in ties.cuts}
    assert "mixes channels in a way that is not known" in ties.kept["first"]


REPEATED = {
    "a constant for each channel": ("t = Mul(s, m)", {"m": "float[1,8,1,1]"}),
    "a constant on the left": ("t = Sub(m, s)", {"m": "float[8,1,1]"}),
    "a layer of more channels": ("[wide] w = Conv(x, c) t = Add(s, w)", {"c": "float[8,3,1,1]"}),
    "a choice": ("n = Greater(s, z) t = Where(n, s, m)", {"m": "float[1,8,1,1]", "z": "float[1]"}),
}


@pytest.mark.parametrize("name", REPEATED)
def test_one_channel_that_is_repeated_for_many_leaves_a_graph_that_can_be_cut_elsewhere(name: str) -> None:
    body, constants = REPEATED[name]
    model = ready(
        "float[N,3,4,4] x => float[N,2,4,4] y",
        {"a": "float[1,3,1,1]", "b": "float[6,8,1,1]", "d": "float[2,6,1,1]", **constants},
        f"[one] s = Conv(x, a) {body} [next] u = Conv(t, b) [head] y = Conv(u, d)",
    )
    ties = find_ties(model)
    assert "repeats one of its operands" in ties.kept["one"]
    assert groups(ties) == [("next", 6)]
    small = assert_cut_equals_masked(model, ties, {*ties.groups[0].channels[:2]})
    shapes = {str(value.name): value.shape for node in small.graph for value in node.outputs}
    assert shapes["t"] == ["N", 8, 4, 4]


@pytest.mark.parametrize("repeated", ["left", "right"])
def test_heads_of_a_product_that_repeats_one_operand_for_all_heads_are_kept(repeated: str) -> None:
    many, single = "int64[4]={0,0,4,2}", "int64[4]={0,0,1,2}"
    left, right = (single, many) if repeated == "left" else (many, single)
    model = ready(
        "float[N,5,6] x => float[N,5,3] y",
        {
            "a": f"float[6,{2 if repeated == 'left' else 8}]",
            "b": f"float[6,{8 if repeated == 'left' else 2}]",
            **{"o": "float[20,3]", "s": left, "u": right, "m": "int64[3]={0,0,20}"},
        },
        """[left] am = MatMul(x, a) [right] bm = MatMul(x, b) ar = Reshape(am, s) at = Transpose<perm=[0,2,1,3]>(ar)
        br = Reshape(bm, u) bt = Transpose<perm=[0,2,3,1]>(br) w = MatMul(at, bt) ht = Transpose<perm=[0,2,1,3]>(w)
        hr = Reshape(ht, m) [out] y = MatMul(hr, o)""",
    )
    ties = find_ties(model)
    assert not ties.groups and {"left", "right"} <= ties.kept.keys()


@pytest.mark.parametrize("opset", [11, 12, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [None, 1, 2, 3, -1, -2])
def test_softmax_runs_over_all_behind_its_axis_up_to_opset_12_and_over_it_alone_later(
    opset: int, op: str, axis: int | None
) -> None:
    attribute = "" if axis is None else f"<axis = {axis}>"
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": {opset}]> g (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <{declared("a", "float[6,3,1,1]")}, {declared("b", "float[2,6,1,1]")}>
        {{ [first] s = Conv(x, a) t = {op}{attribute}(s) [head] y = Conv(t, b) }}"""
    )
    INFER_SHAPES(model)
    model = prepare(model)
    ties = find_ties(model)
    first = (axis if axis is not None else 1 if opset < 13 else -1) % 4
    if first == 1:
        assert "normalises over it" in ties.kept["first"] and not ties.groups
    else:
        assert groups(ties) == [("first", 6)]
        assert_cut_equals_masked(model, ties, {*ties.groups[0].channels[:2]})


def test_heads_with_a_mask_of_their_own_are_kept() -> None:
    """The mask is a constant for each head, which no cut would follow."""
    found = {}
    for name, mask in {"each": "float[1,3,5,5]", "shared": "float[1,1,5,5]"}.items():
        model = ir.from_onnx_text(
            f"""<ir_version: 11, opset_import: ["": 23]> g (float[N,5,6] x) => (float[N,5,6] y)
            <{", ".join(declared(key, "float[6,6]") for key in "qkvo")}, {declared("m", mask)},
             int64[4] split = {{0,0,3,2}}, int64[3] join = {{0,0,6}}>
            {{ a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v)
            a4 = Reshape(a, split) b4 = Reshape(b, split) c4 = Reshape(c, split)
            at = Transpose<perm=[0,2,1,3]>(a4) bt = Transpose<perm=[0,2,1,3]>(b4) ct = Transpose<perm=[0,2,1,3]>(c4)
            h = Attention(at, bt, ct, m) ht = Transpose<perm=[0,2,1,3]>(h) hj = Reshape(ht, join)
            y = MatMul(hj, o) }}"""
        )
        INFER_SHAPES(model)
        model = prepare(model)
        ties = find_ties(model)
        found[name] = len(ties.groups)
        if ties.groups:
            assert_cut_equals_masked(model, ties, {ties.groups[0].channels[1]})
    assert found == {"each": 0, "shared": 1}
