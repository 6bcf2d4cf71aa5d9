"""Whether an unpacked build is what was signed: its manifest, every file, and the signature over all of them."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from .files import read_json, sha256
from .refusal import Refused
from .signing import signed_bytes

MANIFEST, SIGNATURE = "manifest.json", "signature.sigstore.json"
NOT_SIGNED = ("provenance.intoto.jsonl", SIGNATURE)
"""What an OMS signature does not cover: provenance is signed line by line, and it cannot hold its own digest."""

LOOSE = ("bom.cdx.json", "measurements.json", MANIFEST, *NOT_SIGNED)
"""Files of an artifact that its manifest does not list: the manifest's own digest is the build's name."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive of plain files and folders.

    Raises:
        Refused: Something in it leads out of the folder, or is no plain file.
    """
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            strange = [member.name for member in members if not _is_plain(member)]
            if strange:
                raise Refused(f"the archive holds what no build has: {', '.join(strange[:5])}")
            # the filter takes owners and odd modes away, where this Python has it
            filtered: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, members, **filtered)
    except tarfile.TarError as error:
        raise Refused(f"the archive cannot be read: {error}") from error


def _is_plain(member: tarfile.TarInfo) -> bool:
    parts = Path(member.name).parts
    return (member.isfile() or member.isdir()) and not Path(member.name).is_absolute() and ".." not in parts


def verify(folder: Path, digest: str, key: bytes | None) -> None:
    """Compares a build with its digest, and with a signature if a key is given.

    Args:
        folder: `versions/<digest>`.
        digest: SHA-256 of its manifest.
        key: PEM file of whoever signs builds.

    Raises:
        Refused: A file was changed, is missing or was added, or the key did not sign it.
    """
    artifact = folder / "artifact"
    if not (artifact / MANIFEST).is_file() or sha256(artifact / MANIFEST) != digest:
        raise Refused(f"the manifest is not {digest[:16]}")
    listed = {name: file["sha256"] for name, file in read_json(artifact / MANIFEST).get("files", {}).items()}
    loose = read_json(artifact / "measurements.json").get("non_reproducible_files", {})
    listed.update({name: file["sha256"] for name, file in loose.items() if name not in listed})
    _compare(artifact, listed, ignored=LOOSE)
    if key is not None:
        _compare(artifact, _signed_files(artifact, key), ignored=NOT_SIGNED)


def _compare(artifact: Path, listed: dict[str, str], *, ignored: tuple[str, ...]) -> None:
    there = {
        (Path(place) / name).relative_to(artifact).as_posix() for place, _, names in os.walk(artifact) for name in names
    }
    problems = [f"{name} is missing" for name in listed if name not in there]
    problems += [f"{name} was added" for name in there if name not in listed and name not in ignored]
    problems += [
        f"{name} was changed"
        for name, expected in listed.items()
        if name in there and sha256(artifact / name) != expected
    ]
    if problems:
        raise Refused(f"the build is not whole: {', '.join(sorted(problems)[:5])}")


def _signed_files(artifact: Path, key: bytes) -> dict[str, str]:
    """Path → SHA-256, as the signature has them."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = load_pem_public_key(key)
    try:
        envelope = json.loads((artifact / SIGNATURE).read_bytes())["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        kind = envelope["payloadType"].encode()
        if not isinstance(public, EllipticCurvePublicKey):
            raise Refused("the key that builds are checked with is no EC key")
        public.verify(signature, signed_bytes(kind, payload), ECDSA(SHA256()))
        resources: list[dict[str, Any]] = json.loads(payload)["predicate"]["resources"]
        return {item["name"]: item["digest"] for item in resources}
    except FileNotFoundError as error:
        raise Refused("the build is not signed") from error
    except InvalidSignature as error:
        raise Refused("wrong key: the build's signature is not of the key that this device trusts") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise Refused(f"the build's signature cannot be read: {error}") from error
