"""A fleet file and the command line become jobs: all that is decided for each device before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.errors import CompilerError, FleetError, MissingError, UsageError, combine
from compiler.fleet import DeviceClass, Fleet
from compiler.fleet.profile import HardwareProfile, load_profile, profile_digest, profile_for
from compiler.fleet.request import read_fleet
from compiler.plan.contest import competing
from compiler.plan.halves import refuse_halves, refuse_undecided
from compiler.plan.plan import BuildOptions, Plan, make_plan, plan_passes
from compiler.plan.pruning import parse_prune
from compiler.target import Target, find_target


@dataclass(frozen=True)
class Job:
    """One device class, with everything that was decided for it.

    Args:
        device: The device class.
        profile: Its profile as the target sees it.
        target: The target; of several that compete the preferred one.
        plan: The plan through that target.
        others: The same device class through each of its other targets, in order.
        given: The profile as it was read, with all its targets; None where that is the target's own.
    """

    device: DeviceClass
    profile: HardwareProfile
    target: Target
    plan: Plan
    others: tuple[Job, ...] = ()
    given: HardwareProfile | None = None

    @property
    def whole_profile(self) -> HardwareProfile:
        """The profile as it was read."""
        return self.given or self.profile

    @property
    def by_target(self) -> tuple[Job, ...]:
        """The device class through each of its targets, the preferred one first."""
        return (self, *self.others)

    @property
    def pieces(self) -> int:
        """Candidates that are made, through all targets: how long a build takes goes by them."""
        return sum(job.plan.pieces for job in self.by_target)


def plan_fleet(path: Path, options: BuildOptions) -> tuple[Fleet, tuple[Job, ...], dict[str, CompilerError]]:
    """Reads the fleet file and decides for every device, without touching model or toolchain.

    Args:
        path: The fleet file; or a model, where the options say what to build it for.
        options: The command line.

    Returns:
        The fleet, the jobs in its order, and the devices that no plan could be made for, with the reason: what they ask
        for cannot be had, or something is not installed.

    Raises:
        UsageError: The fleet file or the command line is not valid, or nothing can be planned; every problem is named.
    """
    refuse_halves(options)
    fleet = read_fleet(path, options.request)
    # before any device: an option that is wrong for all is one error, not one for each
    plan_passes(options)
    if options.prune:
        parse_prune(options.prune)
    jobs: list[Job] = []
    failed: dict[str, CompilerError] = {}
    for device in selected_devices(fleet, options):
        try:
            jobs.append(_plan_device(device, fleet, options))
        except (UsageError, MissingError) as error:
            failed[device.name] = error
    # by their text: what is wrong for all devices is said once
    problems = {str(error): error for error in failed.values() if isinstance(error, UsageError)}
    if problems and not jobs:
        raise combine(list(problems.values()))
    refuse_undecided(options, [own.plan for job in jobs for own in job.by_target])
    return fleet, tuple(jobs), failed


def selected_devices(fleet: Fleet, options: BuildOptions) -> Sequence[DeviceClass]:
    """The devices asked for, in the order of the fleet file; all of them if none is named.

    Raises:
        UsageError: The fleet has no device of a name.
    """
    unknown = sorted(set(options.devices) - set(fleet.devices))
    if unknown:
        raise UsageError(
            f"the fleet has no device {', '.join(unknown)}",
            where="--device",
            remedy=f"Its devices: {', '.join(fleet.devices)}.",
        )
    return [device for name, device in fleet.devices.items() if not options.devices or name in options.devices]


def _plan_device(device: DeviceClass, fleet: Fleet, options: BuildOptions) -> Job:
    """The job through the first target that can be planned for, with the others that compete; says who cannot, and why.

    Raises:
        UsageError: What is asked for cannot be had of any of its targets, or the profile is not valid.
        MissingError: None of its targets is installed.
    """
    profile = load_profile(device.profile)
    names = options.targets or device.targets or profile.targets
    jobs: list[Job] = []
    failed: dict[str, CompilerError] = {}
    for name in names:
        try:
            jobs.append(_plan_through(name, profile, device, fleet, options))
        except (FleetError, MissingError) as error:
            failed[name] = error
    if not jobs:
        distinct = {str(error): error for error in failed.values()}
        raise combine(list(distinct.values()))
    if len(names) == 1:
        return jobs[0]
    plans = competing([job.plan for job in jobs], names, failed)
    lead, *others = (replace(job, plan=plan) for job, plan in zip(jobs, plans, strict=True))
    return replace(lead, others=tuple(others))


def _plan_through(name: str, profile: HardwareProfile, device: DeviceClass, fleet: Fleet, options: BuildOptions) -> Job:
    own = profile_for(profile, name)
    target = find_target(name, where=_named_at(name, own, device, options))
    plan = make_plan(options, device, own, target, fleet=fleet)
    # the whole profile's: a plan through another target of it is of the same profile
    return Job(device, own, target, replace(plan, profile_digest=profile_digest(profile)), given=profile)


def _named_at(name: str, profile: HardwareProfile, device: DeviceClass, options: BuildOptions) -> str:
    """Who asks for a target, for messages."""
    if options.targets:
        return "--target"
    if device.targets:
        return device.origin.place(("devices", device.name, "targets", device.targets.index(name)))
    return profile.origin.place(("target",))
