"""The target contract, and the only plugin code: find one target by name among entry points, load only that one.

A third party adds a target with one file and one entry point:

    [project.entry-points."fleetc.targets"]
    acme_npu = "acme_npu:TARGET"
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from compiler.artifact import Artifact, Evidence
from compiler.errors import TargetNotFound, TargetUnavailable
from compiler.fleet import Range
from compiler.fleet.profile import HardwareProfile
from compiler.target.capability import Capability
from compiler.target.runner import Runner
from compiler.tune import Choice, DeviceType, Measurement, Tunable

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.model.graph import Pass

# raised with every change that a plugin of before does not survive
API_VERSION = 1
GROUP = "fleetc.targets"
ABSENT = "absent"
"""The version of a package that is not installed."""


@dataclass(frozen=True)
class TargetPlan:
    """The part of the plan a target may depend on; together with the border model and the profile it keys the build.

    Args:
        precision: One of the capability's precision names.
        options: The profile's `target_options` as the target's own `Options`.
        dims: Symbolic dimension left in the border model → its range. Dimensions with one value are already bound,
            but in a build that is only raced: of a target with `fixed_sizes` it is asked for at one size of each range.
        threads: Threads the artifact shall use on the device.
        schedule: Workload of a kernel → the choice it is built with; a kernel that is not in it is built with the
            target's own first choice.
        payload_bytes: Most bytes that the artifact's payload should take; None: no limit. A target may spend memory on
            speed up to it.
        cache_dir: Where toolchain downloads and intermediate caches may be kept; never part of a key.
    """

    precision: str
    options: Any
    dims: Mapping[str, Range] = field(default_factory=dict)
    threads: int = 1
    schedule: Mapping[str, Choice] = field(default_factory=dict)
    payload_bytes: int | None = None
    cache_dir: Path = field(default=Path(), compare=False)


@dataclass(frozen=True)
class Backend:
    """Where trials of tuning are measured.

    Args:
        kind: `host`, `rpc` or `emulator`.
        tracker: `host:port` of TVM's tracker; for `rpc`.
        key: Under which the tracker knows the boards; for `rpc`.
        trial_s: Wall time one trial may take, in seconds.
    """

    kind: str = "host"
    tracker: str = ""
    key: str = ""
    trial_s: float = 20.0


class Measurer(Protocol):
    """Measures the choices of a model's kernels, one at a time.

    The evidence decides the unit of its figures. The device is this machine, or the profile's behind a tracker or in an
    emulator.
    """

    @property
    def evidence(self) -> Evidence:
        """Where its figures are from."""

    @property
    def device(self) -> DeviceType:
        """The type of device that runs the trials."""

    def measure(self, kernel: Tunable, choice: Choice) -> Measurement:
        """One trial. Raises TargetUnavailable where nothing can be measured any more; all else is the trial's fault."""


@runtime_checkable
class Tunes(Protocol):
    """What a target that can be tuned offers beside `Target`'s members."""

    def tunables(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile) -> Sequence[Tunable]:
        """The kernels of a border model that have choices, each workload once; may import the toolchain."""

    def measurer(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, backend: Backend) -> Measurer:
        """What measures them. Raises TargetUnavailable where the back-end is not there, or the target has none."""


@runtime_checkable
class HasAlternatives(Protocol):
    """What a target offers beside `Target`'s members if it can build with any one of several packages.

    Args:
        alternatives: Packages of `toolchain` of which one is enough.
    """

    alternatives: frozenset[str]


@runtime_checkable
class HoldsToIsa(Protocol):
    """What a target offers beside `Target`'s members if its builds use no instruction that the profile's ISA lacks.

    Speed that is measured here then has no part of what this machine has beyond the device.

    Args:
        holds_to_isa: True.
    """

    holds_to_isa: bool


