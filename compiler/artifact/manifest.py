"""An artifact's folder: written whole or not at all, and read back only if every byte is the one that was delivered.

manifest.json        what was decided and made; the same inputs give the same bytes
measurements.json    what was observed this time: wall times, latencies, digests of non-reproducible files
border.onnx          the border model (and border.data)
payload/ runtime/    what the device loads

Signing (`compiler.artifact.signing`) adds bom.cdx.json, provenance.intoto.jsonl and signature.sigstore.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from compiler.artifact.adapter import parse, to_json
from compiler.artifact.artifact import Artifact, leaves_folder
from compiler.artifact.schema import RUNGS, UNMEASURED, File, Manifest, Measurements
from compiler.errors import ArtifactError, combine
from compiler.store import file_digest
from compiler.store.atomic import replacing_folder, restore_folder, write_atomic
from compiler.store.disk import output_errors
from compiler.store.share import share_files

T = TypeVar("T")

SCHEMA = 2
"""Raised when a key of the files changes its name or meaning: older and newer files are refused."""

MANIFEST = "manifest.json"
MEASUREMENTS = "measurements.json"
BORDER = "border.onnx"
BORDER_DATA = "border.data"
BUILD = "build.json"
BOM = "bom.cdx.json"
PROVENANCE = "provenance.intoto.jsonl"
SIGNATURE = "signature.sigstore.json"
SIGNING_FILES = frozenset({BOM, PROVENANCE, SIGNATURE})
"""What signing adds to a folder: no part of what was built."""

MAX_JSON_BYTES = 64 << 20
"""Size of the largest manifest that is read: thousands of passes and files fit into less."""


@dataclass(frozen=True)
class Delivered:
    """An artifact's folder, read back.

    Args:
        folder: The folder.
        manifest: `manifest.json`.
        measurements: `measurements.json`; empty if it is missing.
    """

    folder: Path
    manifest: Manifest
    measurements: Measurements

    @property
    def artifact(self) -> Artifact:
        """What the device loads."""
        return self.manifest.artifact


def write_artifact(
    artifact: Artifact,
    border: Path,
    *,
    facts: Manifest,
    measurements: Measurements,
    folder: Path,
    rungs: Path | None = None,
) -> None:
    """Writes an artifact's folder beside its place, then puts it there, replacing what was there.

    A kill at any moment leaves the old artifact or the new one, and never none.

    Args:
        artifact: What was built, with its files.
        border: The border model it was built from.
        facts: The manifest; its artifact and its files are written as they are here.
        measurements: `measurements.json`; its files likewise.
        folder: `dist/<device>`.
        rungs: A folder of whole artifacts that go along as `rungs/`; None where there are none.

    Raises:
        OutputError: The place cannot be written.
        StorageError: The disk is full.
    """
    with output_errors(folder.parent), replacing_folder(folder) as draft:
        _copy_files(artifact, border, draft)
        if rungs is not None:
            shutil.copytree(rungs, draft / RUNGS)
            share_files(draft)
        files = _file_table(draft, artifact)
        # their digests stand in measurements.json, so that manifests of equal builds stay equal
        loose = {name: files[name] for name in artifact.non_reproducible}
        repeated = {name: file for name, file in files.items() if name not in loose}
        write_value(draft / MEASUREMENTS, replace(measurements, non_reproducible_files=loose))
        write_value(draft / MANIFEST, replace(facts, artifact=artifact, files=repeated))


def read_artifact(folder: Path) -> Delivered:
    """Reads an artifact's folder and compares every file with its digest.

    Raises:
        ArtifactError: No artifact, of another schema, or with files that are missing, changed, or outside the folder.
    """
    manifest, measurements = read_manifest(folder), read_measurements(folder)
    artifact = manifest.artifact
    loose = {name: measurements.non_reproducible_files.get(name) for name in artifact.non_reproducible}
    expected = {name: file for name, file in {**loose, **manifest.files}.items() if file}
    problems = [
        problem for name, file in sorted(expected.items()) if (problem := _file_problem(folder, name, file.sha256))
    ]
    problems += [f"{name}: not listed" for name in (*artifact.files, BORDER) if name not in expected]
    if problems:
        raise combine(
            [ArtifactError(problem, where=str(folder), remedy="Build the device again.") for problem in problems]
        )
    return Delivered(folder, manifest, measurements)


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest; the files it lists are not looked at.

    Raises:
        ArtifactError: There is none, it is of another schema, or keys are missing or invalid.
    """
    with output_errors(folder.parent):
        # a build killed between two renames may have left the artifact beside its place
        restore_folder(folder)
    path = folder / MANIFEST
    value = read_json(path)
    if isinstance(value.get("artifact"), dict):  # the folder is where it is found, never what a file says
        value["artifact"]["root"] = str(folder)
    return read_value(path, Manifest, value)


def read_measurements(folder: Path) -> Measurements:
    """Reads the measurements; empty if there are none.

    Raises:
        ArtifactError: They are of another schema, or keys are missing or invalid.
    """
    path = folder / MEASUREMENTS
    return read_value(path, Measurements, read_json(path)) if path.is_file() else UNMEASURED


def read_value(path: Path, cls: type[T], value: Mapping[str, Any]) -> T:
    """What `read_json` read, as a frozen class.

    Raises:
        ArtifactError: Keys are missing or invalid.
    """
    try:
        return parse(cls, value)
    except ValueError as error:
        raise ArtifactError(
            f"{path.name} has missing or invalid keys: {error}", where=str(path), remedy="Build it again."
        ) from error


def write_value(path: Path, value: object, *, keeps_order: bool = False) -> None:
    """Writes a frozen class as one of the files of a build, with the schema of those."""
    write_json(path, {"schema": SCHEMA, **to_json(value)}, keeps_order=keeps_order)


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


def _file_table(folder: Path, artifact: Artifact) -> dict[str, File]:
    names = [*artifact.files, BORDER, *([BORDER_DATA] if (folder / BORDER_DATA).exists() else [])]
    return {name: File(file_digest(folder / name), (folder / name).stat().st_size) for name in sorted(names)}


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
