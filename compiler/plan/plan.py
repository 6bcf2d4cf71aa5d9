"""The decision as a value: `make_plan` says all that will be done for a device class, and why, before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact.schema import Candidate, Constraints, Decision, PlanFacts, PlannedPass, PlannedTarget
from compiler.errors import FleetError, UsageError
from compiler.evaluate.gates import make_constraints
from compiler.fleet import DeviceClass, Fleet, Range
from compiler.fleet.profile import HardwareProfile, profile_digest, validate_options
from compiler.fleet.request import ModelRequest
from compiler.passes.pipelines import PORTABLE
from compiler.plan.candidates import BASELINE, Candidates, choose_candidates, with_cache
from compiler.plan.pruning import UNPRUNED, Pruning, asked_of, choose_pruning, choose_recovery
from compiler.store import StageName
from compiler.target import Target, TargetPlan, Tunes
from compiler.target.capability import Capability, PrecisionRule
from compiler.target.isolate import ChildLimits
from compiler.target.request import settings_of

if TYPE_CHECKING:  # what a stage reaches goes into its key, and no stage's result depends on where it came from
    from compiler.store.remote import RemoteCache


class SearchEffort(StrEnum):
    """How much the search for a precision tries.

    `quick` leaves out what cannot be faster than what passes already; `thorough` makes every candidate.
    """

    QUICK = "quick"
    THOROUGH = "thorough"


EMULATE_S = 600.0
"""Seconds for the emulator by default: a detector of 10 GFLOP and its counted instructions take about five minutes."""


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says, beside the fleet file.

    Args:
        out: Folder that gets one folder per device, and `build.json`.
        cache: Root of the store.
        cache_wait_s: Longest time to wait for another process that makes the same stage; None waits for ever.
        remote: The shared cache that is asked for what the store does not have; None: none is.
        devices: Names of the devices to build; empty means all.
        targets: Targets that compete for every device, over the fleet file's; empty leaves the file's.
        precision: Precision for every device, over the fleet file's; empty leaves the file's.
        prune: `off`, `auto` or a ratio for every device, over the fleet file's; empty leaves the file's.
        recover_minutes: Time that each pruned form may be trained for, over the fleet file's; None leaves the file's.
        skip_passes: Names of passes to leave out.
        stop_after: Number of the last pass of the portable half to run.
        dump_passes: Folder that gets the model before the first and after every pass that changed it.
        repeat: Timed runs per batch size when an artifact is verified on a device it can run on; 0 times nothing.
        emulate_s: Longest time that one artifact may run in an emulator; 0 emulates nothing. An artifact that was not
            run to the end is delivered as not executed.
        race_s: How long two builds are timed in turn, if their ratio is not known well enough after the least number
            of runs.
        jobs: Most devices that are built at a time; 0: as many as there are processors.
        search: Whether candidates that cannot win are left out.
        search_budget: Most trials that the search for a precision may make for one device.
        child_limits: What one target's child process may use.
        strict: Whether a gate that nobody could judge fails the build, whatever the fleet file says.
        report: Whether the report of the fleet is written.
        request: What is built for which hardware, where a model is named in place of a fleet file.
        first: `compile`: the model is a border model, and the target half alone is run; None for the whole line.
        last: The stage of the portable half that the build ends at; None for the whole line.
    """

    out: Path = Path("dist")
    cache: Path = Path(".fleetc-cache")
    cache_wait_s: float | None = None
    remote: RemoteCache | None = None
    devices: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    precision: str = ""
    prune: str = ""
    recover_minutes: float | None = None
    skip_passes: tuple[str, ...] = ()
    stop_after: int | None = None
    dump_passes: Path | None = None
    repeat: int = 20
    emulate_s: float = EMULATE_S
    race_s: float = 10.0
    jobs: int = 0
    search: SearchEffort = SearchEffort.QUICK
    search_budget: int = 24
    child_limits: ChildLimits = field(default=ChildLimits())
    strict: bool = False
    report: bool = True
    request: ModelRequest = field(default=ModelRequest())
    first: StageName | None = None
    last: StageName | None = None


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
        decisions: precision, tolerance, layout, pruning, tuning, threads, evidence, …: each with its reason.
        target_plan: The part the target sees.
        constraints: The gates that must hold.
        candidates: The precisions to try, most promising first; one where there is nothing to search.
        baseline: The float32 build that the candidates are measured against; None if the target has none.
        tolerance: Name of the tolerance that results are judged by; the first candidate's until a search settles it.
        pruning: How much of the model is pruned.
        targets: The targets that compete for the device, of which this is one; none where it has one.
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
    target_plan: TargetPlan
    constraints: Constraints
    candidates: tuple[PrecisionRule, ...]
    baseline: PrecisionRule | None
    tolerance: str
    pruning: Pruning = UNPRUNED
    targets: tuple[PlannedTarget, ...] = ()

    @property
    def competes_as(self) -> str:
        """Its target's name where that is one of several; empty where the device has one."""
        return self.target if self.targets else ""

    @property
    def precision(self) -> str:
        """The precision to build in; that of the first candidate until a search has settled it."""
        return self.target_plan.precision

    @property
    def rule(self) -> PrecisionRule:
        """What the target says of that precision."""
        known = (*self.candidates, *([self.baseline] if self.baseline else []))
        return next(rule for rule in known if rule.name == self.precision)

    @property
    def is_baseline(self) -> bool:
        """Whether it makes the float original that the others are measured against."""
        return self.rule == self.baseline and not self.pruning.ratio

    @property
    def changes_results(self) -> bool:
        """Whether the border model computes something else than the imported model on purpose."""
        return self.rule.scheme is not None or self.pruning.ratio > 0

    @property
    def pieces(self) -> int:
        """Candidates that are made, the baseline among them: how long a build takes goes by them."""
        extra = self.constraints.any and self.baseline is not None and self.baseline not in self.candidates
        return len(self.candidates) + extra

    @property
    def reason(self) -> str:
        """Why that precision, or why these candidates."""
        return self.decisions["precision"].reason

    @property
    def converts_graph(self) -> str:
        """Floating-point precision the border model itself is converted to; empty where it stays as it is."""
        return self.rule.name if self.rule.converts_graph and not self.rule.scheme else ""

    @property
    def facts(self) -> PlanFacts:
        """The plan as the manifest keeps it; the same plan gives the same facts in every folder."""
        return PlanFacts(
            device=self.device,
            profile=self.profile,
            profile_digest=self.profile_digest,
            target=self.target,
            toolchain=self.toolchain,
            passes=self.passes,
            target_passes=self.target_passes,
            dims=self.dims,
            decisions=self.decisions,
            target_options=options_to_dict(self.target_plan.options),
            target_plan=settings_of(self.target_plan),
            gates=self.constraints,
            candidates=facts_of(self.candidates),
            targets=self.targets,
        )


