"""`fleetc tune`: from a model and a profile to a log of what its kernels took, one trial after another."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.artifact import Evidence
from compiler.artifact.manifest import BORDER
from compiler.driver.clock import Clock
from compiler.driver.events import Sink, ignore
from compiler.driver.stages.border import Border, make_border
from compiler.driver.stages.inputs import prepare, read_original
from compiler.driver.stages.kernels import (
    Kernels,
    bound_payload,
    choose_schedule,
    list_kernels,
    tuning_keys,
    tuning_log,
)
from compiler.driver.stages.rewrite import rewritten_entry
from compiler.driver.stages.run import Stages
from compiler.errors import FleetError, TargetUnavailable, ToolchainFailed
from compiler.fleet import DeviceClass, Fleet, load_fleet
from compiler.fleet.profile import load_profile, profile_digest, profile_for
from compiler.plan import BuildOptions, Plan, make_plan, settle
from compiler.plan.jobs import Job
from compiler.store import Store
from compiler.target import Backend, find_target
from compiler.target.capability import PrecisionRule, refuse_unsupported
from compiler.target.isolate import ChildLimits
from compiler.target.request import BuildRequest
from compiler.target.tuning_process import MeasuringChild, Subject
from compiler.tune import Budget, DeviceType, Tunable, Tuned, TuningLog, profile_device, tune

FLEET_SUFFIXES = (".yaml", ".yml")

log = logging.getLogger("fleetc.tune")


@dataclass(frozen=True)
class TuneOptions:
    """What `fleetc tune` was asked for.

    Args:
        model: An ONNX file, or a fleet file whose model, sizes and precision are taken.
        profile: Name or file of the profile to tune for.
        precision: Precision to tune; empty for what the fleet file or the target puts first.
        backend: Where trials are measured.
        budget: When to stop.
        cache: Root of the store; the log lies in its folder `tuning`.
        child_limits: What a child process may use.
    """

    model: Path
    profile: str
    precision: str
    backend: Backend
    budget: Budget
    cache: Path
    child_limits: ChildLimits


@dataclass(frozen=True)
class TuneReport:
    """What came of it.

    Args:
        plan: The plan the kernels were built by.
        device: What was measured on.
        evidence: Of its figures.
        tuned: Kernel by kernel.
        log: The file of the log that the records are in.
        note: What a reader of the figures should know; empty if they hold for the profile's devices.
    """

    plan: Plan
    device: DeviceType
    evidence: Evidence
    tuned: tuple[Tuned, ...]
    log: Path
    note: str


def tune_model(options: TuneOptions, *, events: Sink = ignore) -> TuneReport:
    """Makes the border model, lists its kernels, and measures their choices until the budget is used.

    Args:
        options: The command line.
        events: Is told which stage runs.

    Raises:
        UsageError: The model, the profile or the fleet file cannot be obeyed.
        TargetUnavailable: The target has nothing to tune, or the back-end is not there or went away; the log keeps
            what was measured.
    """
    fleet, device = _device(options)
    job = _job(fleet, device, options)
    plan, border, kernels = _border_and_kernels(
        job, fleet, cache=options.cache, child_limits=options.child_limits, events=events
    )
    keep = tuning_log(options.cache)
    if not kernels:
        raise TargetUnavailable(
            f"target '{plan.target}' has no kernels with a choice in this model",
            where=plan.profile,
            remedy="`fleetc targets` lists the others; nothing has to be tuned for this one.",
        )
    with MeasuringChild(
        Subject(border.path, BuildRequest.of(plan.target_plan), job.profile, options.backend), options.child_limits
    ) as child:
        device_type, evidence = child.device, child.evidence
        log.info("%d kernels, measured on %s (%s)", len(kernels), device_type, evidence)
        keys = tuning_keys(kernels, plan, device_type)
        tuned = tune(kernels, keys, child.measure, evidence, log_=keep, budget=options.budget)
    if not any(kernel.best for kernel in tuned):
        raise ToolchainFailed(
            f"no trial gave a figure: {_first_error(keep, device_type)}",
            where=plan.profile,
            remedy="Remove the cause and run it again with --retry, or give it more --budget.",
        )
    note = _note(device_type, profile_device(job.profile), plan)
    return TuneReport(plan, device_type, evidence, tuned, keep.path(device_type), note)


def plan_kernels(job: Job, fleet: Fleet, *, cache: Path, child_limits: ChildLimits) -> Kernels:
    """What each kernel of a device's first candidate would be built with now; measures nothing.

    Raises:
        CompilerError: The model cannot be read, or the toolchain that lists its kernels fails or is absent.
    """
    settled = Job(job.device, job.profile, job.target, settle(job.plan, job.plan.rule, job.plan.reason))
    job.target.check(job.profile)
    plan, _, kernels = _border_and_kernels(settled, fleet, cache=cache, child_limits=child_limits)
    return choose_schedule(kernels, plan, job.profile, tuning_log(cache))


def _job(fleet: Fleet, device: DeviceClass, options: TuneOptions) -> Job:
    whole = load_profile(device.profile)
    profile = profile_for(whole, (device.targets or whole.targets)[0])
    target = find_target(profile.target, where=profile.origin.place(("target",)))
    target.check(profile)
    build = BuildOptions(cache=options.cache, precision=options.precision, child_limits=options.child_limits)
    plan = make_plan(build, device, profile, target, fleet=fleet)
    settled = replace(settle(plan, plan.rule, plan.reason), profile_digest=profile_digest(whole))
    return Job(device, profile, target, settled)


def _border_and_kernels(
    job: Job, fleet: Fleet, *, cache: Path, child_limits: ChildLimits, events: Sink = ignore
) -> tuple[Plan, Border, tuple[Tunable, ...]]:
    """The job's plan with what the model adds to it, its border model, and the kernels of that."""
    stages, target, profile = Stages(Store(cache), Clock(job.device.name, events)), job.target, job.profile
    ready = prepare(fleet, read_original(fleet).model, [job.device])[0][job.device.name]
    rewritten = None
    if job.plan.constraints.limits.memory_reduction_pct is not None:
        rewritten = rewritten_entry(ready.model, ready.digest, job.plan, ready.inputs.probe, stages).files / BORDER
    passes = target.passes(profile)
    capability, inputs = target.capability(profile), ready.inputs.probe
    in_place = capability.keeps_cache
    plan = bound_payload(job.plan, ready.model, job.device.generation, rewritten=rewritten, in_place=in_place)
    border = make_border(ready.model, ready.digest, plan, passes, capability=capability, inputs=inputs, stages=stages)
    refuse_unsupported(border.load(), capability, target=target.name)
    return plan, border, list_kernels(border, plan, profile, target, stages=stages, child_limits=child_limits)


