"""The decision as a value: `make_plan` says all that will be done for a device class, and why, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from compiler.capability import Capability, PrecisionRule
from compiler.errors import FleetError, UsageError
from compiler.fleet import DeviceClass, Range
from compiler.isolate import ChildLimits
from compiler.passes.pipelines import PORTABLE
from compiler.profile import HardwareProfile, profile_digest, validate_options
from compiler.target import Target, TargetPlan


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says, beside the fleet file.

    Args:
        out: Folder that gets one folder per device, and `build.json`.
        cache: Root of the store.
        devices: Names of the devices to build; empty means all.
        precision: Precision for every device, over the fleet file's; empty leaves the file's.
        skip_passes: Names of passes to leave out.
        stop_after: Number of the last pass of the portable half to run.
        dump_passes: Folder that gets the model before the first and after every pass that changed it.
        repeat: Timed runs per batch size when an artifact is verified on a device it can run on; 0 times nothing.
        child: What one target's child process may use.
    """

    out: Path = Path("dist")
    cache: Path = Path(".fleetc-cache")
    devices: tuple[str, ...] = ()
    precision: str = ""
    skip_passes: tuple[str, ...] = ()
    stop_after: int | None = None
    dump_passes: Path | None = None
    repeat: int = 20
    child: ChildLimits = field(default=ChildLimits())


@dataclass(frozen=True)
class Choice:
    """One decision and its reason."""

    value: str
    reason: str


@dataclass(frozen=True)
class PlannedPass:
    """One pass of the portable half, with its number; `reason` says why it is left out, if it is."""

    number: int
    name: str
    runs: bool
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything that will be done for one device class.

    Args:
        device: Name of the device class.
        profile: Name of its profile.
        profile_digest: SHA-256 of the profile's facts.
        target: Name of the target.
        toolchain: Toolchain package → installed version (`absent` if it is not).
        passes: Passes of the portable half in order.
        target_passes: Names of the target's own passes, run last on the border model.
        dims: `batch` and other named dimensions → their range.
        choices: precision, tolerance, layout, pruning, tuning, threads, evidence, …: each with its reason.
        target_plan: The part the target sees.
    """

    device: str
    profile: str
    profile_digest: str
    target: str
    toolchain: Mapping[str, str]
    passes: tuple[PlannedPass, ...]
    target_passes: tuple[str, ...]
    dims: Mapping[str, Range]
    choices: Mapping[str, Choice]
    target_plan: TargetPlan

    @property
    def precision(self) -> str:
        """The precision to build in."""
        return self.choices["precision"].value

    @property
    def tolerance(self) -> str:
        """Name of the tolerance that results are judged by."""
        return self.choices["tolerance"].value

    @property
    def converts_graph(self) -> str:
        """Precision the border model itself is converted to; empty where it stays as it is."""
        return self.choices["border precision"].value if self.choices["border precision"].value != "as imported" else ""

    def to_dict(self) -> dict[str, Any]:
        """The plan as a JSON-ready value; the same plan gives the same text in every folder."""
        value = {key: getattr(self, key) for key in ("device", "profile", "profile_digest", "target")}
        return value | {
            "toolchain": dict(self.toolchain),
            "passes": [asdict(step) for step in self.passes],
            "target_passes": list(self.target_passes),
            "dims": {name: asdict(sizes) for name, sizes in self.dims.items()},
            "choices": {name: asdict(choice) for name, choice in self.choices.items()},
            "target_options": options_to_dict(self.target_plan.options),
        }


def make_plan(options: BuildOptions, device: DeviceClass, profile: HardwareProfile, target: Target) -> Plan:
    """Decides everything for one device class; imports no toolchain and reads no model.

    Args:
        options: The command line.
        device: The device class of the fleet file.
        profile: Its hardware profile.
        target: The profile's target.

    Raises:
        UsageError: Something is asked for that cannot be had together; every such thing is named.
    """
    capability = target.capability(profile)
    asked = options.precision or device.precision
    where = "--precision" if options.precision else device.place
    rule, precision = _choose_precision(asked, capability, profile, target, where)
    _refuse_ranges(device, capability, target)
    threads = _choose_threads(profile)
    return Plan(
        device=device.name,
        profile=profile.name,
        profile_digest=profile_digest(profile),
        target=target.name,
        toolchain=dict(target.toolchain()),
        passes=plan_passes(options),
        target_passes=tuple(step.name for step in target.passes(profile)),
        dims={"batch": device.batch, **device.dims},
        choices={
            "precision": precision,
            "border precision": _border_precision(rule),
            "tolerance": Choice(rule.tolerance, f"the level for {rule.name} results against the float32 reference"),
            "layout": Choice(
                "as imported", "the portable half keeps ONNX's channels-first layout; the target chooses its own"
            ),
            "pruning": Choice("off", "nothing asks for it"),
            "tuning": Choice("none", "no tuning log applies; the target's own heuristics decide"),
            "threads": threads,
        },
        target_plan=TargetPlan(
            precision=rule.name,
            options=validate_options(target.Options, profile),
            dims={name: sizes for name, sizes in {"batch": device.batch, **device.dims}.items() if not sizes.is_fixed},
            threads=int(threads.value),
            cache_dir=options.cache / "toolchains",
        ),
    )


def options_to_dict(options: object) -> dict[str, Any]:
    """A target's options as a JSON-ready value."""
    return asdict(options) if is_dataclass(options) and not isinstance(options, type) else dict(vars(options))


