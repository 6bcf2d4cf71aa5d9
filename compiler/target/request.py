"""What a child process is asked to do with a border model under a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.artifact import Artifact, artifact_from_dict
from compiler.fleet.profile import HardwareProfile, to_yaml
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import ChildLimits, run_child
from compiler.target.target import TargetPlan
from compiler.tune import Choice


@dataclass(frozen=True)
class BuildRequest:
    """What a child process is told of the plan: JSON values, as the manifest keeps them too."""

    precision: str
    dims: Mapping[str, Mapping[str, int]]
    threads: int
    cache_dir: Path
    schedule: Mapping[str, Choice] = field(default_factory=dict)
    payload_bytes: int | None = None

    @classmethod
    def of(cls, plan: TargetPlan) -> BuildRequest:
        """What the build of a device's plan is told."""
        dims = {name: asdict(sizes) for name, sizes in plan.dims.items()}
        return cls(plan.precision, dims, plan.threads, plan.cache_dir, dict(plan.schedule), plan.payload_bytes)


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
    return {**asdict(request), **{name: str(path.absolute()) for name, path in paths.items()}}
