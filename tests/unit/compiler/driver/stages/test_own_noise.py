"""Nothing is held nearer to the reference than the reference is to itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.verify import failures, leave_own_noise
from compiler.model.numerics import TOLERANCES, Arrays
from compiler.passes.probe import own_noise_db, run_unoptimized

LEVEL = TOLERANCES["fp32"]
TEXT = """<ir_version: 10, opset_import: ["": 18]>
g (float[1,256] x) => (float[1,256] y) <float c = {-1.0}> { m = Mul(x, x) n = Mul(m, c) y = Sigmoid(n) }"""
INTEGERS = """<ir_version: 10, opset_import: ["": 18]>
g (float[1,256] x) => (float[1,256] y, int64[1,256] i) <float c = {-1.0}, float k = {1000000.0}> {
    m = Mul(x, x) n = Mul(m, c) y = Sigmoid(n) l = Mul(m, k) i = Cast<to = 7>(l)
}"""


def case_of(mean: float) -> tuple[ir.Model, ParityCase]:
    """Sigmoid(-x²), and what ONNX Runtime computes."""
    model = ir.from_onnx_text(TEXT)
    inputs: Arrays = {"x": (mean + 0.05 * np.random.default_rng(0).standard_normal((1, 256))).astype(np.float32)}
    return model, ParityCase("fixed", inputs, run_unoptimized(model, inputs))


def exact(case: ParityCase, factor: float = 1.0) -> Arrays:
    """The same, rounded once."""
    return {"y": (factor / (1 + np.exp(case.inputs["x"].astype(np.float64) ** 2))).astype(np.float32)}


def test_an_output_that_is_nearly_zero_is_held_to_the_references_own_noise() -> None:
    """ONNX Runtime's Sigmoid is right to the last place of 1, which is much of 1e-5: exact results miss 60 dB."""
    model, case = case_of(3.4)
    outside = failures(case.expected, exact(case), LEVEL.name)
    assert "y" in outside
    left, words = leave_own_noise([(case, outside)], model, LEVEL)
    assert left == [] and "the reference's own outputs move by" in words


def test_a_wrong_output_is_wrong_where_the_reference_is_unsure_too() -> None:
    model, case = case_of(4.0)
    outside = failures(case.expected, exact(case, factor=3.0), LEVEL.name)
    left, words = leave_own_noise([(case, outside)], model, LEVEL)
    assert [(one.label, list(outputs)) for one, outputs in left] == [("fixed", ["y"])] and words == ""


def test_integers_must_be_equal_whatever_the_noise() -> None:
    model = ir.from_onnx_text(INTEGERS)
    inputs: Arrays = {"x": (4 + 0.05 * np.random.default_rng(0).standard_normal((1, 256))).astype(np.float32)}
    case = ParityCase("fixed", inputs, run_unoptimized(model, inputs))
    wrong = {"y": case.expected["y"], "i": case.expected["i"] + np.eye(1, 256, dtype=np.int64)}
    outside = failures(case.expected, wrong, LEVEL.name)
    assert list(outside) == ["i"] and outside["i"].sqnr_db > LEVEL.sqnr_db_min
    assert leave_own_noise([(case, outside)], model, LEVEL) == ([(case, outside)], "")


def test_an_output_that_the_reference_is_sure_of_is_held_to_the_tolerance() -> None:
    model, case = case_of(1.0)
    assert failures(case.expected, exact(case), LEVEL.name) == {}
    outside = failures(case.expected, exact(case, factor=1.01), LEVEL.name)
    left, words = leave_own_noise([(case, outside)], model, LEVEL)
    assert len(left) == 1 and words == ""


def test_a_chaotic_model_in_floats_passes_nothing_that_is_a_tenth_off() -> None:
    """The logistic map doubles an error at each step: after 30 the reference itself is noise."""
    steps = "".join(f"a{i} = Sub(one, x{i}) b{i} = Mul(a{i}, x{i}) x{i + 1} = Mul(b{i}, r)\n" for i in range(30))
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 18]>
g (float[1,64] x0) => (float[1,64] x30) <float one = {{1.0}}, float r = {{4.0}}> {{ {steps} }}""")
    inputs: Arrays = {"x0": np.random.default_rng(0).uniform(0.1, 0.9, (1, 64)).astype(np.float32)}
    case = ParityCase("fixed", inputs, run_unoptimized(model, inputs))
    assert own_noise_db(model, inputs, case.expected)["x30"] < 15
    outside = failures(case.expected, {"x30": case.expected["x30"] * np.float32(1.2)}, LEVEL.name)
    left, words = leave_own_noise([(case, outside)], model, LEVEL)
    assert len(left) == 1 and words == ""
