"""The output folder: claimed before anything is built, settled after everything is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from compiler.artifact.manifest import BORDER, BORDER_DATA, BUILD, MANIFEST, read_json, read_value, write_value
from compiler.artifact.schema import DeviceRow, DeviceStatus, Failure, Summary
from compiler.driver.reports import DeviceReport
from compiler.errors import ArtifactError, OutputError
from compiler.fleet import DeviceClass, Fleet
from compiler.store import file_digest
from compiler.store.disk import output_errors


def claim_folder(out: Path, devices: Sequence[DeviceClass], *, is_for_artifacts: bool) -> None:
    """The output folder must be writable before an hour of building, not after, and what is replaced must be ours.

    Args:
        out: The folder.
        devices: The device classes that are built.
        is_for_artifacts: Whether artifacts are delivered; border models alone replace none.

    Raises:
        OutputError: It cannot be written, or holds what must not be replaced under a device's name.
        StorageError: The disk is full.
    """
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"?")
        foreign = [out / device.name for device in devices if _is_foreign(out / device.name)]
    if foreign:
        raise OutputError(
            f"no artifact of fleetc is in {', '.join(map(str, foreign))}, and a build would replace it",
            where=str(out),
            remedy="Choose another --out, or move it away.",
        )
    folders = [out / device.name for device in devices]
    delivered = [] if is_for_artifacts else [folder for folder in folders if (folder / MANIFEST).exists()]
    if delivered:
        raise OutputError(
            f"an artifact is delivered in {', '.join(map(str, delivered))}, and a border model alone would replace it",
            where="--to",
            remedy="Choose another --out. Each delivered folder holds its border model already: border.onnx.",
        )


def _is_foreign(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists() or folder.is_symlink()
    if (folder / MANIFEST).is_file():
        return False
    return not {path.name for path in folder.iterdir()} <= {BORDER, BORDER_DATA}  # what `build --to` leaves


def settle_folder(reports: Sequence[DeviceReport], fleet: Fleet, model_digest: str, out: Path) -> None:
    """A failed device leaves no artifact of an earlier build behind; `build.json` says what is there."""
    with output_errors(out):
        for report in reports:
            if report.error:
                shutil.rmtree(report.folder, ignore_errors=True)
        devices = _others(fleet, out) | {report.device: _row(report) for report in reports}
        ordered = {name: devices[name] for name in fleet.devices if name in devices}
        summary = Summary(fleet.path.name, version("fleetc"), model_digest, ordered)
        write_value(out / BUILD, summary, keeps_order=True)


def note_finished(folder: Path, *, deferred: str) -> None:
    """`build.json` beside a finished artifact names its new manifest; one of another build, or none, is left alone.

    Args:
        folder: The artifact's folder.
        deferred: SHA-256 of the manifest that it had.
    """
    path = folder.parent / BUILD
    try:
        summary = read_value(path, Summary, read_json(path))
    except ArtifactError:
        return
    row = summary.devices.get(folder.name)
    if row is not None and row.manifest == deferred:
        finished = DeviceRow(DeviceStatus.FINISHED, file_digest(folder / MANIFEST))
        with output_errors(folder.parent):
            devices = {**summary.devices, folder.name: finished}
            write_value(path, replace(summary, devices=devices), keeps_order=True)


def _others(fleet: Fleet, out: Path) -> dict[str, DeviceRow]:
    """What an earlier build said of devices that this one was not asked for and that are still what it said."""
    try:
        summary = read_value(out / BUILD, Summary, read_json(out / BUILD))
    except ArtifactError:  # none, or none of this fleetc: nothing to keep
        return {}
    return {name: row for name, row in summary.devices.items() if name in fleet.devices and _is_valid(out / name, row)}


def _is_valid(folder: Path, row: DeviceRow) -> bool:
    """Whether a device is still what an earlier build said of it."""
    manifest = folder / MANIFEST
    return file_digest(manifest) == row.manifest if manifest.is_file() else row.status == DeviceStatus.FAILED


def _row(report: DeviceReport) -> DeviceRow:
    error = report.error
    if error is None:
        return DeviceRow(report.status, file_digest(report.folder / MANIFEST))
    failure = Failure(type(error).__name__, error.exit_code, error.what, error.where, error.remedy)
    return DeviceRow(report.status, error=failure, report=report.searched)
