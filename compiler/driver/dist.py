"""The output folder: claimed before anything is built, settled after everything is."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import BORDER, BORDER_DATA, BUILD, MANIFEST, write_json
from compiler.driver.reports import DeviceReport
from compiler.errors import OutputError
from compiler.fleet import DeviceClass, Fleet
from compiler.store import file_digest
from compiler.store.disk import output_errors


def claim_folder(out: Path, devices: Sequence[DeviceClass]) -> None:
    """The output folder must be writable before an hour of building, not after, and what is replaced must be ours.

    Raises:
        OutputError: It cannot be written, or holds what is no artifact under a device's name.
        StorageError: The disk is full.
    """
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"?")
        foreign = [out / one.name for one in devices if _is_foreign(out / one.name)]
    if foreign:
        raise OutputError(
            f"no artifact of fleetc is in {', '.join(map(str, foreign))}, and a build would replace it",
            where=str(out),
            remedy="Choose another --out, or move it away.",
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
        devices = _others(fleet, out) | {report.device: _summary(report) for report in reports}
        ordered = {name: devices[name] for name in fleet.devices if name in devices}
        summary = {
            "schema": 1,
            "fleetc": version("fleetc"),
            "fleet": fleet.path.name,
            "model": model_digest,
        }
        write_json(out / BUILD, {**summary, "devices": ordered}, keeps_order=True)


def note_finished(folder: Path, *, deferred: str) -> None:
    """`build.json` beside a finished artifact names its new manifest; one of another build, or none, is left alone.

    Args:
        folder: The artifact's folder.
        deferred: SHA-256 of the manifest that it had.
    """
    path = folder.parent / BUILD
    try:
        summary = json.loads(path.read_bytes())
        row = summary["devices"][folder.name]
        is_its_own = row["manifest"] == deferred
    except (OSError, ValueError, KeyError, TypeError):
        return
    if is_its_own:
        summary["devices"][folder.name] = {**row, "status": "finished", "manifest": file_digest(folder / MANIFEST)}
        with output_errors(folder.parent):
            write_json(path, summary, keeps_order=True)


def _others(fleet: Fleet, out: Path) -> dict[str, Any]:
    """What an earlier build said of devices that this one was not asked for and that are still what it said."""
    try:
        devices = json.loads((out / BUILD).read_bytes())["devices"]
        return {name: row for name, row in devices.items() if name in fleet.devices and _still(out / name, row)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or none of ours: nothing to keep
        return {}


def _still(folder: Path, row: Mapping[str, Any]) -> bool:
    manifest = folder / MANIFEST
    return file_digest(manifest) == row.get("manifest") if manifest.is_file() else row["status"] == "failed"


def _summary(report: DeviceReport) -> dict[str, Any]:
    if report.error:
        return {
            "status": report.status,
            "error": report.error.to_dict(),
            **({"report": dict(report.facts)} if report.facts else {}),
        }
    return {"status": report.status, "manifest": file_digest(report.folder / MANIFEST)}
