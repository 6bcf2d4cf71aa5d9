"""What a target hands out: files in a folder, the tensors they take and give, and where each figure comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from compiler.artifact.adapter import parse, to_json
from compiler.model.spec import TensorSpec


class Evidence(StrEnum):
    """Where a figure comes from."""

    HOST = "measured-host"
    EMULATOR = "measured-emulator"
    DEVICE = "measured-device"
    ESTIMATED = "estimated"
    NONE = "none"


@dataclass(frozen=True)
class Artifact:
    """The files one build made, under one folder.

    Args:
        root: The folder, never written to a file. Paths below are relative to it, in POSIX spelling.
        target: Name of the target that made it and can load it.
        precision: Precision it computes in.
        inputs: What it takes, as read back from what was built.
        outputs: What it gives.
        files: Every file the device needs: `payload/…`, and for some targets `runtime/…` and `run`.
        tools: Toolchain package → version that made it.
        facts: What else the target wants to say or needs to load it again; JSON values only, no paths, no times.
        non_reproducible: File → why its bytes differ from build to build.
        deferred: Empty if complete; otherwise what the device must do (`fleetc finish`), and why.
        least_payload_bytes: Least `TargetPlan.payload_bytes` that a build of this model can be asked to keep; None
            where the target spends no more memory on speed than it must.
    """

    root: Annotated[Path, Field(exclude=True)]
    target: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]
    tools: Mapping[str, str]
    facts: Mapping[str, object] = field(default_factory=dict)
    non_reproducible: Mapping[str, str] = field(default_factory=dict)
    deferred: str = ""
    least_payload_bytes: int | None = None


def artifact_to_dict(artifact: Artifact) -> dict[str, Any]:
    """The artifact's description as a JSON-ready value, without its folder."""
    value: dict[str, Any] = to_json(artifact)
    return value


def artifact_from_dict(value: Mapping[str, Any]) -> Artifact:
    """The artifact that `artifact_to_dict` described; `root` must have been added.

    Raises:
        ValueError: It describes none.
    """
    return parse(Artifact, value)


def leaves_folder(folder: Path, name: str) -> bool:
    """Whether a relative path leads out of a folder: absolute, through `..`, or through a symbolic link."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return True
    return any((folder / step).is_symlink() for step in (path, *path.parents) if step.parts)
