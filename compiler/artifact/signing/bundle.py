"""The OMS signature of a folder: a Sigstore bundle with every file's digest (github.com/ossf/model-signing-spec)."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import PROVENANCE, SIGNATURE
from compiler.errors import SignatureRefused
from compiler.store import canonical_json, file_digest
from compiler.store.envelope import Envelope, from_dict, sign, to_dict
from compiler.store.keys import PrivateKey, PublicKey

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"

NOT_COVERED = (PROVENANCE, SIGNATURE)
"""The signature cannot hold its own digest; provenance is signed line by line, and a second builder adds a line."""


def digest_files(folder: Path) -> dict[str, str]:
    """Relative POSIX path → SHA-256 of every file of a folder, in path order.

    Raises:
        SignatureRefused: There is something else than files and folders: a link leads out of what is signed.
    """
    files = sorted(_walk(folder), key=lambda path: path.relative_to(folder).as_posix())
    strange = [path.relative_to(folder).as_posix() for path in files if not stat.S_ISREG(path.lstat().st_mode)]
    if strange:
        raise SignatureRefused(
            f"neither a file nor a folder: {', '.join(strange)}",
            where=str(folder),
            remedy="An artifact holds no links. Remove it, or build the device again.",
        )
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _walk(folder: Path) -> list[Path]:
    """Everything below a folder that is no folder; links to folders among it."""
    paths = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        paths += [Path(place) / name for name in (*files, *links)]
    return paths


def make_bundle(name: str, digests: Mapping[str, str], key: PrivateKey) -> bytes:
    """The signature over files.

    Args:
        name: What the folder is called in the signature.
        digests: Relative path → SHA-256, in path order.
        key: Who signs.
    """
    envelope = sign(Envelope(IN_TOTO, canonical_json(_statement(name, digests)).encode()), key)
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.public.id}, "tlogEntries": []},
        "dsseEnvelope": to_dict(envelope),
    }
    return (json.dumps(bundle, indent=1, sort_keys=True) + "\n").encode()


def _statement(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    covered = {path: digest for path, digest in digests.items() if path not in NOT_COVERED}
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in covered.values())).hexdigest()
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(NOT_COVERED),
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in covered.items()],
        },
    }


def read_bundle(raw: bytes, keys: Sequence[PublicKey], *, where: str) -> tuple[PublicKey, dict[str, str]]:
    """Who signed a bundle, and the digest of every file that was signed.

    Raises:
        SignatureRefused: It is no such bundle, or none of the keys signed it.
    """
    try:
        bundle = json.loads(raw)
        if bundle["mediaType"] != MEDIA_TYPE:
            raise ValueError(f"its media type is {bundle['mediaType']!r}")
        envelope = from_dict(bundle["dsseEnvelope"])
        hint = str(bundle["verificationMaterial"]["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(error, where) from error
    key = envelope.signer(keys)
    if key is None:
        raise _other_key(hint, keys, where)
    if envelope.payload_type != IN_TOTO:
        raise _unreadable(ValueError(f"it signs {envelope.payload_type!r}"), where)
    try:
        return key, _signed_files(json.loads(envelope.payload))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(error, where) from error


def _signed_files(statement: Any) -> dict[str, str]:
    """Path → SHA-256, as the signed statement has them."""
    if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
        raise ValueError(f"it states {statement['predicateType']!r}")
    resources = statement["predicate"]["resources"]
    others = {str(item["algorithm"]) for item in resources} - {"sha256"}
    if others:
        raise ValueError(f"digests by {', '.join(sorted(others))}")
    return {str(item["name"]): str(item["digest"]) for item in resources}


def _other_key(hint: str, keys: Sequence[PublicKey], where: str) -> SignatureRefused:
    if hint in {key.id for key in keys}:
        return SignatureRefused(
            "the signature names the key and is not of it: it was changed",
            where=where,
            remedy="Get the artifact again from where it was signed.",
        )
    return SignatureRefused(
        f"it is signed by key {hint[:16]}, and not by {' or '.join(key.id[:16] for key in keys)}",
        where=where,
        remedy="Name the public key of whoever signed it, or get the artifact from whom you trust.",
    )


def _unreadable(error: Exception, where: str) -> SignatureRefused:
    return SignatureRefused(
        f"no OMS signature that can be read: {error}",
        where=where,
        remedy="Get the artifact again from where it was signed.",
    )
