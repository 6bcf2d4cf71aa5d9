"""Figures of OpenVINO builds on a machine that is busy with other work: memory, and the ratio of two times."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.artifact import Artifact, Evidence
from compiler.artifact.schema import Purpose, Speed, SpeedUnit
from compiler.compress.quant import quantize
from compiler.driver.measure.memory import RUNS
from compiler.driver.measure.speed import LEAST_PAIRS, MOST_PAIRS, NARROW, race_speed
from compiler.driver.search.select import choose_trial
from compiler.driver.search.trial import Trial
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.fleet.detect import host_isa
from compiler.fleet.machine import available_cpus
from compiler.fleet.profile import load_profile
from compiler.model.graph import infer_strictly
from compiler.model.numerics import write_arrays
from compiler.target import TargetPlan
from compiler.target.isolate import ChildLimits
from compiler.target.request import FootprintAnswer, FootprintTask, RaceAnswer, RaceTask, RaceUntil, ask
from compiler.target.testing import text_case
from targets.intel_openvino import TARGET, Options
from targets.intel_openvino.isa import VARIABLE, isa_limit
from targets.intel_openvino.quantized import INT8

pytestmark = pytest.mark.needs_openvino

MIB = 1 << 20

N100 = load_profile("intel-n100")
SHAPE = (1, 256, 14, 14)
NET = text_case(
    "figures",
    "(float[1,256,14,14] x) => (float[1,256,14,14] y) "
    "{ a = Conv<pads=[1,1,1,1]>(x, v, b) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w, b) s = Relu(c) "
    "d = Conv<pads=[1,1,1,1]>(s, u, b) y = Relu(d) }",
    weights={"v": (256, 256, 3, 3), "w": (256, 256, 3, 3), "u": (256, 256, 3, 3), "b": (256,)},
)
TINY = text_case(
    "tiny", "(float[1,256,14,14] x) => (float[1,1,14,14] y) { y = Conv(x, w) }", weights={"w": (1, 256, 1, 1)}
)


@pytest.fixture(autouse=True)
def _no_limit_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was loaded in this process has put its limit into the environment, which children inherit."""
    monkeypatch.delenv(VARIABLE, raising=False)


def _spin() -> None:
    while True:
        sum(range(10000))


@contextmanager
def busy_machine(load: int) -> Iterator[None]:
    """Processes that compute, so many per core."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(load * (os.cpu_count() or 1))]
    for process in processes:
        process.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def build(folder: Path, model: ir.Model, precision: str) -> Artifact:
    folder.mkdir()
    return TARGET.build(model, TargetPlan(precision, Options(), threads=4), N100, workdir=folder)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The float32 and the int8 build of a small convolutional network, and a build of next to nothing."""
    root = tmp_path_factory.mktemp("figures")
    model = ir.from_proto(infer_strictly(ir.to_proto(NET.model())))
    for index, node in enumerate(model.graph):
        node.name = node.name or f"node{index}"
    rng = np.random.default_rng(7)
    batches = [{"x": rng.normal(size=SHAPE).astype(np.float32)} for _ in range(4)]
    low = quantize(model, batches, INT8).model
    return {
        "fp32": build(root / "fp32", model, "fp32"),
        "int8": build(root / "int8", low, "int8"),
        "tiny": build(root / "tiny", TINY.model(), "fp32"),
    }


def run_bytes(folder: Path, builds: dict[str, Artifact], name: str) -> int:
    """What a model itself takes when it runs, as `driver.measure.memory` counts it."""
    write_arrays(folder / "in.npz", {"x": np.ones(SHAPE, np.float32)})

    def peak(build: Artifact) -> int:
        task = FootprintTask(build, folder / "in.npz")
        return ask(task, FootprintAnswer, folder=folder, child_limits=ChildLimits(), where="test").peak_bytes

    peaks = [min(peak(builds[one]) for _ in range(RUNS)) for one in (name, "tiny")]
    return peaks[0] - peaks[1]


