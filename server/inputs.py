"""The fleet of a job as files on disk, and what planning it says before anything is built.

A fleet file is read by the compiler's own reader, which bounds size, depth and number of values; the server never
imports what a fleet file names as `module:function`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compiler import BuildOptions, load_fleet, load_profile, plan_fleet
from compiler.driver.forecast import forecast
from compiler.errors import CompilerError, FleetError, UsageError
from compiler.fleet import Fleet
from compiler.fleet.data import is_function
from compiler.store import Store
from server.blobs import Blobs
from server.paths import below, refuse_paths
from server.problems import Problem
from server.schema import BuildSettings, JobRequest

TIMING = "timing"
"""The label of workers that may measure: a device with a limit of time is built there."""


@dataclass(frozen=True)
class Planned:
    """What planning a job says.

    Args:
        labels: Device class → labels that its worker needs, in the fleet's order.
        plans: Device class → its plan as JSON; those that could be planned here.
        failed: Device class → why no plan can be made.
        forecast: About how long a build from nothing takes.
        recovering: Device classes whose builds do not repeat: they train for a time.
    """

    labels: Mapping[str, tuple[str, ...]]
    plans: Mapping[str, Any]
    failed: Mapping[str, CompilerError]
    forecast: Mapping[str, Any]
    recovering: tuple[str, ...] = ()


def lay_out(folder: Path, request: JobRequest, find: Mapping[str, Path]) -> Path:
    """Writes the fleet file and puts the files it names beside it. Returns the path of the fleet file.

    Args:
        folder: An empty folder.
        request: What is asked for; its paths were looked at.
        find: SHA-256 → a file with those bytes, on the same file system.
    """
    for name, digest in request.files.items():
        place = below(folder, name)
        try:
            os.link(find[digest], place)
        except OSError:  # another file system, or one without links
            shutil.copyfile(find[digest], place)
    fleet = folder / request.fleet.name
    fleet.write_text(request.fleet.text, encoding="utf-8")
    return fleet


def plan_request(request: JobRequest, project: str, *, blobs: Blobs, scratch: Path, may_run_code: bool) -> Planned:
    """Plans a job as `fleetc plan` would, without touching model or toolchain.

    Args:
        request: What is asked for.
        project: Whose files they are.
        blobs: Where the files are.
        scratch: Folder for the files while they are looked at, on the same file system.
        may_run_code: Whether the fleet file may name functions.

    Raises:
        Problem: Files are missing.
        UsageError: The fleet cannot be obeyed; every problem is named.
    """
    refuse_paths(request.files, fleet=request.fleet.name)
    with _laid_out(request, project, blobs, scratch) as path, _plain_places(path.parent):
        fleet = load_fleet(path)
        _refuse_outside(fleet, path.parent)
        if not may_run_code:
            _refuse_code(fleet)
        options = plan_options(request, path.parent)
        _, planned, failed = plan_fleet(path, options)
        selected = [name for name in fleet.devices if not request.devices or name in request.devices]
        labels = {name: _labels(fleet, name, request) for name in selected}
        expected = forecast(planned, Store(scratch / "none"), most=1)
        plans = {one.device.name: _plan_json(one.plan) for one in planned}
        recovering = tuple(one.device.name for one in planned if one.plan.pruning.recovers)
    return Planned(labels, plans, failed, vars(expected), recovering)


def plan_options(request: JobRequest, folder: Path) -> BuildOptions:
    """The settings of a job as the compiler takes them."""
    settings: BuildSettings = request.settings
    return BuildOptions(
        out=folder / "dist",
        cache=folder / "cache",
        devices=request.devices,
        targets=settings.targets,
        precision=settings.precision,
        prune=settings.prune,
        recover_minutes=settings.recover_minutes,
        skip_passes=settings.skip_passes,
        repeat=settings.repeat,
        search=settings.search,
        search_budget=settings.search_budget,
        strict=settings.strict,
    )


def missing_files(request: JobRequest, project: str, blobs: Blobs) -> list[str]:
    """Paths of the files that were not uploaded."""
    return [name for name, digest in request.files.items() if blobs.path(project, digest) is None]


@contextmanager
def _laid_out(request: JobRequest, project: str, blobs: Blobs, scratch: Path) -> Iterator[Path]:
    missing = missing_files(request, project, blobs)
    if missing:
        shown = ", ".join(map(repr, missing[:10]))
        raise Problem(424, f"files are not uploaded: {shown}", remedy="PUT them to /v1/blobs/<SHA-256> first.")
    found: dict[str, Path] = {}
    for digest in request.files.values():
        blobs.touch(project, digest)
        found[digest] = blobs.path(project, digest) or Path()
    with TemporaryDirectory(dir=scratch) as folder:
        yield lay_out(Path(folder), request, found)


@contextmanager
def _plain_places(folder: Path) -> Iterator[None]:
    """Takes the server's own folder out of messages: the client knows its files by their names."""
    try:
        yield
    except UsageError as error:
        prefix = f"{folder}/"
        raise type(error)(
            error.what.replace(prefix, ""), where=error.where.replace(prefix, ""), remedy=error.remedy
        ) from error


def _refuse_outside(fleet: Fleet, folder: Path) -> None:
    """A fleet file may name only what lies beside it: anything else would be the server's own."""
    named: list[Path | None] = [fleet.model, fleet.calibration.path if fleet.calibration else None]
    if fleet.evaluation:
        named += [fleet.evaluation.path, fleet.evaluation.images, fleet.evaluation.classes]
    named += [Path(device.profile) for device in fleet.devices.values() if "/" in device.profile]
    outside = [path for path in named if path is not None and not path.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise FleetError("names a path outside of its folder", where=fleet.path.name, remedy="Put the files beside it.")


def _refuse_code(fleet: Fleet) -> None:
    named = [fleet.calibration.path.name] if fleet.calibration else []
    if fleet.evaluation:
        named += [fleet.evaluation.path.name, fleet.evaluation.task]
    functions = [text for text in named if is_function(text)]
    if functions:
        raise Problem(
            403,
            f"the fleet file names code: {', '.join(functions)}",
            remedy="Use a key with the scope `code`, or give data as files.",
        )


def _labels(fleet: Fleet, name: str, request: JobRequest) -> tuple[str, ...]:
    device = fleet.devices[name]
    timed = (TIMING,) if device.limits.latency_ms is not None else ()
    try:
        # of several targets the first: without the others of them the rest still compete, and the manifest says so
        target: tuple[str, ...] = (request.settings.targets or device.targets or load_profile(device.profile).targets)[
            :1
        ]
    except UsageError:  # its build says what is wrong with the profile
        target = ()
    return tuple(dict.fromkeys((*target, *timed, *request.labels)))


def _plan_json(plan: Any) -> Any:
    from compiler.artifact.adapter import to_json

    return to_json(plan.facts)
