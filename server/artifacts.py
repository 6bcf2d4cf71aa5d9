"""Artifacts as they travel: one tar file for each device class, the same bytes for the same files.

A tar file holds `<device>/…`, as `fleetc build` delivers it, and `build.json` with the device's row. Whoever receives
one looks at every member before anything is written, and recomputes every digest that the manifest states.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import SIGNING_FILES
from compiler.errors import ArtifactError
from server.paths import path_problem

BUILD = "build.json"
MANIFEST = "manifest.json"
MEASUREMENTS = "measurements.json"
MAX_JSON_BYTES = 64 << 20
MAX_MEMBERS = 20_000


@dataclass(frozen=True)
class Checked:
    """What a tar file holds: SHA-256 of the manifest, empty where the device failed, and the text of `build.json`."""

    manifest: str
    build: str


def pack(out: Path, device: str, target: Path) -> None:
    """Writes what a build left in its output folder into a tar file."""
    files = [out / BUILD, *sorted(path for path in (out / device).rglob("*") if path.is_file())]
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            if path.is_file():
                tar.add(path, arcname=path.relative_to(out).as_posix(), recursive=False, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of the machine, the user or the clock."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o755 if member.mode & 0o100 else 0o644
    return member


def check(path: Path, device: str) -> Checked:
    """Looks at a tar file from a stranger.

    Raises:
        ArtifactError: It is none, has members of another kind or place, or bytes that its manifest does not state.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return _check(tar, device)
    except (tarfile.TarError, ValueError, RecursionError, OSError) as error:
        raise ArtifactError(f"the artifact cannot be read: {error}", where=device) from error


def _check(tar: tarfile.TarFile, device: str) -> Checked:
    digests: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    for member in _members(tar, device):
        digests[member.name] = _digest(tar, member)
        if member.name in (BUILD, f"{device}/{MANIFEST}", f"{device}/{MEASUREMENTS}"):
            texts[member.name] = _text(tar, member)
    if f"{device}/{MANIFEST}" in digests:
        _compare(digests, texts, device)
    return Checked(digests.get(f"{device}/{MANIFEST}", ""), texts.get(BUILD, b"").decode())


def _digest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    digest, file = hashlib.sha256(), tar.extractfile(member)
    while file is not None and (piece := file.read(1 << 20)):
        digest.update(piece)
    return digest.hexdigest()


def _members(tar: tarfile.TarFile, device: str) -> Iterator[tarfile.TarInfo]:
    names: set[str] = set()
    for member in tar:
        inside = member.name == BUILD or member.name.startswith(f"{device}/")
        problem = path_problem(member.name)
        if not member.isreg() or not inside or problem or member.name in names:
            raise ArtifactError(f"member {member.name[:100]!r} is refused: {problem or 'its kind or its place'}")
        names.add(member.name)
        if len(names) > MAX_MEMBERS:
            raise ArtifactError(f"holds more than {MAX_MEMBERS} files", where=device)
        yield member


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_JSON_BYTES:
        raise ArtifactError(f"is larger than {MAX_JSON_BYTES} bytes", where=member.name)
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _compare(digests: dict[str, str], texts: dict[str, bytes], device: str) -> None:
    """Every file has the digest that the manifest, or for files that never repeat the measurements, state."""
    manifest: dict[str, Any] = json.loads(texts[f"{device}/{MANIFEST}"])
    measured: dict[str, Any] = json.loads(texts.get(f"{device}/{MEASUREMENTS}", b"{}"))
    stated = {**measured.get("non_reproducible_files", {}), **manifest["files"]}
    expected = {f"{device}/{name}": str(file["sha256"]) for name, file in stated.items()}
    own = {BUILD, f"{device}/{MANIFEST}", f"{device}/{MEASUREMENTS}"}
    wrong = sorted(name for name, digest in expected.items() if digests.get(name) != digest)
    signing = {f"{device}/{name}" for name in SIGNING_FILES}
    unknown = sorted(set(digests) - set(expected) - own - signing)
    if wrong or unknown:
        raise ArtifactError(f"files are not those of the manifest: {', '.join((wrong + unknown)[:10])}", where=device)


def unpack(path: Path, device: str, out: Path) -> Checked:
    """Writes a tar file that was looked at into an output folder, `build.json` aside.

    Raises:
        ArtifactError: As `check`.
    """
    facts = check(path, device)
    with tarfile.open(path, "r:") as tar:
        members = [member for member in tar if member.name != BUILD]
        tar.extractall(out, members=members, filter="data")
    return facts


def read_member(path: Path, name: str) -> bytes | None:
    """One file of a tar file; None where it is not there."""
    with tarfile.open(path, "r:") as tar:
        try:
            file = tar.extractfile(name)
        except KeyError:
            return None
        return file.read() if file is not None else None


def merge_builds(texts: Sequence[str], *, order: Sequence[str]) -> str:
    """One `build.json` for devices that were built apart.

    Args:
        texts: Each with some of the devices; a later one counts where two have the same.
        order: The fleet's devices in its order; what else there is comes after them.
    """
    builds = [json.loads(text) for text in texts if text]
    if not builds:
        return ""
    rows = {name: row for build in builds for name, row in build["devices"].items()}
    ordered = {name: rows[name] for name in (*order, *rows) if name in rows}
    return json.dumps({**builds[-1], "devices": ordered}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
