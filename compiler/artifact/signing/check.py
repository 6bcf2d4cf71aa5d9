"""An artifact's signatures are checked before anything in its folder is read by anybody else.

The files of a folder are compared with what was signed: one that was changed, is missing or was added is a refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import MANIFEST, MAX_JSON_BYTES, PROVENANCE, SIGNATURE
from compiler.artifact.signing.bundle import IN_TOTO, NOT_COVERED, STATEMENT, digest_files, read_bundle
from compiler.artifact.signing.provenance import PREDICATE
from compiler.errors import ArtifactError, SignatureRefused
from compiler.store.envelope import Envelope, load
from compiler.store.keys import PublicKey


@dataclass(frozen=True)
class Signed:
    """What the signatures of an artifact say.

    Args:
        key_id: The key that signed every file of the folder.
        builders: Key → URI of the builder that it names, for every key that was asked for.
    """

    key_id: str
    builders: Mapping[str, str]


def check_signatures(folder: Path, keys: Sequence[PublicKey]) -> Signed:
    """Compares an artifact's folder with what was signed; every one of the keys must vouch for it.

    Args:
        folder: `dist/<device>`.
        keys: The keys that are asked for, one or more: each must have stated the provenance, and one of them have
            signed the folder.

    Raises:
        ArtifactError: There is no such folder.
        SignatureRefused: It is not signed, by others, or is not what was signed; all files are named.
    """
    if not folder.is_dir():
        raise ArtifactError("there is no such folder", where=str(folder), remedy="Name the folder of one device.")
    signer, signed = read_bundle(_read(folder, SIGNATURE), keys, where=str(folder / SIGNATURE))
    actual = digest_files(folder)
    problems = _differences(signed, actual)
    if problems:
        raise SignatureRefused(
            f"not what was signed: {'; '.join(problems)}",
            where=str(folder),
            remedy="Get the artifact again from where it was signed; do not run this one.",
        )
    lines = read_provenance(folder)
    return Signed(signer.id, {key.id: _builder(lines, key, actual, folder) for key in keys})


def read_provenance(folder: Path) -> tuple[Envelope, ...]:
    """The provenance statements of an artifact, with their signatures unchecked.

    Raises:
        SignatureRefused: There are none, or they cannot be read.
    """
    try:
        return tuple(load(line) for line in _read(folder, PROVENANCE).splitlines() if line.strip())
    except ValueError as error:
        raise _no_provenance(folder, f"it cannot be read: {error}") from error


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise SignatureRefused(
            f"it is not signed: there is no {name}",
            where=str(folder),
            remedy="`fleetc sign` signs an artifact; one that was signed must come with that file.",
        )
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise SignatureRefused(
            f"it has more than {MAX_JSON_BYTES} bytes", where=str(path), remedy="Get the artifact again."
        )
    return raw


def _differences(signed: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """What is wrong with each file, in path order."""
    problems = []
    for name in sorted({*signed, *actual} - set(NOT_COVERED)):
        if name not in actual:
            problems.append(f"{name} is missing")
        elif name not in signed:
            problems.append(f"{name} was added")
        elif signed[name] != actual[name]:
            problems.append(f"{name} was changed")
    return problems


def _builder(lines: Sequence[Envelope], key: PublicKey, actual: Mapping[str, str], folder: Path) -> str:
    """The builder that a key's own statement names, where that is about the files that are here."""
    mine = [line for line in lines if line.signed_by(key)]
    if not mine:
        raise _no_provenance(folder, f"key {key.id[:16]} has stated none")
    try:
        builders = [_builder_of(line, actual) for line in mine]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _no_provenance(folder, f"key {key.id[:16]} states none that can be read: {error}") from error
    builder = next((builder for builder in builders if builder is not None), None)
    if builder is None:
        raise _no_provenance(folder, f"what key {key.id[:16]} states is about other files")
    return builder


def _builder_of(line: Envelope, actual: Mapping[str, str]) -> str | None:
    """The builder that a statement names; None if it is about other files."""
    statement: dict[str, Any] = json.loads(line.payload)
    if (line.payload_type, statement["_type"], statement["predicateType"]) != (IN_TOTO, STATEMENT, PREDICATE):
        return None
    subjects = {str(item["name"]): str(item["digest"]["sha256"]) for item in statement["subject"]}
    if MANIFEST not in subjects or any(actual.get(name) != digest for name, digest in subjects.items()):
        return None
    return str(statement["predicate"]["runDetails"]["builder"]["id"])


def _no_provenance(folder: Path, why: str) -> SignatureRefused:
    return SignatureRefused(
        f"no provenance: {why}",
        where=str(folder / PROVENANCE),
        remedy="Name the public keys of those who built it, or get the artifact from where it was signed.",
    )
