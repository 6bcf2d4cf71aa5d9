"""What is delivered, and what need not be tried any further."""

from __future__ import annotations

import pytest

from compiler.artifact import Evidence
from compiler.driver.measure.speed import Speed
from compiler.driver.search.select import beaten_by, explain_failure
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import Made
from compiler.errors import ToolchainFailed, UnsupportedModel
from compiler.evaluate.gates import Gate


def trial(number: int, speedup: float | None, *, passed: bool, evidence: Evidence = Evidence.HOST) -> Trial:
    speed = Speed(speedup, 1.0, 1.0, "ms", evidence)
    gate = Gate("accuracy", 2.0, 0.0 if passed else 9.0, "points lost", passed, Evidence.HOST, "point")
    made = object.__new__(Made)  # that something was made counts, not what
    return Trial(number, "candidate", "fp16" if passed else "int8", made, gates=(gate,), speed=speed)


@pytest.mark.parametrize(
    ("mine", "others", "is_beaten"),
    [(1.5, 2.0, True), (2.5, 2.0, False), (1.98, 2.0, False), (None, 2.0, True)],
    ids=["slower", "faster", "as fast", "no gain known"],
)
def test_a_candidate_is_given_up_only_where_what_passes_is_clearly_faster(
    mine: float | None, others: float, is_beaten: bool
) -> None:
    lost, fine = trial(1, mine, passed=False), trial(2, others, passed=True)
    assert beaten_by(lost, [lost, fine]) is (fine if is_beaten else None)


def test_speeds_of_different_evidence_are_not_compared_and_nothing_beats_where_nothing_passes() -> None:
    lost = trial(1, 1.5, passed=False, evidence=Evidence.ESTIMATED)
    assert beaten_by(lost, [lost, trial(2, 2.0, passed=True)]) is None
    assert beaten_by(lost, [lost, trial(2, 2.0, passed=False, evidence=Evidence.ESTIMATED)]) is None


def test_a_device_without_a_candidate_to_build_is_refused_with_the_reason() -> None:
    baseline = Trial(1, "baseline", "fp32", object.__new__(Made))  # of a model that is quantized already
    error = explain_failure([baseline], "kiosk")
    assert isinstance(error, UnsupportedModel) and error.where == "kiosk"
    assert "quantized already" in error.what and error.remedy


def test_a_device_whose_candidates_all_failed_to_build_has_the_first_error() -> None:
    first = ToolchainFailed("the compiler crashed")
    failed = [Trial(1, "candidate", "fp16", error=first), Trial(2, "candidate", "int8", error=ToolchainFailed("other"))]
    assert explain_failure(failed, "kiosk") is first
