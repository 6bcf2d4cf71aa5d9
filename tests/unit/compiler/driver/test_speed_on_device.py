"""What a race of two targets says of a device with fewer vector instructions than this machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import Speed, SpeedUnit
from compiler.driver.measure.instruction_sets import on_device
from compiler.driver.roofline import arithmetic_rate
from compiler.fleet.detect import host_isa
from compiler.fleet.profile import Cpu, HardwareProfile

EXTRA = arithmetic_rate(host_isa(), "fp32") / arithmetic_rate(["sse4_1"], "fp32")
MEASURED = Speed(6.0, 1.0, 6.0, SpeedUnit.MS, Evidence.HOST, low=5.0, high=7.0)


def side(target: str) -> Any:
    return SimpleNamespace(plan=SimpleNamespace(target=target, precision="fp32"))


def judged(made: str, other: str, isa: tuple[str, ...]) -> Speed:
    profile = HardwareProfile(schema=1, name="board", target=made, cpu=Cpu(model="a core", cores=1, isa=isa))
    return on_device(profile, MEASURED, side(made), side(other))


@pytest.mark.skipif(EXTRA <= 1, reason="this machine has no wider vectors than SSE")
@pytest.mark.parametrize(
    ("made", "other", "low", "high"),
    [
        ("onnxruntime", "openvino", 5.0 / EXTRA, 7.0),
        ("openvino", "onnxruntime", 5.0, 7.0 * EXTRA),
        ("tvm", "openvino", 5.0, 7.0),
        ("onnxruntime", "reference", 5.0, 7.0),
    ],
)
def test_of_one_that_uses_what_only_this_machine_has_the_interval_is_as_wide_as_the_peak_rates(
    made: str, other: str, low: float, high: float
) -> None:
    speed = judged(made, other, ("sse4_1",))
    assert (speed.low, speed.high) == pytest.approx((low, high))
    assert ("onnxruntime uses" in speed.note) == ((low, high) != (5.0, 7.0))


def test_a_device_with_this_machines_instructions_and_one_that_states_none_are_judged_as_measured() -> None:
    assert judged("onnxruntime", "openvino", tuple(host_isa())) == MEASURED
    assert judged("onnxruntime", "openvino", ()) == MEASURED
