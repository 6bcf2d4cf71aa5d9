"""Kernels of TVM timed on this machine and behind TVM's own tracker, and what is said when either is not there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx_ir as ir
import pytest
from arm_tvm_models import needs_aarch64
from integer_models import residual_network

from compiler.artifact import Evidence
from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.fleet.detect import detect_profile
from compiler.fleet.profile import HardwareProfile, load_profile, validate_options
from compiler.target import Backend, TargetPlan
from compiler.target.testing import text_case
from compiler.tune import Tunable, profile_device
from targets.arm_tvm import TARGET
from targets.arm_tvm.bundle.folder import write_server
from targets.arm_tvm.run.emulate import emulator, host_arch
from targets.arm_tvm.tune.harness import RUNS, HostHarness
from tests.boards import free_port, running_board, running_tracker, start_board, stop

pytestmark = [
    pytest.mark.needs_tvm,
    pytest.mark.skipif(host_arch() != "x86_64", reason="the host's profile here is one of x86-64"),
]

MODEL = """(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, v)
    y = Relu(c)
}"""


def model() -> ir.Model:
    return ir.from_proto(text_case("small", MODEL, weights={"w": (16, 16, 3, 3), "v": (16, 16, 3, 3)}).proto())


def read_once(count: int) -> Any:
    """A TIR function that reads so many floats, each once."""
    from tvm import te

    weights = te.placeholder((count,), name="w")
    return te.create_prim_func([weights, te.compute((count,), lambda i: weights[i] + 1.0, name="y")])


OPTIONS = {"mtriple": "x86_64-linux-gnu", "mattr": ["+avx2"], "prefer": "speed"}
"""Speed first: a limit of bytes would leave out choices whose weights are larger, and say so in the kernel's name."""


def host() -> HardwareProfile:
    return replace(detect_profile(), target="tvm", target_options=OPTIONS)


def plan(profile: HardwareProfile, cache: Path) -> TargetPlan:
    return TargetPlan("fp32", validate_options(TARGET.Options, profile), threads=1, cache_dir=cache)


@pytest.fixture(scope="module")
def cache(toolchain_cache: Path) -> Path:
    return toolchain_cache


def kernel(cache: Path) -> Tunable:
    [found] = TARGET.tunables(model(), plan(host(), cache), host())
    return found


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    with running_tracker() as address:
        yield address


@pytest.fixture(scope="module")
def board(tracker: str) -> Iterator[str]:
    process = start_board(tracker, "loopback")
    yield "loopback"
    stop(process)


def test_equal_convolutions_are_one_kernel_with_many_choices(cache: Path) -> None:
    found = kernel(cache)
    assert found.count == 2
    assert len(found.choices) > 3
    assert found.name == "conv 3x3 16->16 on 8x8 relu"


def test_a_choice_is_timed_on_this_machine(cache: Path) -> None:
    measurer = TARGET.measurer(model(), plan(host(), cache), host(), Backend())
    found = measurer.measure(kernel(cache), kernel(cache).choices[1])
    assert measurer.evidence == Evidence.HOST
    assert measurer.device == profile_device(detect_profile())
    assert len(found.values) == RUNS
    assert 0.1 < found.median < 1e5


def test_weights_are_as_cold_as_those_of_a_large_model(cache: Path, tmp_path: Path) -> None:
    function, medians = read_once(1 << 16), []
    for weights_bytes in (0, 64 << 20):
        harness = HostHarness(plan(host(), cache), host(), weights_bytes)
        medians.append(median(harness.values(function, harness.compile(function, tmp_path))))
    warm_us, cold_us = medians
    assert cold_us > 1.5 * warm_us


@pytest.mark.slow
def test_a_choice_is_timed_behind_a_tracker_as_the_devices_own(cache: Path, tracker: str, board: str) -> None:
    profile = replace(host(), name="board")
    measurer = TARGET.measurer(model(), plan(profile, cache), profile, Backend("rpc", tracker, board))
    for choice in kernel(cache).choices[:2]:
        assert len(measurer.measure(kernel(cache), choice).values) == RUNS
    assert measurer.evidence == Evidence.DEVICE
    assert measurer.device == profile_device(profile)


def test_an_absent_tracker_is_told_with_its_address(cache: Path) -> None:
    port = free_port()
    with pytest.raises(TargetUnavailable, match="no tracker answers") as told:
        TARGET.measurer(model(), plan(host(), cache), host(), Backend("rpc", f"127.0.0.1:{port}", "k"))
    assert told.value.where == f"127.0.0.1:{port}"


def test_an_unknown_key_is_told_with_the_known_ones(cache: Path, tracker: str, board: str) -> None:
    with pytest.raises(TargetUnavailable, match="no board under key 'rpi9'; it knows loopback"):
        TARGET.measurer(model(), plan(host(), cache), host(), Backend("rpc", tracker, "rpi9"))


