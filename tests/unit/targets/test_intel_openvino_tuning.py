"""OpenVINO's streams and threads: what may be chosen, what is built of a choice, and whose times count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.fleet.detect import detect_profile
from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.target import Backend, TargetPlan, Tunes
from compiler.target.testing import text_case
from targets.intel_openvino import TARGET

pytestmark = pytest.mark.needs_openvino

MODEL = "(float[1, 8] x) => (float[1, 8] y) { h = MatMul(x, w)\n y = Relu(h) }"


def model() -> ir.Model:
    return ir.from_proto(text_case("small", MODEL, weights={"w": (8, 8)}).proto())


def profile(**options: object) -> HardwareProfile:
    found = replace(detect_profile(), target="openvino", target_options=options)
    assert found.cpu is not None
    return replace(found, cpu=replace(found.cpu, cores=4))


def plan(device: HardwareProfile, **more: object) -> TargetPlan:
    return TargetPlan("fp32", validate_options(TARGET.Options, device), threads=4, **more)  # type: ignore[arg-type]


def choices(**options: object) -> list[tuple[str, str]]:
    device = profile(**options)
    [kernel] = TARGET.tunables(model(), plan(device), device)
    return [(one["INFERENCE_NUM_THREADS"], one["NUM_STREAMS"]) for one in kernel.choices]


def test_it_can_be_tuned() -> None:
    assert isinstance(TARGET, Tunes)


def test_latency_chooses_threads_and_keeps_one_stream() -> None:
    assert choices() == [("4", "1"), ("2", "1"), ("1", "1")]


def test_throughput_chooses_both_and_starts_with_what_is_built_untuned() -> None:
    found = choices(performance_hint="throughput")
    assert found[0] == ("4", "2")
    assert set(found) == {("4", "4"), ("4", "2"), ("4", "1"), ("2", "2"), ("2", "1"), ("1", "1")}


def test_what_the_profile_fixes_is_not_chosen() -> None:
    assert choices(threads=2, performance_hint="throughput") == [("2", "1"), ("2", "2")]
    device = profile(num_streams=1)
    assert not TARGET.tunables(model(), plan(device), device)


def test_a_build_has_the_chosen_settings_in_its_config(tmp_path: Path) -> None:
    device = profile(performance_hint="throughput")
    [kernel] = TARGET.tunables(model(), plan(device), device)
    chosen = {kernel.workload: {"INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "2"}}
    TARGET.build(model(), plan(device, schedule=chosen), device, workdir=tmp_path)
    config = json.loads((tmp_path / "payload" / "config.json").read_text())
    assert (config["INFERENCE_NUM_THREADS"], config["NUM_STREAMS"]) == ("2", "2")
    assert config["PERFORMANCE_HINT"] == "THROUGHPUT"


def test_a_trial_is_timed_on_this_machine_and_recorded_as_this_machine() -> None:
    device = profile()
    measurer = TARGET.measurer(model(), plan(device), device, Backend(trial_s=2.0))
    [kernel] = TARGET.tunables(model(), plan(device), device)
    found = measurer.measure(kernel, kernel.choices[-1])
    assert len(found.values) >= 10 and found.median > 0
    assert measurer.device.cores != 4 or measurer.device.model == device.cpu.model  # type: ignore[union-attr]


def test_more_threads_than_this_machine_has_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    device = profile()
    [kernel] = TARGET.tunables(model(), plan(device), device)
    with pytest.raises(ToolchainFailed, match="4 threads cannot be timed on the 2 processors"):
        TARGET.measurer(model(), plan(device), device, Backend()).measure(kernel, kernel.default)


def test_a_processor_without_the_devices_instructions_measures_nothing() -> None:
    device = profile()
    assert device.cpu is not None
    foreign = replace(device, cpu=replace(device.cpu, isa=(*device.cpu.isa, "amx_fp16_of_the_future")))
    with pytest.raises(TargetUnavailable, match="amx_fp16_of_the_future"):
        TARGET.measurer(model(), plan(foreign), foreign, Backend())


@pytest.mark.parametrize("kind", ["rpc", "emulator"])
def test_other_back_ends_are_refused(kind: str) -> None:
    device = profile()
    with pytest.raises(TargetUnavailable, match=kind):
        TARGET.measurer(model(), plan(device), device, Backend(kind))
