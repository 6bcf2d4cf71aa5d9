"""An artifact's folder: written whole or not at all, and read back only if every byte is the one that was delivered.

manifest.json        what was decided and made; the same inputs give the same bytes
measurements.json    what was observed this time: wall times, latencies, digests of non-reproducible files
border.onnx          the border model (and border.data)
payload/ runtime/    what the device loads
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compiler.artifact.artifact import Artifact, artifact_from_dict, artifact_to_dict, leaves_folder
from compiler.artifact.schema import Manifest, Measurements, problems_of
from compiler.errors import ArtifactError, combine
from compiler.store import file_digest
from compiler.store.atomic import replacing_folder, restore_folder, write_atomic
from compiler.store.disk import output_errors

SCHEMA = 1
MANIFEST = "manifest.json"
MEASUREMENTS = "measurements.json"
BORDER = "border.onnx"
BORDER_DATA = "border.data"
BUILD = "build.json"
MAX_JSON_BYTES = 64 << 20
"""Size of the largest manifest that is read: thousands of passes and files fit into less."""


@dataclass(frozen=True)
class Delivered:
    """An artifact's folder, read back.

    Args:
        folder: The folder.
        artifact: What the device loads.
        manifest: `manifest.json`.
        measurements: `measurements.json`; empty if it is missing.
    """

    folder: Path
    artifact: Artifact
    manifest: Mapping[str, Any]
    measurements: Mapping[str, Any]


def write_artifact(
    artifact: Artifact, border: Path, *, facts: Mapping[str, Any], measurements: Mapping[str, Any], folder: Path
) -> None:
    """Writes an artifact's folder beside its place, then puts it there, replacing what was there.

    A kill at any moment leaves the old artifact or the new one, and never none.

    Args:
        artifact: What was built, with its files.
        border: The border model it was built from.
        facts: Sections of the manifest: `device`, `inputs`, `plan`, `passes`, `verdict`, `stages`.
        measurements: Sections of `measurements.json`.
        folder: `dist/<device>`.

    Raises:
        OutputError: The place cannot be written.
        StorageError: The disk is full.
    """
    with output_errors(folder.parent), replacing_folder(folder) as draft:
        _copy_files(artifact, border, draft)
        files = _file_table(draft, artifact)
        loose = {name: files[name] for name in artifact.non_reproducible}
        manifest = _manifest(artifact, facts, {name: row for name, row in files.items() if name not in loose})
        write_json(draft / MEASUREMENTS, {"schema": SCHEMA, **measurements, "non_reproducible_files": loose})
        write_json(draft / MANIFEST, manifest)


def read_artifact(folder: Path) -> Delivered:
    """Reads an artifact's folder and compares every file with its digest.

    Raises:
        ArtifactError: No artifact, of a newer schema, or with files that are missing, changed, or outside the folder.
    """
    manifest = read_manifest(folder)
    has_measurements = (folder / MEASUREMENTS).is_file()
    measurements = read_json(folder / MEASUREMENTS) if has_measurements else {}
    _refuse(folder / MEASUREMENTS, problems_of(Measurements, measurements) if has_measurements else [])
    artifact = _described(folder, manifest["artifact"])
    loose = {name: measurements.get("non_reproducible_files", {}).get(name) for name in artifact.non_reproducible}
    expected = {name: row for name, row in {**loose, **manifest["files"]}.items() if row}
    problems = [
        problem for name, row in sorted(expected.items()) if (problem := _file_problem(folder, name, row["sha256"]))
    ]
    problems += [f"{name}: not listed" for name in (*artifact.files, BORDER) if name not in expected]
    if problems:
        raise combine(
            [ArtifactError(problem, where=str(folder), remedy="Build the device again.") for problem in problems]
        )
    return Delivered(folder, artifact, manifest, measurements)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a manifest and checks its shape; the files it lists are not looked at.

    Raises:
        ArtifactError: There is none, it is of another schema, or it lacks what is read again.
    """
    with output_errors(folder.parent):
        restore_folder(folder)
    manifest = read_json(folder / MANIFEST)
    _refuse(folder / MANIFEST, problems_of(Manifest, manifest))
    return manifest


def border_of(folder: Path) -> Path:
    """The border model in an artifact's folder."""
    return folder / BORDER


def write_json(path: Path, value: object, *, keeps_order: bool = False) -> None:
    """Readable JSON, atomically: equal values give the same bytes, or those of their order where it says something."""
    text = json.dumps(value, indent=1, sort_keys=not keeps_order, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, text.encode())


def _copy_files(artifact: Artifact, border: Path, draft: Path) -> None:
    for name in artifact.files:
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(artifact.root / name, draft / name)
    draft.mkdir(exist_ok=True)
    shutil.copyfile(border, draft / BORDER)
    if border.with_name(BORDER_DATA).exists():
        shutil.copyfile(border.with_name(BORDER_DATA), draft / BORDER_DATA)


def _file_table(folder: Path, artifact: Artifact) -> dict[str, dict[str, Any]]:
    names = [*artifact.files, BORDER, *([BORDER_DATA] if (folder / BORDER_DATA).exists() else [])]
    return {
        name: {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(names)
    }


def _manifest(artifact: Artifact, facts: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    head = {"schema": SCHEMA, "fleetc": version("fleetc")}
    return {**head, **facts, "artifact": artifact_to_dict(artifact), "files": dict(files)}


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ArtifactError(
            f"{path.name} lacks or misspells {'; '.join(problems)}", where=str(path), remedy="Build the device again."
        )


def _described(folder: Path, value: Mapping[str, Any]) -> Artifact:
    try:
        return artifact_from_dict({**value, "root": str(folder)})
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{MANIFEST} does not describe an artifact: {error}",
            where=str(folder / MANIFEST),
            remedy="Build the device again.",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads one of the files that a build writes, whoever has edited it since.

    Raises:
        ArtifactError: It is missing, too large, no JSON mapping, or of another schema.
    """
    value = _json(path)
    if value.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path.name} has schema {value.get('schema')!r}, this fleetc reads {SCHEMA}",
            where=str(path),
            remedy="Use the version of fleetc that wrote it (`fleetc` in manifest.json or build.json).",
        )
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
        value = json.loads(raw)
    except OSError as error:
        raise ArtifactError(
            f"there is no readable {path.name}: {error.strerror}",
            where=str(path.parent),
            remedy="Name the folder of one device, for example dist/kiosk, or build it again.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path.name} is no JSON that can be read: {error}", where=str(path), remedy="Build the device again."
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path.name} holds no mapping", where=str(path), remedy="Build the device again.")
    return value


def _file_problem(folder: Path, name: str, digest: str) -> str:
    path = folder / name
    if leaves_folder(folder, name):
        return f"{name}: outside the artifact's folder"
    if not path.is_file():
        return f"{name}: missing"
    return "" if file_digest(path) == digest else f"{name}: not the bytes that were delivered"
