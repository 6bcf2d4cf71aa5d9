"""Reshapes traced at batch 1 are mended where running proves it, and named where it does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import FleetError
from compiler.fleet import Range
from compiler.model.frontend import bind_shapes
from compiler.model.graph import check_model
from compiler.model.reference import Unoptimized

WEIGHTS = "float[4,3,3,3] w = {%s}, float[64,5] v = {%s}, float[16,5] u = {%s}"
WEIGHTS %= tuple(",".join(str((i * 7) % 11 / 8 - 0.5) for i in range(n)) for n in (108, 320, 80))
CONV = "c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c)"

MENDABLE = {
    "flatten to (1, -1)": f"{CONV} f = Reshape(r, flat) y = MatMul(f, v)",
    "flatten to (1, 64)": f"{CONV} f = Reshape(r, whole) y = MatMul(f, v)",
    "at the end": f"{CONV} f = Reshape(r, whole) y = Identity(f)",
    "twice": f"{CONV} f = Reshape(r, whole) g = Relu(f) h = Reshape(g, back) k = Reshape(h, flat) y = MatMul(k, v)",
    "channels shuffled": f"{CONV} f = Reshape(r, groups) g = Transpose<perm=[0,2,1,3,4]>(f) h = Reshape(g, back) "
    "k = Reshape(h, flat) y = MatMul(k, v)",
    "tokens": f"{CONV} f = Reshape(r, tokens) t = Transpose<perm=[0,2,1]>(f) m = ReduceMean<axes=[1], keepdims=0>(t) "
    "y = Relu(m)",
}
SHAPES = (
    "int64[2] flat = {1,-1}, int64[2] whole = {1,64}, int64[4] back = {1,4,4,4}, int64[5] groups = {1,2,2,4,4}, "
    "int64[3] tokens = {1,4,16}"
)


def model(body: str, *, batch: str = "N", output: str = "float[N,K] y") -> ir.Model:
    signature = f"g (float[{batch},3,4,4] x) => ({output}) <{WEIGHTS}, {SHAPES}>"
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]> {signature} {{ {body} }}')


def run(given: ir.Model, rows: int) -> np.ndarray:
    x = np.random.default_rng(3).standard_normal((8, 3, 4, 4)).astype(np.float32)[:rows]
    return Unoptimized(given).run({"x": x})["y"]


@pytest.mark.parametrize("body", MENDABLE)
@pytest.mark.parametrize("batch", ["N", "None", "?"])
@pytest.mark.parametrize("sizes", [Range(4, 4, 4), Range(1, 2, 8), Range(2, 2, 2)], ids=str)
def test_a_traced_reshape_keeps_the_batch(body: str, batch: str, sizes: Range) -> None:
    output = "float[N,K] y" if batch == "N" else "float[A,K] y"
    given = model(MENDABLE[body], batch=batch, output=output)
    alone = run(given, 1)
    bound = bind_shapes(given, {"batch": sizes})
    assert "fixed the batch at 1; it keeps the batch now" in bound.notes[-1]
    check_model(bound.model)
    together = run(bound.model, sizes.max)
    assert together.shape[0] == sizes.max
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-5)
    first = bound.model.graph.outputs[0].shape[0]
    assert first == sizes.max if sizes.is_fixed else first.value == "batch"


@pytest.mark.parametrize("body", MENDABLE)
def test_each_row_of_a_mended_model_is_what_the_row_gives_alone(body: str) -> None:
    x = np.random.default_rng(3).standard_normal((4, 3, 4, 4)).astype(np.float32)
    bound = bind_shapes(model(MENDABLE[body]), {"batch": Range(4, 4, 4)}).model
    together, session = Unoptimized(bound).run({"x": x})["y"], Unoptimized(model(MENDABLE[body]))
    for row in range(4):
        alone = session.run({"x": x[row : row + 1]})["y"]
        np.testing.assert_allclose(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", MENDABLE)
def test_at_batch_1_nothing_is_mended(body: str) -> None:
    bound = bind_shapes(model(MENDABLE[body]), {"batch": Range(1, 1, 1)})
    assert bound.notes == ()


def test_a_model_that_mixes_samples_is_refused_with_the_node() -> None:
    mean = "m = ReduceMean<axes=[0], keepdims=1>(r) k = Reshape(m, whole)"
    body = f"{CONV} [view] f = Reshape(r, whole) {mean} s = Mul(f, k) y = MatMul(s, v)"
    with pytest.raises(FleetError, match=r"Reshape 'view'.* cannot be mended: output 'y' of two samples at once"):
        bind_shapes(model(body), {"batch": Range(4, 4, 4)}, where="fleet.yaml:3")


def test_a_batch_that_is_fixed_elsewhere_too_is_refused_with_the_node() -> None:
    body = f"{CONV} [view] f = Reshape(r, whole) z = ConstantOfShape(whole) y = Concat<axis=1>(f, z)"
    with pytest.raises(FleetError, match=r"'view'.* does not run at batch 2"):
        bind_shapes(model(body), {"batch": Range(1, 4, 8)})


def test_a_model_that_flattens_the_batch_on_purpose_is_left_alone() -> None:
    """It runs at batch 2, and gives what it declares."""
    body = "f = Reshape(x, flat) s = Softmax(f) y = Relu(s)"
    bound = bind_shapes(model(body, output="float[1,K] y"), {"batch": Range(4, 4, 4)})
    assert bound.notes == ()
    assert run(bound.model, 4).shape == (1, 192)
