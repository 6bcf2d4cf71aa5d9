"""What a race of two targets' builds on this machine says of a device with fewer vector instructions."""

from __future__ import annotations

from dataclasses import replace

from compiler.artifact.schema import Speed
from compiler.driver.roofline import arithmetic_rate
from compiler.driver.stages.candidate import UnverifiedCandidate
from compiler.fleet.detect import host_isa
from compiler.fleet.profile import HardwareProfile
from compiler.target import HoldsToIsa, find_target


def on_device(profile: HardwareProfile, speed: Speed, made: UnverifiedCandidate, other: UnverifiedCandidate) -> Speed:
    """The speed of one target's build against another's, its interval as wide as their instruction sets leave it open.

    A target that uses whatever this machine has is faster here than on a device with less; one that holds to the
    device's instructions is not. What the two differ by on the device lies between the ratio that was measured and that
    without the peak rates that only this machine has.
    """
    extra = _extra_rate(profile, made.plan.precision)
    holds, other_holds = (isinstance(find_target(side.plan.target), HoldsToIsa) for side in (made, other))
    if extra <= 1 or holds == other_holds or speed.speedup is None:
        return speed
    name = other.plan.target if holds else made.plan.target
    why = f"{name} uses vector instructions that the device lacks: up to {extra:g} × of its speed here"
    low, high = (speed.speedup if end is None else end for end in (speed.low, speed.high))
    return replace(
        speed,
        low=low if holds else low / extra,
        high=high * extra if holds else high,
        note="; ".join(filter(None, (speed.note, why))),
    )


def _extra_rate(profile: HardwareProfile, precision: str) -> float:
    """This machine's peak rate per core and cycle over the device's; 1 where it is less, or the profile has no ISA."""
    device = arithmetic_rate(profile.cpu.isa, precision) if profile.cpu else 0.0
    return max(1.0, arithmetic_rate(host_isa(), precision) / device) if device else 1.0
