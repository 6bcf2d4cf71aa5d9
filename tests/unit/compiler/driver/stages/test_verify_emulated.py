"""The time that an artifact may take in the emulator: enough, not enough, or none."""

from __future__ import annotations

import time
from pathlib import Path

import onnx_ir as ir
import pytest

from compiler.artifact import Artifact, Evidence
from compiler.artifact.schema import Parity, ParityStatus
from compiler.driver.clock import Clock
from compiler.driver.events import ignore
from compiler.driver.stages.run import Stages
from compiler.driver.stages.verify import Verification, _emulated, verify_artifact
from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.store import Store
from compiler.target.isolate import ChildLimits

PASSED = Verification(Parity(ParityStatus.PASSED, "fp32", Evidence.EMULATOR, ""))


def test_the_child_gets_no_more_time_than_the_emulator_may_take() -> None:
    given: list[float] = []

    def check(*, child_limits: ChildLimits) -> Verification:
        given.append(child_limits.timeout_s)
        return PASSED

    assert _emulated(check, ChildLimits(timeout_s=1800), 60) is PASSED
    assert _emulated(check, ChildLimits(timeout_s=30), 60) is PASSED
    assert given == [60, 30]


def test_what_does_not_end_in_time_is_not_judged() -> None:
    def check(*, child_limits: ChildLimits) -> Verification:
        time.sleep(child_limits.timeout_s)
        raise ToolchainFailed("the toolchain took longer")

    with pytest.raises(TargetUnavailable, match=r"did not end in the emulator within 0\.02 s"):
        _emulated(check, ChildLimits(), 0.02)


def test_what_fails_in_time_has_failed() -> None:
    def check(*, child_limits: ChildLimits) -> Verification:
        raise ToolchainFailed("it crashed")

    with pytest.raises(ToolchainFailed, match="crashed"):
        _emulated(check, ChildLimits(), 60)


def test_without_the_emulator_nothing_is_run_and_that_is_said(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, "reference", "fp32", (), (), (), {})
    stages = Stages(Store(tmp_path), Clock("board", ignore))
    verification = verify_artifact(
        artifact,
        "digest",
        (),
        reference=ir.Model(ir.Graph((), (), nodes=()), ir_version=10),
        tolerance="fp32",
        repeat=0,
        where="board",
        stages=stages,
        child_limits=ChildLimits(),
        is_emulated=True,
        emulate_s=0,
    )
    assert verification.parity.status is ParityStatus.NOT_EXECUTED
    assert verification.reason == "the emulator was left out by --no-emulate"
