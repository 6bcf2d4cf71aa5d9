"""Every case on every installed target, with strict known gaps."""

from __future__ import annotations

from pathlib import Path

import pytest
from suites import QUICK, SUITES, Trial, known_gaps, target_of, trials

from compiler.target.testing import Status, run_case

_TRIALS = trials()


@pytest.mark.parametrize("trial", _TRIALS, ids=str)
def test_target_computes_the_case_or_the_gap_is_known(trial: Trial, toolchain_cache: Path, tmp_path: Path) -> None:
    if trial.problem:
        pytest.skip(trial.problem)
    outcome = run_case(
        target_of(trial.target),
        trial.profile,
        trial.case,
        precision=trial.precision,
        workdir=tmp_path,
        cache_dir=toolchain_cache,
    )
    gap = known_gaps().get((trial.target, trial.case.name))
    if outcome.status is Status.BUILT:
        pytest.skip(f"built, inputs and outputs as in the model; not run: {outcome.reason}")
    if gap is not None:
        assert not outcome.passed, f"{trial}: passes now; take it out of known_gaps.yaml ({gap})"
        pytest.xfail(gap)
    assert outcome.passed, str(outcome)


@pytest.mark.slow
def test_known_gaps_name_only_cases_that_run() -> None:
    known = {(trial.target, trial.case.name) for trial in _TRIALS}
    absent = {trial.target for trial in _TRIALS if trial.problem}
    assert [gap for gap in known_gaps() if gap not in known and gap[0] not in absent] == []


def test_known_gaps_give_a_reason() -> None:
    assert all(len(reason.split()) > 3 for reason in known_gaps().values())


@pytest.mark.parametrize("target", ["reference", "openvino"])
def test_targets_that_are_always_installed_have_many_cases(target: str) -> None:
    assert target in SUITES
    assert sum(trial.target == target for trial in _TRIALS) > (200 if QUICK else 900)
