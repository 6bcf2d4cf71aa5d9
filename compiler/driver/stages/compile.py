"""The target half up to the artifact: refuse what the target does not take, then build in a child process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.artifact import Artifact, TensorSpec, artifact_from_dict, artifact_to_dict, leaves_folder
from compiler.driver.stages.border import Border
from compiler.errors import ToolchainFailed
from compiler.fleet.profile import HardwareProfile, to_yaml
from compiler.model.frontend import describe_inputs, describe_outputs
from compiler.plan import Plan, options_to_dict
from compiler.store import Entry, Stage, Store, canonical_json
from compiler.store.digests import code_digest
from compiler.target import Target
from compiler.target.capability import refuse_unsupported
from compiler.target.isolate import ChildLimits, run_child
from compiler.tune import Choice

DESCRIPTION = "artifact.json"


@dataclass(frozen=True)
class Built:
    """An artifact in the store, and the entry it came from."""

    artifact: Artifact
    entry: Entry


def build_artifact(
    border: Border, plan: Plan, profile: HardwareProfile, target: Target, *, store: Store, limits: ChildLimits
) -> Built:
    """Builds one device's artifact, or takes it from the store.

    Raises:
        UnsupportedModel: The target refuses nodes; all of them are named.
        TargetUnavailable: The toolchain is not installed.
        ToolchainFailed: It crashed, hung, or made something else than was asked for.
    """
    refuse_unsupported(border.load(), target.capability(profile), target=target.name)
    chosen = ("schedule", canonical_json(plan.target_plan.schedule))
    stage = Stage("build", (*target_key(border, plan, target), chosen))

    def make(folder: Path) -> None:
        artifact = build_loose(border.path, plan, profile, folder=folder, limits=limits)
        check_artifact(artifact, border)
        _keep_only(folder, {*artifact.files})
        description = json.dumps(artifact_to_dict(artifact), indent=1)
        (folder / DESCRIPTION).write_text(description, encoding="utf-8")

    entry = store.obtain(stage, make)
    value = json.loads((entry.files / DESCRIPTION).read_text(encoding="utf-8"))
    return Built(artifact_from_dict({**value, "root": str(entry.files)}), entry)


def build_loose(border: Path, plan: Plan, profile: HardwareProfile, *, folder: Path, limits: ChildLimits) -> Artifact:
    """Builds any border model into a folder outside the store, unchecked.

    Raises:
        CompilerError: Whatever the target raised, or ToolchainFailed if its process ended badly.
    """
    request = BuildRequest.of(plan)
    return build_in_child(border, request, profile, workdir=folder, limits=limits, where=f"{plan.device}: build")


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
    def of(cls, plan: Plan) -> BuildRequest:
        """What the plan's own build is told."""
        told = plan.target_plan
        dims = {name: asdict(sizes) for name, sizes in told.dims.items()}
        return cls(plan.precision, dims, told.threads, told.cache_dir, dict(told.schedule), told.payload_bytes)


def build_in_child(
    border: Path, request: BuildRequest, profile: HardwareProfile, *, workdir: Path, limits: ChildLimits, where: str
) -> Artifact:
    """Builds in a child process, whose own files stay outside `workdir`.

    Raises:
        CompilerError: Whatever the target raised, or ToolchainFailed if its process ended badly.
    """
    with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
        told = {**told_child(border, request, profile, Path(name)), "workdir": str(workdir.absolute())}
        value = run_child("build", told, folder=Path(name), limits=limits, where=where)
    return artifact_from_dict({**value, "root": str(workdir)})


def told_child(border: Path, request: BuildRequest, profile: HardwareProfile, folder: Path) -> dict[str, Any]:
    """What a child process that works on a border model for a plan is told; the profile is written into its folder."""
    (folder / "profile.yaml").write_text(to_yaml(profile), encoding="utf-8")
    paths = {"border": border, "profile": folder / "profile.yaml", "cache_dir": request.cache_dir}
    return {**asdict(request), **{name: str(path.absolute()) for name, path in paths.items()}}


def check_artifact(artifact: Artifact, border: Border) -> None:
    """Compares what was built with the border model: names, types and sizes of inputs and outputs.

    Raises:
        ToolchainFailed: They differ, or a file is missing or outside the artifact's folder.
    """
    model = border.load()
    problems = [*_file_problems(artifact)]
    if not artifact.deferred:
        problems += _spec_problems("input", describe_inputs(model), artifact.inputs)
        problems += _spec_problems("output", describe_outputs(model), artifact.outputs)
    if problems:
        raise ToolchainFailed(
            f"target '{artifact.target}' built something else than was asked for: {'; '.join(problems)}",
            remedy="This is a fault of the target or its toolchain; report it with the border model.",
        )


def target_key(border: Border, plan: Plan, target: Target) -> tuple[tuple[str, str], ...]:
    """Named parts of all that a target's work on a border model depends on, but the schedule."""
    return (
        ("border", border.digest),
        ("target", target.name),
        ("plugin", _plugin_code(target)),
        ("compiler", code_digest("compiler.target.worker")),
        ("precision", plan.precision),
        ("options", canonical_json(options_to_dict(plan.target_plan.options))),
        ("dims", canonical_json({name: asdict(sizes) for name, sizes in plan.target_plan.dims.items()})),
        ("threads", str(plan.target_plan.threads)),
        ("payload_bytes", str(plan.target_plan.payload_bytes)),
        ("profile", plan.profile_digest),
        *sorted(plan.toolchain.items()),
    )


def _plugin_code(target: Target) -> str:
    """Sources of the plugin: of one target among several in our package, of a whole third-party package."""
    names = type(target).__module__.split(".")
    return code_digest(".".join(names[:2] if names[0] == "targets" else names[:1]))


def _keep_only(folder: Path, files: set[str]) -> None:
    """Deletes what the toolchain left beside the artifact's own files."""
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
        elif name != "run" and PurePosixPath(name).parts[:1] not in (("payload",), ("runtime",)):
            yield f"file '{name}' is neither `run` nor under payload/ or runtime/"
        elif not (artifact.root / name).is_file():
            yield f"file '{name}' was not written"
    for name in sorted({*artifact.unrepeatable} - {*artifact.files}):
        yield f"'{name}' is called unrepeatable and is no file"


def _spec_problems(kind: str, wanted: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> Iterator[str]:
    given = {spec.name: spec for spec in found}
    for spec in wanted:
        other = given.pop(spec.name, None)
        if other is None:
            yield f"{kind} '{spec.name}' is missing"
        elif other.dtype != spec.dtype or not _same_shape(spec.shape, other.shape):
            yield f"{kind} '{spec.name}' is {_words(other)}, the border model's is {_words(spec)}"
    yield from (f"{kind} '{name}' is not the border model's" for name in given)


def _words(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _same_shape(wanted: Sequence[int | str], found: Sequence[int | str]) -> bool:
    """Fixed sizes must be equal; a toolchain may give a symbolic one its own name, or work it out."""
    return len(wanted) == len(found) and all(a == b for a, b in zip(wanted, found, strict=True) if isinstance(a, int))
