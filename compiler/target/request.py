"""What a child process is asked to do with a border model under a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact import Artifact, artifact_from_dict
from compiler.artifact.adapter import to_json
from compiler.artifact.schema import BuildSettings
from compiler.fleet.profile import HardwareProfile, to_yaml
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import ChildLimits, run_child
from compiler.target.target import TargetPlan


@dataclass(frozen=True)
class BuildRequest:
    """What a child process is told of the plan: the settings that the manifest keeps, and where downloads are kept."""

    settings: BuildSettings
    cache_dir: Path

    @classmethod
    def of(cls, plan: TargetPlan) -> BuildRequest:
        """What the build of a device's plan is told."""
        return cls(settings_of(plan), plan.cache_dir)


def settings_of(plan: TargetPlan) -> BuildSettings:
    """All of a target's plan but its options, which come from the profile, and the place of its caches."""
    return BuildSettings(plan.precision, plan.dims, plan.threads, plan.schedule, plan.payload_bytes)


def build_in_child(
    border: Path, request: BuildRequest, profile: HardwareProfile, *, workdir: Path, limits: ChildLimits, where: str
) -> Artifact:
    """Builds in a child process, whose own files stay outside `workdir`.

    Raises:
        CompilerError: Whatever the target raised, or ToolchainFailed if its process ended badly.
    """
    with scratch_folder() as scratch:
        told = {**told_child(border, request, profile, scratch), "workdir": str(workdir.absolute())}
        value = run_child("build", told, folder=scratch, limits=limits, where=where)
    return artifact_from_dict({**value, "root": str(workdir)})


def told_child(border: Path, request: BuildRequest, profile: HardwareProfile, folder: Path) -> dict[str, Any]:
    """What a child process that works on a border model for a plan is told; the profile is written into its folder."""
    (folder / "profile.yaml").write_text(to_yaml(profile), encoding="utf-8")
    paths = {"border": border, "profile": folder / "profile.yaml", "cache_dir": request.cache_dir}
    return {**to_json(request.settings), **{name: str(path.absolute()) for name, path in paths.items()}}