@runtime_checkable
class Target(Protocol):
    """One toolchain and the devices it builds for.

    A target may also be `KnowsWhereItRuns`, `Tunes` where its kernels can be built in several ways, `HasAlternatives`
    where it needs one of several packages, and `HoldsToIsa`.
    """

    name: str
    api_version: int
    Options: type[Any]

    def toolchain(self) -> Mapping[str, str]:
        """Package → installed version of everything that can change the build's bytes; imports nothing heavy."""

    def check(self, profile: HardwareProfile) -> None:
        """Raises TargetUnavailable naming the pip extra or driver that building for this profile needs."""

    def capability(self, profile: HardwareProfile) -> Capability:
        """What the target can do on this profile, as data; imports no toolchain."""

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """Graph passes of the target's own, run last on the border model."""

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Builds under `workdir`. Raises UnsupportedModel, TargetUnavailable or ToolchainFailed."""

    def load(self, artifact: Artifact) -> Runner:
        """Loads a built artifact where it can run. Raises TargetUnavailable saying why it cannot run here."""


@runtime_checkable
class Prepares(Protocol):
    """A target whose toolchain may be imported once, in a process that those which build are forked from."""

    def prepare(self) -> None:
        """Imports what building needs. Must start no thread: a forked process would wait for it for ever."""


def list_targets() -> dict[str, EntryPoint]:
    """Installed targets by name, none of them loaded; of a name that two packages claim, the first."""
    return {name: points[0] for name, points in _claims().items()}


def find_target(name: str, *, where: str = "") -> Target:
    """Loads the one target of that name.

    Args:
        name: The entry point's name.
        where: What asked for it (file and key), for the message.

    Raises:
        TargetNotFound: No installed package has it.
        TargetUnavailable: Two packages claim the name, or the plugin fails to import, speaks another API version, or
            is no target.
    """
    installed = _claims()
    if name not in installed:
        # a misspelt name is the commonest cause
        near = difflib.get_close_matches(name, installed, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise TargetNotFound(
            f"no target '{name}' is installed",
            where=where,
            remedy=f"{hint}Installed: {', '.join(installed) or 'none'}. `fleetc targets` lists them.",
        )
    point, *others = installed[name]
    if others:
        raise TargetUnavailable(
            f"two plugins claim the target '{name}': {_origin(point)} and {_origin(others[0])}",
            where=where,
            remedy="Uninstall one of the two packages.",
        )
    return _checked(name, _loaded(point, where), where)


@cache
def installed_version(package: str) -> str:
    """Version of an installed distribution, or `absent`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def missing_packages(target: Target) -> tuple[str, ...]:
    """The packages of a target's toolchain that are absent and needed; of alternatives only where all are absent."""
    versions = target.toolchain()
    absent = [package for package, version in versions.items() if version == ABSENT]
    alternatives = target.alternatives if isinstance(target, HasAlternatives) else frozenset()
    has_one = any(versions.get(package, ABSENT) != ABSENT for package in alternatives)
    return tuple(package for package in absent if not (has_one and package in alternatives))


def _claims() -> dict[str, list[EntryPoint]]:
    """Target name → every entry point that claims it."""
    claims: dict[str, list[EntryPoint]] = {}
    # a set: an editable install beside a wheel lists the same entry point twice
    for point in sorted(set(entry_points(group=GROUP)), key=lambda point: (point.name, point.value)):
        claims.setdefault(point.name, []).append(point)
    return claims


def _loaded(point: EntryPoint, where: str) -> object:
    try:
        return point.load()
    except Exception as error:  # a plugin is foreign code: whatever it raises on import becomes one message
        raise TargetUnavailable(
            f"the plugin for target '{point.name}' ({_origin(point)}) failed to import: "
            f"{type(error).__name__}: {error}",
            where=where,
            remedy="Repair or uninstall that package.",
        ) from error


def _checked(name: str, target: object, where: str) -> Target:
    if not isinstance(target, Target):
        missing = [
            member
            for member in (
                "name",
                "api_version",
                "Options",
                "toolchain",
                "check",
                "capability",
                "passes",
                "build",
                "load",
            )
            if not hasattr(target, member)
        ]
        raise TargetUnavailable(
            f"the plugin for target '{name}' lacks {', '.join(missing)}",
            where=where,
            remedy="See docs/writing-a-target.md for the contract.",
        )
    if target.api_version != API_VERSION:
        raise TargetUnavailable(
            f"target '{name}' speaks plugin API {target.api_version}, this fleetc speaks {API_VERSION}",
            where=where,
            remedy="Install a version of the plugin that matches this fleetc.",
        )
    return target


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
