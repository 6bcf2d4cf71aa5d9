from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import pytest

from compiler.errors import ToolchainFailed
from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.target import TargetPlan
from compiler.target.testing import (
    FakeTarget,
    Outcome,
    Status,
    check_target,
    conformance_cases,
    onnx_backend_cases,
    run_case,
    text_case,
)

_NET = text_case("net", "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", batches=(1, 2, 3))


def _profile(**options: Any) -> HardwareProfile:
    return HardwareProfile(schema=1, name="fake-board", target="fake", target_options=options)


def _outcome(**options: Any) -> Outcome:
    return run_case(FakeTarget(), _profile(**options), _NET)


@pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case.name)
def test_case_is_a_valid_model_with_fitting_answers(case: Any) -> None:
    proto = case.proto()
    onnx.checker.check_model(proto, full_check=True)
    assert proto.SerializeToString(deterministic=True) == case.proto().SerializeToString(deterministic=True)
    for answer in case.answers():
        for output in proto.graph.output:
            sizes = [dim.dim_value or None for dim in output.type.tensor_type.shape.dim]
            assert len(sizes) == answer[output.name].ndim
            assert all(want in (None, got) for want, got in zip(sizes, answer[output.name].shape, strict=True))


def test_names_of_cases_are_unique_and_the_short_list_is_part_of_the_long_one() -> None:
    names = [case.name for case in conformance_cases()]
    short = [case.name for case in conformance_cases(essential=True)]
    assert len(set(names)) == len(names) > 100
    assert set(short) < set(names)
    assert 35 <= len(short) <= 65


def test_backend_cases_are_of_claimed_operators_only_and_can_be_limited() -> None:
    capability = FakeTarget().capability(_profile(refuses=["Relu", "Conv"]))
    every, few = onnx_backend_cases(capability), onnx_backend_cases(capability, per_op=1)
    assert len(every) > 900
    assert 100 < len(few) < 300
    assert not {"Relu", "Conv"} & {node.op_type for case in every for node in case.proto().graph.node}


def test_fake_target_passes_every_case() -> None:
    assert [
        str(outcome) for outcome in check_target(FakeTarget(), _profile(), conformance_cases()) if not outcome.passed
    ] == []


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ({"toolchain": "missing"}, Status.UNAVAILABLE, "not installed"),
        ({"refuses": ["Relu"]}, Status.REFUSED, "no operator Relu"),
        ({"build": "refuse"}, Status.REFUSED, "as it was told to"),
        ({"build": "fail"}, Status.FAILED, "ToolchainFailed"),
        ({"build": "defer"}, Status.BUILT, "deferred"),
        ({"load": "unavailable"}, Status.BUILT, "not here"),
        ({"run": "wrong"}, Status.FAILED, "'y' is outside fp32"),
        ({"dynamic_dims": False}, Status.PASSED, ""),
        ({}, Status.PASSED, ""),
    ],
)
def test_outcome_tells_what_the_target_did(options: dict[str, Any], status: Status, reason: str) -> None:
    outcome = _outcome(**options)
    assert outcome.status is status
    assert reason in outcome.reason


def test_precision_the_target_lacks_is_refused() -> None:
    assert run_case(FakeTarget(), _profile(), _NET, precision="bf16").status is Status.REFUSED


def test_bug_of_a_target_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="as it was told to"):
        _outcome(build="raise")


def _build(folder: Path, behaviour: str) -> None:
    profile = _profile(build=behaviour)
    plan = TargetPlan("fp32", validate_options(FakeTarget.Options, profile))
    FakeTarget().build(_NET.model(), plan, profile, workdir=folder)


def test_crash_ends_the_process_by_a_signal(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_build, args=(tmp_path, "crash"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGSEGV


def test_hang_lasts_until_somebody_ends_it(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_build, args=(tmp_path, "hang"))
    child.start()
    child.join(4)
    assert child.is_alive()
    child.kill()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


def test_memory_is_eaten_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.target.testing.fake.EAT_MIB_MAX", 256)
    with pytest.raises(ToolchainFailed, match="256 MiB"):
        _build(tmp_path, "eat-memory")
