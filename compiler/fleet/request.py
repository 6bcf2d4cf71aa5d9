"""A fleet without a fleet file: one model and the profiles to build it for, as the command line names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import FleetError, UsageError, combine
from compiler.fleet.cut import Cut
from compiler.fleet.fleet import Fleet, fleet_of, load_fleet
from compiler.fleet.profile import is_path, load_profile
from compiler.fleet.sizes import Range
from compiler.fleet.yamlfile import Document, KeyPath, Origin

FLEET_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ModelRequest:
    """What the command line says where there is no fleet file.

    Args:
        profiles: Names or files of hardware profiles: a device class each, by the profile's name.
        calibration: Sample inputs: whatever `calibration.path` of a fleet file may be.
        evaluation: Labelled data: whatever `evaluation.path` of a fleet file may be.
        task: The task that accuracy is judged by on them.
        limits: Name of a limit, as fleet files have them → its number.
        batch: Sizes of the batch dimension; None where nothing is said.
        cut: The part of the model that is built; None for all of it.
    """

    profiles: tuple[str, ...] = ()
    calibration: Path | None = None
    evaluation: Path | None = None
    task: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    batch: Range | None = None
    cut: Cut | None = None

    @property
    def options(self) -> list[str]:
        """The options of the command line that were given."""
        options = {
            "--profile": self.profiles,
            "--calibration": self.calibration,
            "--evaluation": self.evaluation,
            "--task": self.task,
            "--limit": self.limits,
            "--batch": self.batch,
            "--cut": self.cut,
        }
        return [name for name, value in options.items() if value]


@dataclass(frozen=True)
class _CommandLine(Origin):
    """Where a value of the command line was written: its option."""

    def place(self, keys: KeyPath) -> str:
        match keys:
            case ("devices", str(name), *_):
                return f"--profile {name}"
            case ("limits", *rest):
                return " ".join(["--limit", *map(str, rest)])
            case ("evaluation", "task", *_):
                return "--task"
            case ("model", *_) | ():
                return self.path
            case (key, *_):
                return f"--{key}"
        return self.path


def read_fleet(path: Path, request: ModelRequest) -> Fleet:
    """The fleet of a fleet file; or of a model and what the command line says of it.

    Raises:
        FleetError: The fleet file, or what is said of the model, cannot be obeyed; every problem is named.
        ProfileError: A profile cannot be read.
        UsageError: The options do not go with the file.
    """
    if path.suffix in FLEET_SUFFIXES or not (request.profiles or path.suffix == ".onnx"):
        if request.options:
            raise UsageError(
                f"{', '.join(request.options)}: a fleet file says that itself",
                where=str(path),
                remedy="Write it into the file, or name an ONNX model in its place.",
            )
        return load_fleet(path)
    if not request.profiles:
        raise UsageError(
            "a model alone does not say which hardware to build it for",
            where=str(path),
            remedy="Add --profile NAME (`fleetc profiles list` shows them; it may be repeated), or write a fleet file.",
        )
    if (request.evaluation is None) == bool(request.task):
        raise UsageError(
            "an evaluation is a task and its data",
            where="--evaluation" if request.task else "--task",
            remedy="Give both: --evaluation PATH --task verification, classification, embedding or module:function.",
        )
    return fleet_of(Document(_written(path, request), _CommandLine(str(path), _lines(request))))


def _written(path: Path, request: ModelRequest) -> dict[str, Any]:
    """What a fleet file would say."""
    written: dict[str, Any] = {
        "schema": 1,
        "model": str(path.absolute()),
        "devices": {name: {"profile": profile} for name, profile in _devices(request.profiles).items()},
        "limits": dict(request.limits),
    }
    if request.calibration is not None:
        written["calibration"] = {"path": str(request.calibration.absolute())}
    if request.evaluation is not None:
        written["evaluation"] = {"task": request.task, "path": str(request.evaluation.absolute())}
    if request.cut is not None:
        written["cut"] = {"inputs": list(request.cut.inputs), "outputs": list(request.cut.outputs)}
    if request.batch is not None:
        written["batch"] = {"min": request.batch.min, "opt": request.batch.opt, "max": request.batch.max}
    return written


def _lines(request: ModelRequest) -> dict[KeyPath, int]:
    """The keys that somebody stated, which is asked of the batch: one that nobody stated gives way to the model's."""
    return {("batch",): 1} if request.batch is not None else {}


def _devices(profiles: tuple[str, ...]) -> dict[str, str]:
    """Device → profile, each by the name that the profile has."""
    devices: dict[str, str] = {}
    problems: list[UsageError] = []
    for profile in profiles:
        try:
            name = load_profile(profile).name
        except UsageError as error:
            problems.append(error)
            continue
        if name in devices:
            problems.append(FleetError(f"two profiles are named '{name}'", where=f"--profile {profile}"))
        devices[name] = str(Path(profile).absolute()) if is_path(profile) else profile
    if problems:
        raise combine(problems)
    return devices