def test_a_board_that_cannot_run_what_is_built_measures_nothing(cache: Path, tracker: str, board: str) -> None:
    profile = load_profile("raspberry-pi-5")
    with pytest.raises(TargetUnavailable, match="does not run what this toolchain builds for aarch64"):
        TARGET.measurer(model(), plan(profile, cache), profile, Backend("rpc", tracker, board))


def test_a_board_that_dies_ends_the_run_and_not_the_trial(cache: Path, tracker: str) -> None:
    process = start_board(tracker, "mortal")
    measurer = TARGET.measurer(model(), plan(host(), cache), host(), Backend("rpc", tracker, "mortal"))
    measurer.measure(kernel(cache), kernel(cache).default)
    stop(process)
    with pytest.raises(TargetUnavailable, match="mortal"):
        measurer.measure(kernel(cache), kernel(cache).default)


def test_a_choice_of_another_version_is_the_trials_fault(cache: Path) -> None:
    measurer = TARGET.measurer(model(), plan(host(), cache), host(), Backend())
    with pytest.raises(ToolchainFailed, match="no choice of"):
        measurer.measure(kernel(cache), {"family": "direct", "blocks": 99})


def test_this_machine_measures_nothing_of_another_architecture(cache: Path) -> None:
    profile = load_profile("raspberry-pi-5")
    with pytest.raises(TargetUnavailable, match="cannot run kernels of raspberry-pi-5: it is x86_64"):
        TARGET.measurer(model(), plan(profile, cache), profile, Backend())


def test_this_machines_own_architecture_is_not_emulated(cache: Path) -> None:
    with pytest.raises(TargetUnavailable, match="which is not emulated"):
        TARGET.measurer(model(), plan(host(), cache), host(), Backend("emulator"))


@pytest.mark.needs_emulator
@needs_aarch64
def test_a_choice_is_counted_under_the_emulator_as_the_devices_own(cache_dir: Path, pi5: HardwareProfile) -> None:
    pi5 = replace(pi5, target_options={**pi5.target_options, "prefer": "speed"})
    [kernel] = TARGET.tunables(model(), plan(pi5, cache_dir), pi5)
    measurer = TARGET.measurer(model(), plan(pi5, cache_dir), pi5, Backend("emulator"))
    found = measurer.measure(kernel, kernel.default)
    assert (measurer.evidence, measurer.device) == (Evidence.EMULATOR, profile_device(pi5))
    assert found.median / 2 < kernel.work / kernel.count < found.median * 2


@pytest.mark.needs_emulator
@needs_aarch64
def test_integer_kernels_have_choices_and_are_counted(cache_dir: Path, pi5: HardwareProfile) -> None:
    network = residual_network()
    kernels = TARGET.tunables(network, plan(pi5, cache_dir), pi5)
    assert any(kernel.name.startswith("int8 conv 3x3") for kernel in kernels)
    assert all(choice["family"] == "integer" for kernel in kernels for choice in kernel.choices)
    measurer = TARGET.measurer(network, plan(pi5, cache_dir), pi5, Backend("emulator"))
    assert measurer.measure(kernels[0], kernels[0].choices[1]).median > 100


@pytest.mark.needs_emulator
@needs_aarch64
def test_an_emulated_board_without_python_serves_kernels_behind_the_tracker(
    cache_dir: Path, pi5: HardwareProfile, tracker: str, tmp_path: Path
) -> None:
    write_server("aarch64", workdir=tmp_path / "server", cache_dir=cache_dir)
    host, port = tracker.split(":")
    with running_board(tracker, "emulated", [*emulator("cortex-a76"), str(tmp_path / "server/serve"), host, port]):
        backend = Backend("rpc", tracker, "emulated", trial_s=60)
        measurer = TARGET.measurer(model(), plan(pi5, cache_dir), pi5, backend)
        [kernel] = TARGET.tunables(model(), plan(pi5, cache_dir), pi5)
        assert len(measurer.measure(kernel, kernel.default).values) == RUNS
        with pytest.raises(ToolchainFailed, match="no choice of"):
            measurer.measure(kernel, {"family": "direct", "blocks": 99})
        assert len(measurer.measure(kernel, kernel.choices[1]).values) == RUNS
    with pytest.raises(TargetUnavailable, match="emulated"):
        measurer.measure(kernel, kernel.default)


@pytest.mark.needs_emulator
@needs_aarch64
def test_the_server_of_a_board_says_what_it_needs(cache_dir: Path, tmp_path: Path) -> None:
    write_server("aarch64", workdir=tmp_path / "server", cache_dir=cache_dir)
    program = [*emulator("cortex-a76"), str(tmp_path / "server/serve")]

    def told(*arguments: str) -> tuple[int, str]:
        ended = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60, check=False)
        return ended.returncode, ended.stderr

    assert told() == (2, told()[1]) and "Usage: serve HOST PORT KEY" in told()[1]
    assert told("127.0.0.1", str(free_port()), "k")[1].startswith("serve: no tracker at 127.0.0.1")
    assert "a key is of letters" in told("127.0.0.1", "1", 'k"')[1]
