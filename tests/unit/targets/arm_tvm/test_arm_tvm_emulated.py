"""What is asked of the emulator, where each inference takes long: counted in starts of QEMU and in stored entries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_tvm_models import conv_model, needs_aarch64, reference

from compiler.artifact import Evidence
from compiler.artifact.schema import ParityStatus
from compiler.driver.clock import Clock
from compiler.driver.stages.execute import emulated_run
from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.run import Stages
from compiler.driver.stages.verify import Verification, verify_artifact
from compiler.fleet.profile import load_profile
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.store import Store
from compiler.target import Artifact, TargetPlan
from compiler.target.isolate import ChildLimits
from targets.arm_tvm import TARGET, Options

pytestmark = [needs_aarch64, pytest.mark.needs_emulator]

IMAGE = {"image": np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Artifact:
    folder, options = tmp_path_factory.mktemp("emulated"), Options("aarch64-linux-gnu", "cortex-a76", ("+neon",))
    plan = TargetPlan("fp32", options, {}, threads=4, schedule={}, cache_dir=cache_dir)
    return TARGET.build(conv_model(), plan, load_profile("raspberry-pi-5"), workdir=folder)


def verified(artifact: Artifact, cases: Sequence[ParityCase], stages: Stages, **more: Any) -> Verification:
    """The verdict on runs in the emulator."""
    return verify_artifact(
        artifact,
        "digest",
        cases,
        reference=conv_model(),
        tolerance="fp32",
        where="camera: verify",
        stages=stages,
        child_limits=ChildLimits(),
        is_emulated=True,
        **more,
    )


def test_a_run_tells_outputs_and_memory_and_a_second_one_the_instructions(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, qemu = tmp_path / "log", tmp_path / "qemu-aarch64"
    qemu.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {shutil.which("qemu-aarch64")} "$@"\n')
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    runner = TARGET.load(artifact)
    outputs, peak_bytes = runner.run_weighed(IMAGE)
    assert runner.count_instructions(IMAGE) > 1000
    program = str(artifact.root.resolve() / "run")
    starts = [line for line in log.read_text().splitlines() if program in line]
    assert ["--repeat 1" in line for line in starts] == [False, True]
    (stats,) = compare_all(reference(conv_model(), IMAGE), outputs).values()
    assert TOLERANCES["fp32"].accepts(stats)
    libraries = sum(path.stat().st_size for path in (artifact.root / "runtime").iterdir())
    assert libraries / 4 < peak_bytes < 10 * libraries


def test_parity_and_memory_share_a_run(artifact: Artifact, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    stages, limits = Stages(store, Clock("camera")), ChildLimits()
    case = ParityCase("fixed", IMAGE, reference(conv_model(), IMAGE))
    runs = [
        emulated_run(artifact, "digest", IMAGE, where="camera: memory", stages=stages, child_limits=limits)
        for _ in range(2)
    ]
    verification = verified(artifact, (case,), stages, repeat=20)
    assert verification.evidence == Evidence.EMULATOR and verification.instructions
    assert runs[0].peak_bytes == runs[1].peak_bytes
    entries, _ = store.info().stages["verify"]
    assert entries == 2, "the run, and what it was judged to be"


def test_what_ended_in_time_is_judged_and_what_did_not_is_said(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, limits = Stages(Store(tmp_path / "cache"), Clock("camera")), ChildLimits()
    other = {"image": IMAGE["image"] + 1}
    cases = [
        ParityCase(label, image, reference(conv_model(), image)) for label, image in (("one", IMAGE), ("two", other))
    ]
    emulated_run(artifact, "digest", IMAGE, where="camera: memory", stages=stages, child_limits=limits)
    (tmp_path / "qemu-aarch64").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "qemu-aarch64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    verification = verified(artifact, cases, stages, repeat=0, emulate_s=1)
    assert verification.parity.status == ParityStatus.PASSED and verification.instructions is None
    assert [point.sizes for point in verification.parity.points] == ["one"]
    assert "not executed: two: it did not end in the emulator within 1 s" in verification.reason