def _device(options: TuneOptions) -> tuple[Fleet, DeviceClass]:
    """The fleet file's device class of that profile; or one of batch 1 for a bare model."""
    if options.model.suffix not in FLEET_SUFFIXES:
        device = DeviceClass(name=load_profile(options.profile).name, profile=options.profile)
        path = options.model.absolute()
        return Fleet(path=path, model=path, devices={device.name: device}), device
    fleet = load_fleet(options.model)
    devices = [device for name, device in fleet.devices.items() if options.profile in (name, device.profile)]
    if not devices:
        known = ", ".join(f"{name} ({device.profile})" for name, device in fleet.devices.items())
        raise FleetError(
            f"no device of the fleet has the profile {options.profile}",
            where=str(options.model),
            remedy=f"--profile takes one of its devices or their profiles: {known}.",
        )
    return fleet, devices[0]


def _first_error(log: TuningLog, device: DeviceType) -> str:
    errors = [record.error for record in log.of(device) if record.error]
    return errors[-1] if errors else "the budget was used before the first"


def _note(device: DeviceType, wanted: DeviceType, plan: Plan) -> str:
    return "; ".join(filter(None, (_of_another(device, wanted, plan), of_floats(plan.rule))))


def _of_another(device: DeviceType, wanted: DeviceType, plan: Plan) -> str:
    if device == wanted:
        return ""
    return (
        f"measured on {device}, which is not what profile {plan.profile} describes ({wanted}): a build for it takes "
        "these choices as transferred where instruction set and cores are the same, and says so"
    )


def of_floats(rule: PrecisionRule) -> str:
    """What to know of the kernels of a precision that quantizes what they read; empty for any other."""
    if rule.scheme is None or not rule.scheme.needs_calibration:
        return ""
    return (
        f"these are kernels of the float model: {rule.name} takes the choices of those that it leaves in floating "
        "point, and its integer kernels have none"
    )