def _choose_precision(
    asked: str, capability: Capability, profile: HardwareProfile, target: Target, where: str
) -> tuple[PrecisionRule, Choice]:
    rules = {rule.name: rule for rule in capability.precisions}
    if asked == "auto":
        rule = capability.precisions[0]
        return rule, Choice(
            rule.name,
            f"auto takes what the target puts first: {rule.reason}; nothing lower is chosen "
            "unasked as long as no accuracy gate judges it",
        )
    if asked not in rules:
        known = ", ".join(f"{rule.name} ({rule.reason})" for rule in capability.precisions)
        why = capability.precision_refusals.get(
            asked, f"target '{target.name}' has no such precision on {profile.name}"
        )
        raise FleetError(
            f"precision {asked} cannot be had: {why}",
            where=where,
            remedy=f"{profile.name} can be built in: {known}.",
        )
    return rules[asked], Choice(asked, f"asked for; {rules[asked].reason}")


def _border_precision(rule: PrecisionRule) -> Choice:
    if rule.converts_graph:
        return Choice(rule.name, "the target is strongly typed: it computes in the precision the graph is written in")
    return Choice("as imported", "the target converts while it builds, or nothing is to be converted")


def _refuse_ranges(device: DeviceClass, capability: Capability, target: Target) -> None:
    ranges = {name: sizes for name, sizes in {"batch": device.batch, **device.dims}.items() if not sizes.is_fixed}
    if ranges and not capability.dynamic_dims:
        raise FleetError(
            f"target '{target.name}' builds fixed shapes only, and these are ranges: "
            + ", ".join(f"{name} {sizes}" for name, sizes in ranges.items()),
            where=device.place,
            remedy="Give each one size, for example `batch: 1`, or make one device class per size.",
        )


def _choose_threads(profile: HardwareProfile) -> Choice:
    if profile.cpu is None:
        return Choice("1", "the profile states no CPU")
    return Choice(
        str(profile.cpu.cores),
        f"one per core of the profile ({profile.cpu.cores}); a second hardware thread "
        "of a core adds no arithmetic units",
    )


def plan_passes(options: BuildOptions) -> tuple[PlannedPass, ...]:
    """The passes of the portable half; which of them run is the same for every device.

    Raises:
        UsageError: A name or a number is none of theirs.
    """
    names = list(PORTABLE)
    unknown = sorted(set(options.skip_passes) - set(names))
    if unknown:
        raise UsageError(
            f"no pass is named {', '.join(unknown)}", where="--skip-pass", remedy=f"Passes: {', '.join(names)}."
        )
    if options.stop_after is not None and not 0 <= options.stop_after <= len(names):
        raise UsageError(
            f"there are passes 1 to {len(names)}, not {options.stop_after}",
            where="--stop-after",
            remedy="`fleetc plan` lists them; 0 runs none.",
        )
    return tuple(_planned(number, name, options) for number, name in enumerate(names, start=1))


def _planned(number: int, name: str, options: BuildOptions) -> PlannedPass:
    if options.stop_after is not None and number > options.stop_after:
        return PlannedPass(number, name, runs=False, reason=f"--stop-after {options.stop_after}")
    if name in options.skip_passes:
        return PlannedPass(number, name, runs=False, reason="--skip-pass")
    return PlannedPass(number, name, runs=True)