def make_plan(
    options: BuildOptions, device: DeviceClass, profile: HardwareProfile, target: Target, *, fleet: Fleet
) -> Plan:
    """Decides everything for one device class; imports no toolchain and reads no model.

    Args:
        options: The command line.
        device: The device class of the fleet file.
        profile: Its hardware profile.
        target: The profile's target.
        fleet: The fleet it belongs to: which data there are to calibrate with and to judge by.

    Raises:
        UsageError: Something is asked for that cannot be had together; every such thing is named.
        TargetUnavailable: Recovery is asked for, and PyTorch is not installed.
    """
    capability = target.capability(profile)
    _refuse_generation(device, capability, target)  # before its precisions, which are refused for lack of it
    constraints = make_constraints(fleet, device, strict=options.strict)
    candidates = choose_candidates(
        options.precision or device.precision,
        capability,
        fleet,
        device,
        constraints=constraints,
        where="--precision" if options.precision else device.place,
        is_made=options.first is not None,
    )
    candidates = with_cache(candidates, capability, device, target.name)
    rule = candidates.rules[0]
    asked, place = asked_of(options.prune, device)
    pruning = choose_pruning(asked, fleet, constraints=constraints, where=place)
    pruning = choose_recovery(options.recover_minutes, device, pruning=pruning, is_overruled=bool(options.prune))
    _refuse_ranges(device, capability, target)
    threads = _choose_threads(profile)
    return Plan(
        device=device.name,
        profile=profile.name,
        profile_digest=profile_digest(profile),
        target=target.name,
        toolchain=dict(target.toolchain()),
        passes=plan_passes(options),
        # a border model has the target's passes behind it already
        target_passes=() if options.first else tuple(step.name for step in target.passes(profile)),
        dims={"batch": device.batch, **device.dims},
        decisions={
            **_precision_decisions(candidates),
            **_gate_decisions(constraints),
            "layout": Decision(
                "as imported", "the portable half keeps ONNX's channels-first layout; the target chooses its own"
            ),
            "pruning": Decision(pruning.value, pruning.why),
            "tuning": _choose_tuning(target),
            "threads": _threads_decision(profile, threads),
            **_sizes_decision(device, capability),
            **_cache_decision(rule),
        },
        target_plan=TargetPlan(
            precision=rule.name,
            options=validate_options(target.Options, profile),
            # fixed sizes are bound in the border model, so that the target never sees them
            dims={name: sizes for name, sizes in {"batch": device.batch, **device.dims}.items() if not sizes.is_fixed},
            threads=threads,
            cache_dir=options.cache / "toolchains",
        ),
        constraints=constraints,
        candidates=candidates.rules,
        baseline=next((rule for rule in capability.precisions if rule.name == BASELINE), None),
        tolerance=rule.tolerance,
        pruning=pruning,
    )


