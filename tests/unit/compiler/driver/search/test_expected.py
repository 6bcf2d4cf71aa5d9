"""What an estimate rules out before it is made, and what a raced build is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import Speed, SpeedUnit
from compiler.driver.search.contest import raced_plan
from compiler.driver.search.expected import as_good
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.quantize import Variant
from compiler.driver.work import list_border_casts, list_work
from compiler.evaluate.gates import Gate
from compiler.fleet import Range
from compiler.passes.pipelines import precision_passes
from compiler.target import TargetPlan
from compiler.target.capability import PrecisionRule
from compiler.target.scheme import QuantScheme

BF16 = PrecisionRule("bf16", "as fast as fp16", converts_graph=True, tolerance="bf16", gain=3.0)
INT8 = replace(BF16, name="int8", scheme=QuantScheme("any", {}))
CONV = """<ir_version: 10, opset_import: ["": 18]> one (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
    y = Relu(x) }"""


def passed(precision: str, speedup: float, evidence: Evidence = Evidence.ESTIMATED) -> Trial:
    gate = Gate("accuracy", 2.0, 0.0, "points lost", True, Evidence.HOST, "point")
    made = object.__new__(BuiltCandidate)  # that something was made counts, not what
    speed = Speed(speedup, 1.0, speedup, SpeedUnit.ROOFLINE_MS, evidence)
    return Trial(1, "candidate", precision, made, gates=(gate,), speed=speed)


@pytest.mark.parametrize(
    ("best", "expected", "is_left_out"),
    [("fp16", 2.0, True), ("fp16", 2.05, True), ("fp16", 2.2, False), ("fp32", 1.0, False)],
    ids=["as fast", "hardly faster", "faster", "smaller"],
)
def test_another_half_precision_that_is_no_faster_by_the_estimate_need_not_be_made(
    best: str, expected: float, is_left_out: bool
) -> None:
    trial = passed(best, 2.0)
    assert as_good(BF16, expected, [trial]) is (trial if is_left_out else None)


def test_what_is_quantized_is_compared_as_it_was_built() -> None:
    assert as_good(INT8, 1.0, [passed("fp16", 2.0)]) is None
    assert as_good(BF16, 1.0, [replace(passed("int8", 2.0), variant=Variant())]) is None
    assert as_good(BF16, 1.0, []) is None


@pytest.mark.parametrize("batch", [1, 16])
def test_the_casts_of_a_converted_graph_are_known_before_it_is_converted(batch: int) -> None:
    model = ir.from_onnx_text(CONV)
    expected = list_border_casts(model, batch=batch)
    for step in precision_passes("fp16"):
        step(model)
    casts = [work for work in list_work(model, batch=batch) if work.op == "Cast"]
    assert [(work.activations, work.is_low) for work in casts] == [(work.activations, work.is_low) for work in expected]
    assert len(casts) == 2 and casts[0].activations == 2 * batch * 4 * 6 * 6


@dataclass(frozen=True)
class _Plan:
    target_plan: TargetPlan = field(
        default_factory=lambda: TargetPlan("fp32", None, dims={"batch": Range(1, 8, 32), "rows": Range(2, 4, 6)})
    )


@pytest.mark.parametrize(
    ("fixed_sizes", "generation", "sizes"),
    [("several are built", None, 8), ("", None, 1), ("several are built", "a language model", 1)],
    ids=["sizes apart", "open shapes", "language model"],
)
def test_a_build_that_is_only_raced_has_the_raced_size_alone(
    fixed_sizes: str, generation: str | None, sizes: int
) -> None:
    target = SimpleNamespace(capability=lambda profile: SimpleNamespace(fixed_sizes=fixed_sizes))
    job = SimpleNamespace(target=target, profile=None, device=SimpleNamespace(generation=generation))
    context: Any = SimpleNamespace(job=job)
    plan: Any = _Plan()
    batch = raced_plan(context, plan).target_plan.dims["batch"]
    assert (batch.min, batch.opt) == (sizes, 8)
