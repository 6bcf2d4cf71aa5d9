"""The target half up to the artifact: refuse what the target does not take, then build in a child process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from compiler.artifact import Artifact, artifact_from_dict, artifact_to_dict, leaves_folder
from compiler.driver.stages.border import Border
from compiler.driver.stages.run import Stages
from compiler.errors import ToolchainFailed
from compiler.fleet.profile import HardwareProfile
from compiler.model.frontend import describe_inputs, describe_outputs
from compiler.model.spec import TensorSpec
from compiler.plan import Plan, options_to_dict
from compiler.store import Entry, StageName, read_result, write_result
from compiler.store.digests import closure_digest
from compiler.target import Target
from compiler.target.capability import refuse_unsupported
from compiler.target.isolate import ChildLimits
from compiler.target.request import BuildRequest, build_in_child

DESCRIPTION = "artifact.json"
_PROGRAMS = ("run", "generate")
"""Files that may lie in the folder itself."""


@dataclass(frozen=True)
class Built:
    """An artifact in the store, and the entry it came from."""

    artifact: Artifact
    entry: Entry


def build_artifact(
    border: Border, plan: Plan, profile: HardwareProfile, target: Target, *, stages: Stages, child_limits: ChildLimits
) -> Built:
    """Builds one device's artifact, or takes it from the store.

    Raises:
        UnsupportedModel: The target refuses nodes; all of them are named.
        TargetUnavailable: The toolchain is not installed.
        ToolchainFailed: It crashed, hung, or made something else than was asked for.
    """
    refuse_unsupported(border.load(), target.capability(profile), target=target.name)

    def make(folder: Path) -> None:
        artifact = build_loose(border.path, plan, profile, folder=folder, child_limits=child_limits)
        check_artifact(artifact, border)
        # logs and intermediate files have paths and times in them: the entry would differ from build to build
        _keep_only(folder, {*artifact.files})
        write_result(folder, DESCRIPTION, artifact_to_dict(artifact))

    inputs = target_inputs(border, plan, target)
    entry = stages.run(StageName.COMPILE, make, **inputs, schedule=dict(plan.target_plan.schedule))
    return Built(artifact_from_dict({**read_result(entry, DESCRIPTION), "root": str(entry.files)}), entry)


def build_loose(
    border: Path, plan: Plan, profile: HardwareProfile, *, folder: Path, child_limits: ChildLimits
) -> Artifact:
    """Builds any border model into a folder outside the store, unchecked.

    Raises:
        CompilerError: Whatever the target raised, or ToolchainFailed if its process ended badly.
    """
    request = BuildRequest.of(plan.target_plan)
    return build_in_child(
        border, request, profile, workdir=folder, child_limits=child_limits, where=f"{plan.device}: build"
    )


def check_artifact(artifact: Artifact, border: Border) -> None:
    """Compares what was built with the border model: names, types and sizes of inputs and outputs.

    Raises:
        ToolchainFailed: They differ, or a file is missing or outside the artifact's folder.
    """
    model = border.load()
    problems = [*_file_problems(artifact)]
    # what the device itself finishes cannot be looked into here
    if not artifact.deferred:
        problems += _spec_problems("input", describe_inputs(model), artifact.inputs)
        problems += _spec_problems("output", describe_outputs(model), artifact.outputs)
    if problems:
        raise ToolchainFailed(
            f"target '{artifact.target}' built something else than was asked for: {'; '.join(problems)}",
            remedy="This is a fault of the target or its toolchain; report it with the border model.",
        )


def target_inputs(border: Border, plan: Plan, target: Target) -> dict[str, object]:
    """All that a target's work on a border model depends on beside the schedule, as parts of a key."""
    return {
        "border": border.digest,
        "target": target.name,
        "plugin": closure_digest(_plugin(target)),
        "precision": plan.precision,
        "options": options_to_dict(plan.target_plan.options),
        "dims": {name: asdict(sizes) for name, sizes in plan.target_plan.dims.items()},
        "threads": plan.target_plan.threads,
        "payload_bytes": plan.target_plan.payload_bytes,
        "profile": plan.profile_digest,
        "toolchain": dict(plan.toolchain),
    }


def _plugin(target: Target) -> str:
    """The plugin's own package: one target among several in our package, or a whole third-party package."""
    names = type(target).__module__.split(".")
    return ".".join(names[:2] if names[0] == "targets" else names[:1])


def _keep_only(folder: Path, files: set[str]) -> None:
    """Deletes what the toolchain left beside the artifact's own files."""
    # files before the folders that hold them
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()


def _file_problems(artifact: Artifact) -> Iterator[str]:
    for name in artifact.files:
        if leaves_folder(artifact.root, name):
            yield f"file '{name}' is outside the artifact's folder"
        elif name not in _PROGRAMS and PurePosixPath(name).parts[:1] not in (("payload",), ("runtime",)):
            yield f"file '{name}' is not `run` or `generate`, nor under payload/ or runtime/"
        elif not (artifact.root / name).is_file():
            yield f"file '{name}' was not written"
    for name in sorted({*artifact.non_reproducible} - {*artifact.files}):
        yield f"'{name}' is listed as non-reproducible but is not a file of the artifact"


def _spec_problems(kind: str, wanted: Sequence[TensorSpec], built: Sequence[TensorSpec]) -> Iterator[str]:
    others = {spec.name: spec for spec in built}
    for spec in wanted:
        other = others.pop(spec.name, None)
        if other is None:
            yield f"{kind} '{spec.name}' is missing"
        elif other.dtype != spec.dtype or not _same_shape(spec.shape, other.shape):
            yield f"{kind} '{spec.name}' is {_words(other)}, the border model's is {_words(spec)}"
    yield from (f"{kind} '{name}' is not the border model's" for name in others)


def _words(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _same_shape(wanted: Sequence[int | str], actual: Sequence[int | str]) -> bool:
    """Fixed sizes must be equal; a toolchain may give a symbolic one its own name, or work it out."""
    return len(wanted) == len(actual) and all(a == b for a, b in zip(wanted, actual, strict=True) if isinstance(a, int))