def facts_of(candidates: Sequence[PrecisionRule]) -> tuple[Candidate, ...]:
    """The candidates as the manifest keeps them."""
    return tuple(Candidate(rule.name, rule.reason) for rule in candidates)


def settle(plan: Plan, rule: PrecisionRule, reason: str) -> Plan:
    """The plan with its precision decided: what a trial builds, and what the chosen artifact was built by.

    Args:
        plan: The device's plan.
        rule: One of its candidates.
        reason: Why this one.
    """
    decisions = {**plan.decisions, "precision": Decision(rule.name, reason), **_rule_decisions(rule)}
    target_plan = replace(plan.target_plan, precision=rule.name)
    settled = replace(plan, decisions=decisions, target_plan=target_plan, tolerance=rule.tolerance)
    if plan.pruning.ratio:
        reason = f"the level for {rule.name} results against the border model"
        return settle_tolerance(settled, rule.tolerance, reason)
    return settled


def settle_tolerance(plan: Plan, level: str, reason: str) -> Plan:
    """The plan with another tolerance that results are judged by.

    Args:
        plan: The plan, its precision settled.
        level: Name of the tolerance.
        reason: Why this one.
    """
    return replace(plan, tolerance=level, decisions={**plan.decisions, "tolerance": Decision(level, reason)})


def settle_target(plan: Plan, reason: str) -> Plan:
    """The plan with its target decided, where several compete."""
    if not plan.targets:
        return plan
    return replace(plan, decisions={**plan.decisions, "target": Decision(plan.target, reason)})


def settle_pruning(plan: Plan, pruning: Pruning) -> Plan:
    """The plan with another decision on pruning: what a trial builds, and what the chosen artifact was built by."""
    decisions = {**plan.decisions, "pruning": Decision(pruning.value, pruning.why)}
    return replace(plan, decisions=decisions, pruning=pruning)


def size_dims(plan: Plan, dims: Mapping[str, Range]) -> Plan:
    """The plan with sizes of dimensions that only the model names: sums of those that the fleet file sizes."""
    if not dims:
        return plan
    ranges = {name: sizes for name, sizes in dims.items() if not sizes.is_fixed}
    target_plan = replace(plan.target_plan, dims={**plan.target_plan.dims, **ranges})
    return replace(plan, dims={**plan.dims, **dims}, target_plan=target_plan)


def at_optimal_sizes(plan: Plan) -> Plan:
    """The plan of a build that is only raced: each range is the one size that it shall be fastest at."""
    dims = {name: Range(sizes.opt, sizes.opt, sizes.opt) for name, sizes in plan.target_plan.dims.items()}
    return replace(plan, target_plan=replace(plan.target_plan, dims=dims))


def options_to_dict(options: object) -> dict[str, Any]:
    """A target's options as a JSON-ready value."""
    return asdict(options) if is_dataclass(options) and not isinstance(options, type) else dict(vars(options))


def _precision_decisions(candidates: Candidates) -> dict[str, Decision]:
    precision = Decision(candidates.value, candidates.reason)
    if len(candidates.rules) == 1:
        return {"precision": precision, **_rule_decisions(candidates.rules[0])}
    each = {rule.name: _rule_decisions(rule) for rule in candidates.rules}
    return {"precision": precision} | {
        name: Decision("as searched", "; ".join(f"{rule}: {decisions[name].value}" for rule, decisions in each.items()))
        for name in ("border precision", "tolerance")
    }


