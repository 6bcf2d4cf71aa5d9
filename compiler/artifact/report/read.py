"""A `dist` folder as one value: `build.json`, and of each device its manifest and measurements, or why it failed.

The manifests are untrusted: each must be the one that `build.json` names by its digest, of this schema, and of the
shape that is read. All problems are reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compiler.artifact.artifact import leaves_folder
from compiler.artifact.manifest import BUILD, MANIFEST, read_json, read_manifest, read_measurements, read_value
from compiler.artifact.schema import (
    UNMEASURED,
    DeviceRow,
    DeviceStatus,
    Failure,
    Manifest,
    Measurements,
    Searched,
    Summary,
)
from compiler.errors import ArtifactError
from compiler.store import file_digest


@dataclass(frozen=True)
class Device:
    """One device class of a build.

    Args:
        name: Its name.
        status: What became of it.
        searched: Plan, decision, gates and trials; None of a device that failed before anything could be judged.
        manifest: Its manifest; None if it failed.
        measurements: What was observed; empty if it failed.
        failure: Why it failed or cannot be read; None otherwise.
    """

    name: str
    status: DeviceStatus
    searched: Searched | None = None
    manifest: Manifest | None = None
    measurements: Measurements = UNMEASURED
    failure: Failure | None = None


@dataclass(frozen=True)
class Build:
    """What a `dist` folder holds: the fleet file's name, the model's digest, the version of fleetc, the devices, and
    what is wrong with the folders of those that cannot be read."""

    folder: Path
    fleet: str
    model: str
    fleetc: str
    devices: tuple[Device, ...]
    problems: tuple[ArtifactError, ...] = ()

    @property
    def failed(self) -> tuple[Device, ...]:
        """The devices that were not delivered."""
        return tuple(device for device in self.devices if device.failure)


def read_build(folder: Path) -> Build:
    """Reads a `dist` folder; artifacts' own files are not looked at (`fleetc verify` does).

    Returns:
        The build; a device whose manifest is missing, of another schema or not the one delivered is among its problems.

    Raises:
        ArtifactError: It is no output folder of fleetc, of another schema, or half written.
    """
    summary = _summary(folder)
    devices: list[Device] = []
    problems: list[ArtifactError] = []
    for name, row in summary.devices.items():
        try:
            devices.append(_device(folder, name, row, summary.model))
        except ArtifactError as error:
            problems.append(error)
            facts = Failure("ArtifactError", error.exit_code, error.what, error.where, error.remedy)
            devices.append(Device(name, DeviceStatus.UNREADABLE, failure=facts))
    return Build(folder, summary.fleet, summary.model, summary.fleetc, tuple(devices), tuple(problems))


def read_device(folder: Path) -> Device:
    """Reads one device's folder by itself; whether it is what a build delivered, only `read_build` can tell.

    Raises:
        ArtifactError: It holds no manifest, or one of another schema or shape.
    """
    manifest = read_manifest(folder)
    status = DeviceStatus.DEFERRED if manifest.artifact.deferred else DeviceStatus.DELIVERED
    return Device(manifest.device, status, manifest, manifest, read_measurements(folder))


def payload_bytes(device: Device) -> int:
    """Bytes that the device loads."""
    if device.manifest is None:
        return 0
    files = {**device.manifest.files, **device.measurements.non_reproducible_files}
    return sum(file.bytes for name, file in files.items() if name.startswith("payload/"))


def _summary(folder: Path) -> Summary:
    path = folder / BUILD
    if not path.is_file():
        what, remedy = _what_it_is(folder)
        raise ArtifactError(f"there is no {BUILD}: {what}", where=str(folder), remedy=remedy)
    return read_value(path, Summary, read_json(path))


_NAME_IT = "Name the folder that `fleetc build --out` wrote, for example dist."


def _what_it_is(folder: Path) -> tuple[str, str]:
    """What a folder without `build.json` is instead, and what to do."""
    if not folder.is_dir():
        return "there is no such folder", _NAME_IT
    if (folder / MANIFEST).is_file():
        return "it is the folder of one device, not of a build", _NAME_IT
    if any(folder.glob(f"[!.]*/{MANIFEST}")):
        return "the build that wrote here has not come to its end", "Run the same build again: it resumes."
    return "no build of fleetc was written here", _NAME_IT


def _device(folder: Path, name: str, row: DeviceRow, model: str) -> Device:
    place = folder / name
    if not name or leaves_folder(folder, name) or Path(name).name != name:
        what = f"{BUILD} names the device {name!r}, a place outside the folder"
        raise ArtifactError(what, where=str(folder), remedy=_AGAIN)
    if row.error is not None:
        return Device(name, row.status, row.report, failure=row.error)
    manifest, status = read_manifest(place), row.status
    if file_digest(place / MANIFEST) != row.manifest:
        status = _finished(place, row, manifest, model)
    return Device(name, status, manifest, manifest, read_measurements(place))


_AGAIN = "Build the device again."


def _finished(place: Path, row: DeviceRow, manifest: Manifest, model: str) -> DeviceStatus:
    """`fleetc finish` writes the manifest of a deferred device anew; nothing else may."""
    is_complete = not manifest.artifact.deferred
    if row.status == DeviceStatus.DEFERRED and is_complete and manifest.inputs.model.sha256 == model:
        return DeviceStatus.FINISHED
    raise ArtifactError(
        f"{MANIFEST} is not the one that {BUILD} names: it was changed, or comes from another build",
        where=str(place),
        remedy=_AGAIN,
    )
