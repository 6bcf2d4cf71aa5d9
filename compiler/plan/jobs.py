"""A fleet file and the command line become jobs: all that is decided for each device before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import CompilerError, MissingError, UsageError, combine
from compiler.fleet import DeviceClass, Fleet
from compiler.fleet.profile import HardwareProfile, load_profile
from compiler.fleet.request import read_fleet
from compiler.plan.halves import refuse_halves, refuse_undecided
from compiler.plan.plan import BuildOptions, Plan, make_plan, plan_passes
from compiler.plan.pruning import parse_prune
from compiler.target import Target, find_target


@dataclass(frozen=True)
class Job:
    """One device class, with everything that was decided for it."""

    device: DeviceClass
    profile: HardwareProfile
    target: Target
    plan: Plan


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
    refuse_undecided(options, [job.plan for job in jobs])
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
    profile = load_profile(device.profile)
    target = find_target(profile.target, where=f"{profile.origin.place(('target',))}")
    return Job(device, profile, target, make_plan(options, device, profile, target, fleet=fleet))
