"""What is delivered, and what need not be tried any further."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.artifact import Evidence
from compiler.driver.measure.speed import Speed
from compiler.driver.search.certify import alternatives
from compiler.driver.search.select import beaten_by, choose_trial, explain_choice, explain_failure, out_of_reach
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.errors import ToolchainFailed, UnsupportedModel
from compiler.evaluate.gates import Gate


def trial(number: int, speedup: float | None, *, passed: bool, evidence: Evidence = Evidence.HOST) -> Trial:
    speed = Speed(speedup, 1.0, 1.0, "ms", evidence)
    gate = Gate("accuracy", 2.0, 0.0 if passed else 9.0, "points lost", passed, Evidence.HOST, "point")
    made = object.__new__(BuiltCandidate)  # that something was made counts, not what
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


def unjudged(number: int, speedup: float, *, evidence: Evidence = Evidence.ESTIMATED) -> Trial:
    """A candidate that could not be run: nothing judged its accuracy."""
    gate = Gate("accuracy", 2.0, None, "points lost", None, Evidence.NONE, "point", "it cannot be run here")
    made = object.__new__(BuiltCandidate)
    speed = Speed(speedup, 1.0, 1.0, "ms by roofline", evidence)
    return Trial(number, "candidate", "bf16", made, gates=(gate,), speed=speed)


@pytest.mark.parametrize("speedup", [2.0, 20.0])
def test_an_estimated_speed_does_not_beat_a_measured_one(speedup: float) -> None:
    measured = trial(1, 1.9, passed=True)
    estimated = trial(2, speedup, passed=True, evidence=Evidence.ESTIMATED)
    assert choose_trial([measured, estimated]) is measured
    assert choose_trial([estimated, measured]) is measured


def test_an_accuracy_nobody_judged_does_not_beat_a_judged_one_by_figures_of_the_same_kind() -> None:
    judged = trial(1, 1.5, passed=True, evidence=Evidence.ESTIMATED)
    assert choose_trial([judged, unjudged(2, 3.0)]) is judged
    assert choose_trial([trial(1, 1.5, passed=True), unjudged(2, 3.0, evidence=Evidence.HOST)]).number == 1


def test_what_nobody_could_judge_is_delivered_where_nothing_else_passes() -> None:
    only = unjudged(2, 3.0)
    assert choose_trial([trial(1, 5.0, passed=False), only]) is only


def test_the_reason_names_what_was_passed_over_for_want_of_evidence() -> None:
    measured, estimated = trial(1, 1.9, passed=True), unjudged(2, 20.0)
    text = explain_choice(measured, [measured, estimated])
    assert "bf16: its accuracy was not judged, that of what is delivered was" in text


def test_less_evidence_ends_the_search_for_other_forms_and_more_does_not() -> None:
    lost, estimated = trial(1, 1.5, passed=False), trial(2, 2.0, passed=True, evidence=Evidence.ESTIMATED)
    assert beaten_by(lost, [lost, estimated]) is None
    lost, measured = trial(1, 9.0, passed=False, evidence=Evidence.ESTIMATED), trial(2, 2.0, passed=True)
    assert beaten_by(lost, [lost, measured]) is measured
    refused = trial(2, 2.0, passed=False, evidence=Evidence.ESTIMATED)
    assert beaten_by(lost, [lost, refused]) is None


def test_pruning_pays_only_by_figures_as_good_as_those_without_it() -> None:
    whole = trial(1, 1.5, passed=True)
    pruned = replace(trial(2, 3.0, passed=True, evidence=Evidence.ESTIMATED), purpose="pruning")
    assert choose_trial([whole, pruned]) is whole
    assert choose_trial([whole, replace(trial(2, 3.0, passed=True), purpose="pruning")]).number == 2


def test_a_device_without_a_candidate_to_build_is_refused_with_the_reason() -> None:
    baseline = Trial(1, "baseline", "fp32", object.__new__(BuiltCandidate))  # of a model that is quantized already
    error = explain_failure([baseline], "kiosk")
    assert isinstance(error, UnsupportedModel) and error.where == "kiosk"
    assert "quantized already" in error.what and error.remedy


def test_a_device_whose_candidates_all_failed_to_build_has_the_first_error() -> None:
    first = ToolchainFailed("the compiler crashed")
    failed = [Trial(1, "candidate", "fp16", error=first), Trial(2, "candidate", "int8", error=ToolchainFailed("other"))]
    assert explain_failure(failed, "kiosk") is first


@pytest.mark.parametrize(("expected", "is_out"), [(1.9, True), (1.95, False), (9.0, False)])
def test_what_is_expected_to_be_clearly_slower_than_what_passes_need_not_be_made(expected: float, is_out: bool) -> None:
    fine = trial(1, 2.0, passed=True)
    assert out_of_reach(expected, [fine]) is (fine if is_out else None)
    assert out_of_reach(expected, [trial(1, 2.0, passed=False)]) is None


def test_only_a_judged_trial_with_the_best_evidence_so_far_rules_a_candidate_out() -> None:
    assert out_of_reach(1.0, [unjudged(1, 3.0)]) is None
    measured, estimated = trial(1, 1.0, passed=False), trial(2, 3.0, passed=True, evidence=Evidence.ESTIMATED)
    assert out_of_reach(1.0, [measured, estimated]) is None
    assert out_of_reach(1.0, [estimated]) is estimated


def test_what_int8_loses_is_not_mixed_into_the_certified_drop_of_a_float16_build() -> None:
    lost, other, fine = trial(1, 3.0, passed=False), trial(2, 2.9, passed=False), trial(3, 2.0, passed=True)
    assert alternatives(fine, [lost, other, fine]) == [fine]


def test_every_form_of_the_chosen_precision_that_could_be_delivered_stands_for_luck() -> None:
    lost, fine = trial(1, 3.0, passed=False), replace(trial(2, 2.9, passed=True), precision="int8")
    failed = replace(trial(3, 2.8, passed=False), made=None, error=ToolchainFailed("no engine"))
    assert alternatives(fine, [fine, failed, lost]) == [lost, fine]
