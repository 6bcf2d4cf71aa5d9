"""What tuning remembers: of one kernel on one type of device, one choice, and what was measured of it, or why nothing.

A record's key is made of named parts. Two records of equal keys are comparable; with any part different, a record is a
proposal for the other and no measurement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median, quantiles
from typing import Any, TypeAlias

from compiler.artifact import Evidence
from compiler.fleet.profile import HardwareProfile
from compiler.store import canonical_json

Choice: TypeAlias = Mapping[str, Any]
"""What a kernel is built with, by name: JSON values that the target reads back."""

# a line of another schema is skipped when it is read, never converted
SCHEMA = 1
UNITS = {Evidence.HOST: "us", Evidence.DEVICE: "us", Evidence.EMULATOR: "instructions"}
"""What each kind of measurement counts in; one of them is never compared with another."""


@dataclass(frozen=True)
class Tunable:
    """One kernel of a model whose build leaves a choice.

    Args:
        name: What it is called in progress and plans, for example `conv 3x3 64->64 on 38x38`.
        workload: SHA-256 (64 hex digits) of all that its time depends on but the device: sizes, types, epilogue.
        choices: What it can be built with, best predicted first; the first is what is built without a log.
        count: How often the model executes it.
        work: Predicted share of the model's time; the budget is divided by it. Any unit.
    """

    name: str
    workload: str
    choices: tuple[Choice, ...]
    count: int = 1
    work: float = 1.0

    @property
    def default(self) -> Choice:
        """The choice without a log."""
        return self.choices[0]


@dataclass(frozen=True)
class DeviceType:
    """What devices must have in common for a time of one to hold for the other.

    Args:
        model: Processor, or accelerator, as the profile or the machine names it.
        isa: Instruction-set flags compiled code may use, sorted.
        cores: Physical cores of the faster kind.
        caches_kib: Level-1, level-2 and level-3 data caches in KiB; None where unknown.
    """

    model: str
    isa: tuple[str, ...] = ()
    cores: int = 0
    caches_kib: tuple[int | None, int | None, int | None] = (None, None, None)

    def __str__(self) -> str:
        return f"{self.model}, {self.cores} cores" if self.cores else self.model

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of its parts."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class TuningKey:
    """What a measurement depends on beside the choice.

    Args:
        workload: The kernel, as `Tunable.workload`.
        target: Name of the target that builds it.
        toolchain: Package → version, fleetc's own among them: its schedules are part of the kernel.
        settings: Target options, precision and threads it is built with, as texts.
        device: What it was measured on.
    """

    workload: str
    target: str
    toolchain: Mapping[str, str]
    settings: Mapping[str, str]
    device: DeviceType

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of its parts."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class Measurement:
    """What one trial gave.

    Args:
        values: One value per run: microseconds, or guest instructions of one execution.
        evidence: Where they are from; it decides the unit.
    """

    values: tuple[float, ...]
    evidence: Evidence

    def __post_init__(self) -> None:
        # a time of 0 or less is a broken clock; the search for the smallest would choose it
        if self.evidence not in UNITS or not self.values or not all(0 < value < float("inf") for value in self.values):
            raise ValueError(f"no measurement: {self.values[:3]} ({self.evidence})")

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    @property
    def spread(self) -> float:
        """Distance between the first and the third quartile, in the values' unit."""
        if len(self.values) < 2:
            return 0.0
        first, _, third = quantiles(self.values, n=4, method="inclusive")
        return third - first


@dataclass(frozen=True)
class TuningRecord:
    """One trial, finished: a measurement, or the error that stood in its place.

    Args:
        key: What it was measured of and on.
        kernel: The kernel's name, for people.
        choice: What it was built with.
        evidence: Where the figure is from, or would have been from.
        median: Middle of the values, in `unit`; 0 with an error.
        spread: Distance between their quartiles, in `unit`.
        runs: Number of values.
        date: When, in UTC: `2026-11-24T13:05:09Z`.
        error: Why there is no figure; empty if there is one.
    """

    key: TuningKey
    kernel: str
    choice: Choice
    evidence: Evidence
    median: float = 0.0
    spread: float = 0.0
    runs: int = 0
    date: str = ""
    error: str = ""

    @property
    def unit(self) -> str:
        """`us`, or `instructions`."""
        return UNITS[self.evidence]

    @cached_property
    def trial(self) -> str:
        """What makes two records the same trial: key, choice and kind of evidence."""
        return trial_id(self.key, self.choice, self.evidence)

    def __str__(self) -> str:
        if self.error:
            return self.error.splitlines()[0]
        figure = f"{self.median:.4g} us" if self.unit == "us" else f"{self.median / 1e6:.3f} M instructions"
        return f"{figure}, {self.runs} runs, {self.evidence}, {self.date[:10]}"


def trial_id(key: TuningKey, choice: Choice, evidence: Evidence) -> str:
    """The identity of a trial, whether it was run or not."""
    return _digest([key.digest, choice, str(evidence)])


def profile_device(profile: HardwareProfile) -> DeviceType:
    """The type of device a profile describes: its accelerator where it has one, else its processor."""
    if profile.accelerator is not None:
        return DeviceType(profile.accelerator.model, cores=profile.accelerator.cores or 0)
    cpu = profile.cpu
    if cpu is None:
        return DeviceType(profile.name)
    return DeviceType(cpu.model, tuple(sorted(cpu.isa)), cpu.cores, (cpu.l1_kib, cpu.l2_kib, cpu.l3_kib))


def record_to_dict(record: TuningRecord) -> dict[str, Any]:
    """The record as JSON values, with its schema and a check over all of it."""
    value = {"schema": SCHEMA, **asdict(record), "evidence": str(record.evidence), "unit": record.unit}
    return value | {"check": _digest(value)}


def record_from_dict(value: Mapping[str, Any]) -> TuningRecord:
    """The record that `record_to_dict` wrote.

    Raises:
        ValueError: Another schema, a key too many or too few, a wrong type, or a check that does not fit.
    """
    if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
        schema = value.get("schema") if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"its schema is {schema!r}, this fleetc reads {SCHEMA}")
    rest = {name: part for name, part in value.items() if name != "check"}
    if _digest(rest) != value.get("check"):
        raise ValueError("its check does not fit: it was changed or is not whole")
    try:
        return _record_of(rest)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"it is no record of this schema: {type(error).__name__}: {error}") from error


def _record_of(value: Mapping[str, Any]) -> TuningRecord:
    key, device = value["key"], value["key"]["device"]
    caches = tuple(device["caches_kib"])
    if len(caches) != 3 or not isinstance(value["choice"], dict):
        raise ValueError("caches_kib has three sizes, and choice is a mapping")
    device_type = DeviceType(str(device["model"]), tuple(map(str, device["isa"])), int(device["cores"]), caches)
    evidence = Evidence(value["evidence"])
    if evidence not in UNITS or not (value["error"] or float(value["median"]) > 0):
        raise ValueError(f"{evidence} with a median of {value['median']}")
    return TuningRecord(
        TuningKey(str(key["workload"]), str(key["target"]), dict(key["toolchain"]), dict(key["settings"]), device_type),
        str(value["kernel"]),
        value["choice"],
        evidence,
        float(value["median"]),
        float(value["spread"]),
        int(value["runs"]),
        str(value["date"]),
        str(value["error"]),
    )


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