def _rule_decisions(rule: PrecisionRule) -> dict[str, Decision]:
    against = "the quantized border model" if rule.scheme else "the float32 reference"
    return {
        "border precision": _border_precision(rule),
        "tolerance": Decision(rule.tolerance, f"the level for {rule.name} results against {against}"),
    }


def _gate_decisions(constraints: Constraints) -> dict[str, Decision]:
    """What the gates are, as the plan prints it."""
    limits = {
        name: Decision(f"{value:g}", constraints.reasons.get(name, ""))
        for name, value in asdict(constraints.limits).items()
        if value is not None
    }
    return limits or {"gates": Decision("parity", "the fleet file states no limits and no evaluation")}


def _border_precision(rule: PrecisionRule) -> Decision:
    if rule.scheme:
        return Decision(f"quantized for {rule.scheme.name}", "QuantizeLinear and DequantizeLinear are in the graph")
    if rule.converts_graph:
        return Decision(rule.name, "the target is strongly typed: it computes in the precision the graph is written in")
    return Decision("as imported", "the target converts while it builds, or nothing is to be converted")


def _refuse_generation(device: DeviceClass, capability: Capability, target: Target) -> None:
    is_fixed = not capability.dynamic_dims or capability.ranges_max or capability.fixed_sizes
    if device.generation is not None and is_fixed and not capability.keeps_cache:
        raise FleetError(
            f"target '{target.name}' builds fixed shapes only, and a language model's cache grows",
            where=device.place,
            remedy="Build it for a target with ranges: onnxruntime, which runs on ARM too, or openvino.",
        )


def _refuse_ranges(device: DeviceClass, capability: Capability, target: Target) -> None:
    ranges = {name: sizes for name, sizes in _sizes(device).items() if not sizes.is_fixed}
    if ranges and not capability.dynamic_dims:
        raise FleetError(
            f"target '{target.name}' builds fixed shapes only, and these are ranges: "
            + ", ".join(f"{name} {sizes}" for name, sizes in ranges.items()),
            where=device.place,
            remedy="Give each one size, for example `batch: 1`, or make one device class per size.",
        )
    if capability.ranges_max and len(ranges) > capability.ranges_max:
        raise FleetError(
            f"target '{target.name}' builds ranges of at most {capability.ranges_max} dimension(s), and these are "
            f"{len(ranges)}: " + ", ".join(f"{name} {sizes}" for name, sizes in ranges.items()),
            where=device.place,
            remedy="Give the others one size each, or choose a target that keeps shapes open.",
        )


def _sizes_decision(device: DeviceClass, capability: Capability) -> dict[str, Decision]:
    """How ranges are built, where that is not by shapes that stay open."""
    ranges = [f"{name} {sizes}" for name, sizes in _sizes(device).items() if not sizes.is_fixed]
    return {"sizes": Decision(", ".join(ranges), capability.fixed_sizes)} if ranges and capability.fixed_sizes else {}


def _cache_decision(rule: PrecisionRule) -> dict[str, Decision]:
    """How keys and values are kept, where that is not as the model has them."""
    if rule.scheme is None or not rule.scheme.rounds_cache:
        return {}
    reason = "generation.cache asks for it; a factor for each head and token, the largest element at 127"
    return {"cache": Decision("int8", reason)}


def _sizes(device: DeviceClass) -> dict[str, Range]:
    return {"batch": device.batch, **device.dims}


def _choose_tuning(target: Target) -> Decision:
    if not isinstance(target, Tunes):
        return Decision("none", "the target has no kernels with a choice")
    return Decision("by the log", "kernel by kernel once the border model is made; `fleetc plan --kernels` lists them")


def _choose_threads(profile: HardwareProfile) -> int:
    return profile.cpu.cores if profile.cpu else 1


def _threads_decision(profile: HardwareProfile, threads: int) -> Decision:
    if profile.cpu is None:
        return Decision(str(threads), "the profile states no CPU")
    return Decision(
        str(threads),
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
    if options.first:
        return PlannedPass(number, name, runs=False, reason=f"--from {options.first}")
    if options.stop_after is not None and number > options.stop_after:
        return PlannedPass(number, name, runs=False, reason=f"--stop-after {options.stop_after}")
    if name in options.skip_passes:
        return PlannedPass(number, name, runs=False, reason="--skip-pass")
    return PlannedPass(number, name, runs=True)
