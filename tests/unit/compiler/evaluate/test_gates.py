"""Limits become gates, gates judge figures, and what nobody measured is never called passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.artifact import Evidence
from compiler.artifact.schema import gate_text
from compiler.errors import FleetError
from compiler.evaluate.gates import (
    Constraints,
    Figure,
    GateName,
    hold,
    judge_gates,
    limits_text,
    make_constraints,
    nearest_limits,
)
from compiler.fleet import Fleet, Limits, Unjudged, WhenUnjudged, load_fleet

HOST = Evidence.HOST


def write(folder: Path, text: str) -> Path:
    for name in ("model.onnx", "data.npz"):
        (folder / name).touch()
    devices = "" if "devices:" in text else "devices: {a: {profile: intel-n100}}"
    (folder / "fleet.yaml").write_text(f"schema: 1\nmodel: model.onnx\n{text}\n{devices}\n", encoding="utf-8")
    return folder / "fleet.yaml"


def fleet(folder: Path, text: str) -> Fleet:
    return load_fleet(write(folder, text))


def constraints(folder: Path, text: str) -> Constraints:
    found = fleet(folder, text)
    return make_constraints(found, found.devices["a"])


def test_a_fleet_that_states_nothing_has_no_gates(tmp_path: Path) -> None:
    found = constraints(tmp_path, "calibration: {path: data.npz}")
    assert not found.any and found.task == ""


def test_an_evaluation_brings_the_default_limits_and_stated_ones_stand_over_them(tmp_path: Path) -> None:
    found = constraints(
        tmp_path, "evaluation: {task: verification, path: data.npz}\nlimits: {memory_reduction_pct: 10}"
    )
    assert found.limits == Limits(accuracy_drop_pct=2.0, memory_reduction_pct=10)
    assert (found.task, found.data) == ("verification", "evaluation")
    assert "default" in found.reasons["accuracy_drop_pct"] and "stated" in found.reasons["memory_reduction_pct"]


def test_without_an_evaluation_only_what_is_stated_holds(tmp_path: Path) -> None:
    found = constraints(tmp_path, "calibration: {path: data.npz}\nlimits: {latency_ms: 4}")
    assert found.limits == Limits(latency_ms=4) and found.task == ""


def test_a_limit_on_accuracy_without_an_evaluation_is_judged_on_the_calibration_data_and_says_so(
    tmp_path: Path,
) -> None:
    found = constraints(tmp_path, "calibration: {path: data.npz}\nlimits: {accuracy_drop_pct: 1}")
    assert (found.task, found.data) == ("embedding", "calibration")
    assert "no evaluation" in found.reasons["accuracy_drop_pct"]


def test_a_limit_on_accuracy_without_any_data_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no data to measure it on") as caught:
        constraints(tmp_path, "limits: {accuracy_drop_pct: 1}")
    assert "fleet.yaml:4 devices.a" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "limits", "value", "passed"),
    [
        ("accuracy", Limits(accuracy_drop_pct=2.0), 2.0, True),
        ("accuracy", Limits(accuracy_drop_pct=2.0), 2.001, False),
        ("accuracy", Limits(accuracy_drop_pct=0.0), -1.0, True),
        ("memory: weights", Limits(memory_reduction_pct=40), 40.0, True),
        ("memory: weights", Limits(memory_reduction_pct=40), 39.9, False),
        ("memory: run", Limits(memory_reduction_pct=40), -3.0, False),
        ("latency", Limits(latency_ms=5), 5.0, True),
        ("latency", Limits(latency_ms=5), 5.1, False),
    ],
)
def test_a_limit_holds_up_to_its_own_value(name: str, limits: Limits, value: float, passed: bool) -> None:
    gates = {gate.name: gate for gate in judge_gates(limits, {name: Figure(value, HOST)})}
    assert gates[name].passed is passed
    assert str(gates[name]).startswith(f"{name} {'passed' if passed else 'failed'}: ")


def test_what_was_not_measured_is_not_judged_and_fails_nothing() -> None:
    figure = Figure(None, Evidence.NONE, why="no GPU here")
    gates = judge_gates(Limits(memory_reduction_pct=40), {"memory: weights": Figure(50, HOST), "memory: run": figure})
    assert [gate.passed for gate in gates] == [True, None]
    assert hold(gates)
    assert str(gates[1]) == "memory: run: not judged: no GPU here"


@pytest.mark.parametrize("figures", [{}, {GateName.ACCURACY: Figure(None, Evidence.NONE, why="no GPU here")}])
def test_what_was_not_judged_fails_the_build_where_the_fleet_file_asks_for_it(figures: dict[GateName, Figure]) -> None:
    limits = Limits(accuracy_drop_pct=2, latency_ms=5)
    (accuracy, latency) = judge_gates(limits, figures, unjudged=Unjudged(accuracy=WhenUnjudged.FAIL))
    assert accuracy.passed is None and accuracy.refuses
    assert "this fails the build" in str(accuracy)
    assert latency.passed is None and not latency.refuses
    assert not hold([accuracy, latency])


def test_unjudged_is_one_word_for_all_gates_or_said_by_gate_and_strict_overrules_it(tmp_path: Path) -> None:
    def read(text: str) -> tuple[Unjudged, Unjudged]:
        found = load_fleet(write(tmp_path, text))
        device = found.devices["a"]
        return device.unjudged, make_constraints(found, device, strict=True).unjudged

    every = Unjudged(**dict.fromkeys(vars(Unjudged()), WhenUnjudged.FAIL))
    assert read("") == (Unjudged(), every)
    assert read("unjudged: fail")[0] == every
    over = read("unjudged: fail\ndevices: {a: {profile: intel-n100, unjudged: {accuracy: deliver}}}")
    assert over == (replace(every, accuracy=WhenUnjudged.DELIVER), every)


def test_the_plan_says_what_becomes_of_a_build_that_nobody_could_judge(tmp_path: Path) -> None:
    found = constraints(tmp_path, "limits: {latency_ms: 5}")
    assert found.reasons["latency_ms"].endswith("where it cannot be judged: deliver")


def test_calibration_and_evaluation_of_one_file_are_warned_of_in_the_plan(tmp_path: Path) -> None:
    found = constraints(tmp_path, "calibration: {path: data.npz}\nevaluation: {task: embedding, path: data.npz}")
    assert "are the same data" in found.reasons["accuracy_drop_pct"]
    assert "are the same data" not in found.reasons["memory_reduction_pct"]


@pytest.mark.parametrize(
    ("name", "limits", "value", "text"),
    [
        ("memory: run", Limits(memory_reduction_pct=40), 49.96, "passed: 50 % less, limit at least 40"),
        ("memory: run", Limits(memory_reduction_pct=40), 39.98, "failed: 39.98 % less, limit at least 40"),
        ("memory: run", Limits(memory_reduction_pct=40), 0.0, "failed: 0 % less, limit at least 40"),
        ("memory: run", Limits(memory_reduction_pct=40), -3.21, "failed: 3.2 % more, limit at least 40 % less"),
        ("memory: run", Limits(memory_reduction_pct=40), -256.87, "failed: 2.6 times more, limit at least 40 % less"),
        ("accuracy", Limits(accuracy_drop_pct=2.0), 2.001, "failed: 2.001 points lost, limit at most 2"),
        ("accuracy", Limits(accuracy_drop_pct=0.5), 1.0, "failed: 1 point lost, limit at most 0.5"),
        ("accuracy", Limits(accuracy_drop_pct=2.0), -0.5, "passed: 0.5 points gained, limit at most 2 points lost"),
        ("latency", Limits(latency_ms=5), 1234.567, "failed: 1234.57 ms, limit at most 5"),
        ("latency", Limits(latency_ms=1e-6), 4.2e-4, "failed: 0.0004 ms, limit at most 1e-06"),
        ("saliency", Limits(saliency_correlation_min=0.9), -0.1234, "failed: -0.123 correlation, limit at least 0.9"),
    ],
)
def test_a_verdict_is_written_in_numbers_as_people_write_them(
    name: str, limits: Limits, value: float, text: str
) -> None:
    gates = {gate.name: gate for gate in judge_gates(limits, {GateName(name): Figure(value, HOST, rule="peak")})}
    assert gate_text(gates[GateName(name)]) == f"{name} {text}"
    assert str(gates[GateName(name)]) == f"{name} {text} (peak; {HOST})"


def test_a_limit_nobody_gave_a_figure_for_is_not_judged() -> None:
    (gate,) = judge_gates(Limits(latency_ms=5), {})
    assert gate.passed is None and gate.evidence == Evidence.NONE


@given(
    st.floats(0, 100),
    st.floats(0, 99),
    st.floats(-50, 99.9).filter(lambda value: value >= 0),
    st.floats(0.01, 1000),
    st.floats(0.01, 1000),
)
def test_the_nearest_limits_would_have_passed(
    drop: float, saved: float, saved_run: float, latency: float, limit: float
) -> None:
    limits = Limits(accuracy_drop_pct=1.0, memory_reduction_pct=50, latency_ms=limit)
    figures = {
        "accuracy": Figure(drop, HOST),
        "memory: weights": Figure(saved, HOST),
        "memory: run": Figure(saved_run, HOST),
        "latency": Figure(latency, HOST),
    }
    nearest = nearest_limits(judge_gates(limits, figures))
    merged = {name: value for name, value in vars(nearest).items() if value is not None}
    assert hold(judge_gates(Limits(**{**vars(limits), **merged}), figures))


def test_nearest_limits_are_those_that_failed_only_rounded_to_the_safe_side() -> None:
    limits = Limits(accuracy_drop_pct=2.0, memory_reduction_pct=40, latency_ms=9)
    figures = {
        "accuracy": Figure(5.31, HOST),
        "memory: weights": Figure(70.0, HOST),
        "memory: run": Figure(33.19, HOST),
        "latency": Figure(3.0, HOST),
    }
    nearest = nearest_limits(judge_gates(limits, figures))
    assert nearest == Limits(accuracy_drop_pct=5.4, memory_reduction_pct=33.1)
    assert limits_text(nearest) == "limits: {accuracy_drop_pct: 5.4, memory_reduction_pct: 33.1}"