@pytest.mark.slow
def test_memory_when_run_is_the_same_on_a_busy_machine(tmp_path: Path, builds: dict[str, Artifact]) -> None:
    quiet = run_bytes(tmp_path, builds, "fp32")
    with busy_machine(load=1):
        busy = run_bytes(tmp_path, builds, "fp32")
    assert quiet > 8 * MIB
    assert busy == pytest.approx(quiet, rel=0.02)


def test_memory_is_that_of_the_devices_instruction_sets_whatever_this_machine_has(
    tmp_path: Path, builds: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 build for an N100 must not be measured with the tile registers of a server."""
    if not isa_limit(frozenset(N100.cpu.isa if N100.cpu else ()), host_isa()):
        pytest.skip("this machine lacks some instruction sets of an N100")
    as_built = run_bytes(tmp_path, builds, "int8")
    monkeypatch.setenv(VARIABLE, "AVX2_VNNI")
    assert as_built == pytest.approx(run_bytes(tmp_path, builds, "int8"), rel=0.02)


@pytest.mark.parametrize(
    ("device", "host", "level"),
    [
        ({"avx2", "fma", "avx_vnni"}, {"avx2", "fma", "avx_vnni", "avx512f"}, "AVX2_VNNI"),
        ({"avx2", "fma", "avx_vnni"}, {"avx2", "fma", "avx512f", "avx512_vnni"}, ""),
        ({"avx2", "fma"}, {"avx2", "fma", "avx_vnni"}, "AVX2"),
        (set(), {"avx2", "fma"}, ""),
    ],
    ids=["fewer than this machine", "some this machine lacks", "without VNNI", "none stated"],
)
def test_instruction_sets_are_limited_to_the_devices_where_this_machine_has_them_all(
    device: set[str], host: set[str], level: str
) -> None:
    assert isa_limit(device, host) == level


def speed_of(folder: Path, builds: dict[str, Artifact], budget_s: float) -> Speed:
    """The int8 build against the float32 one, as `driver.measure.speed` measures it."""
    write_arrays(folder / "in.npz", {"x": np.ones(SHAPE, np.float32)})
    task = RaceTask(
        (builds["int8"], builds["fp32"]),
        (folder / "in.npz", folder / "in.npz"),
        RaceUntil(LEAST_PAIRS, MOST_PAIRS, budget_s, NARROW),
        threads=min(4, available_cpus()),
    )
    return race_speed(ask(task, RaceAnswer, folder=folder, child_limits=ChildLimits(), where="test"), note="")


def chosen_by(speed: Speed) -> str:
    """The precision that a search delivers by these figures, were both of one size."""
    made = object.__new__(BuiltCandidate)  # that something was made counts, not what
    base = Speed(1.0, 1.0, 1.0, SpeedUnit.MS, Evidence.HOST, low=1.0, high=1.0)
    chosen = choose_trial(
        [Trial(1, Purpose.CANDIDATE, "fp32", made, speed=base), Trial(2, Purpose.CANDIDATE, "int8", made, speed=speed)]
    )
    assert chosen is not None
    return chosen.precision


@pytest.mark.slow  # its busy processes take both cores from whatever else is tested
def test_a_ratio_on_a_busy_machine_is_the_quiet_one_or_called_disturbed_and_chooses_the_same(
    tmp_path: Path, builds: dict[str, Artifact]
) -> None:
    first = speed_of(tmp_path, builds, budget_s=3.0)
    with busy_machine(load=4):
        busy = speed_of(tmp_path, builds, budget_s=3.0)
    assert first.speedup is not None and busy.speedup is not None
    assert busy.low is not None and busy.high is not None and busy.low <= busy.speedup <= busy.high
    assert busy.disturbed, "eight processes on two processors leave their traces"
    assert chosen_by(busy) == chosen_by(first) == "int8"
    if not first.disturbed:
        assert busy.speedup == pytest.approx(first.speedup, rel=0.15) or busy.disturbed
