"""A device's plan as its manifest keeps it: what was decided before anything was built, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import SerializerFunctionWrapHandler, WrapSerializer

from compiler.fleet import Limits, Range, Unjudged


@dataclass(frozen=True)
class Decision:
    """One decision as it is shown, and its reason."""

    value: str
    reason: str


def _stated(limits: Limits, write: SerializerFunctionWrapHandler) -> dict[str, float]:
    """Limits as a fleet file writes them: those that hold, and no others."""
    return {name: value for name, value in write(limits).items() if value is not None}


class GateData(StrEnum):
    """Which data of the fleet file accuracy is judged on."""

    EVALUATION = "evaluation"
    CALIBRATION = "calibration"
    NONE = ""


@dataclass(frozen=True)
class Constraints:
    """What one device's build must hold, decided before anything is built.

    Args:
        limits: Every limit that holds.
        task: Task that accuracy is judged by; empty where nothing judges it.
        data: Which data of the fleet file judge it.
        reasons: Name of a limit → where it is from, and what becomes of a build that nobody could judge by it.
        unjudged: What becomes of it, by gate.
    """

    limits: Annotated[Limits, WrapSerializer(_stated)] = field(default_factory=Limits)
    task: str = ""
    data: GateData = GateData.NONE
    reasons: Mapping[str, str] = field(default_factory=dict)
    unjudged: Unjudged = field(default_factory=Unjudged)

    @property
    def any(self) -> bool:
        """Whether there is a gate at all."""
        return any(value is not None for value in asdict(self.limits).values())

    @property
    def explains(self) -> bool:
        """Whether saliency maps are compared: a limit asks, or there is an evaluation whose pictures they can show."""
        return self.limits.saliency_correlation_min is not None or self.data == GateData.EVALUATION


@dataclass(frozen=True)
class PlannedPass:
    """One pass of the portable half, with its number; `reason` says why it is left out, if it is."""

    number: int
    name: str
    runs: bool
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """A precision that may be tried."""

    precision: str
    reason: str


@dataclass(frozen=True)
class PlannedTarget:
    """One of the targets that compete for a device.

    Args:
        target: Its name.
        candidates: The precisions that it may be tried in, most promising first.
        reason: Why these.
        toolchain: Toolchain package → installed version (`absent` if it is not).
        left_out: Why it does not compete; empty where it does.
    """

    target: str
    candidates: tuple[Candidate, ...] = ()
    reason: str = ""
    toolchain: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""


@dataclass(frozen=True)
class BuildSettings:
    """What a target builds a border model by, beside the profile: an artifact is finished and built again from this.

    Args:
        precision: One of the target's precisions.
        dims: Symbolic dimension left in the border model → its range.
        threads: Threads the artifact shall use on the device.
        schedule: Workload of a kernel → the choice it is built with; the target's own first choice where not named.
        payload_bytes: Most bytes that the artifact's payload should take; None: no limit.
    """

    precision: str
    dims: Mapping[str, Range]
    threads: int
    schedule: Mapping[str, Mapping[str, Any]]
    payload_bytes: int | None


@dataclass(frozen=True)
class PlanFacts:
    """What was decided for a device.

    Args:
        device: Name of the device class.
        profile: Name of its profile.
        profile_digest: SHA-256 of the profile's facts.
        target: Name of the target.
        toolchain: Toolchain package → installed version (`absent` if it is not).
        passes: Passes of the portable half in order.
        target_passes: Names of the target's own passes.
        dims: `batch` and other named dimensions → their range.
        decisions: What was decided → value and reason, for the reader: nothing is rebuilt from these texts.
        target_options: The profile's `target_options`.
        target_plan: What the target builds by.
        gates: The gates that must hold.
        candidates: The precisions to try, most promising first.
        targets: The targets that compete, the preferred one first; none where there is one.
    """

    device: str
    profile: str
    profile_digest: str
    target: str
    toolchain: Mapping[str, str]
    passes: tuple[PlannedPass, ...]
    target_passes: tuple[str, ...]
    dims: Mapping[str, Range]
    decisions: Mapping[str, Decision]
    target_options: Mapping[str, Any]
    target_plan: BuildSettings
    gates: Constraints
    candidates: tuple[Candidate, ...]
    targets: tuple[PlannedTarget, ...] = ()

    def sizes(self, step: str) -> dict[str, int]:
        """Free dimension → its `min`, `opt` or `max` size."""
        return {name: getattr(sizes, step) for name, sizes in self.dims.items() if not sizes.is_fixed}
