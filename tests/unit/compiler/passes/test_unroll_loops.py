"""A Loop of constant trips becomes its body, once per trip, for targets that have no Loop."""

from __future__ import annotations

import pytest
from pass_cases import parse

from compiler.model.graph import check_model, graph_digest
from compiler.passes.infer_shapes import infer_shapes
from compiler.passes.probe import make_probe
from compiler.passes.unroll_loops import UnrollLoops

STEP = UnrollLoops(lambda node: node.op_type == "Loop")
BODIES = {
    "a carried value": ("", "w = Add(v, x) z = Mul(w, half)", "z", ""),
    "the trip's number": ("", "f = Cast<to=1>(i) z = Mul(v, f)", "z", ""),
    "passed through": ("", "k3 = Identity(k)", "v", ""),
    "a scan output": ("", "z = Neg(v) s = Abs(z)", "z", "s"),
    "weights of the body": ("<float[4] b = {1,2,3,4}>", "z = Add(v, b)", "z", ""),
    "a branch inside": (
        "",
        "q = Cast<to=9>(i) z = If(q) <then_branch = t () => (float[2,4] p) { p = Neg(v) }, "
        "else_branch = e () => (float[2,4] p2) { p2 = Abs(v) }>",
        "z",
        "",
    ),
}


def loop(body: str, trips: object, *, condition: str = "k2 = Identity(k)", opset: int = 20) -> str:
    weights, lines, carried, scan = BODIES[body]
    scans = f", float[2,4] {scan}" if scan else ""
    outputs = ", float[T,2,4] u" if scan else ""
    return f"""<ir_version: 10, opset_import: ["": {opset}]>
        g (float[2,4] x, int64 m, bool r) => (float[2,4] y{outputs})
        <int64 n = {{{trips}}}, bool c = {{1}}, float half = {{0.5}}> {{
        a = Relu(x) y{", u" if scan else ""} = Loop(n, c, a) <body = b (int64 i, bool k, float[2,4] v)
            => (bool k2, float[2,4] {carried}{scans}) {weights} {{ {condition} {lines} }}> }}"""


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("trips", [1, 2, 5])
@pytest.mark.parametrize("opset", [11, 20])
def test_each_trip_is_written_out(body: str, trips: int, opset: int) -> None:
    model = parse(loop(body, trips, opset=opset))
    infer_shapes(model)
    probe = make_probe(model)
    assert probe.expected is not None, probe.why
    assert STEP(model).modified
    check_model(model)
    assert not any(node.op_type == "Loop" for node in model.graph.all_nodes())
    assert probe.worst(model).worst_abs == 0.0
    digest = graph_digest(model)
    assert not STEP(model).modified and graph_digest(model) == digest


def test_no_trip_gives_what_was_put_in() -> None:
    model = parse(loop("a carried value", 0))
    probe = make_probe(model)
    assert STEP(model).modified
    check_model(model)
    assert probe.worst(model).worst_abs == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (loop("a carried value", 2049), "more than 4096 nodes"),
        (loop("a carried value", 3, condition="k2 = Identity(r)"), "its body decides when it ends"),
        (loop("a carried value", 3).replace("Loop(n, c", "Loop(m, c"), "its number of trips is not constant"),
        (loop("a carried value", 3).replace("Loop(n, c", "Loop(n, r"), "its condition is not constant"),
    ],
)
def test_other_loops_stay_with_the_reason(text: str, reason: str) -> None:
    model = parse(text)
    before = graph_digest(model)
    (note,) = STEP(model).notes
    assert reason in note and graph_digest(model) == before


def test_a_target_that_has_loops_keeps_them() -> None:
    model = parse(loop("a carried value", 3))
    assert not UnrollLoops(lambda node: False)(model).modified
