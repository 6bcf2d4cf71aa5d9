"""A device signs what it says of itself with a key that never leaves it, so that nobody else can say it.

The envelope is DSSE's (github.com/secure-systems-lab/dsse), as that of signed builds; the signature is Ed25519's.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TYPE = "application/vnd.fleetc.report+json"

PRIVATE, PUBLIC = "report.pem", "report.pub"
"""The device's keys in its folder; the public one is taken to the fleet when the device is set up."""

PRIVATE_MODE = 0o600


def device_key(folder: Path) -> Ed25519PrivateKey:
    """The device's key; made where there is none yet."""
    path = folder / PRIVATE
    if not path.exists():
        _make_key(folder)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} is no Ed25519 key")
    if not (folder / PUBLIC).exists():
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / PUBLIC).write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return key


def sign_report(report: dict[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """The report in a signed envelope."""
    payload = json.dumps(report, sort_keys=True).encode()
    signature = key.sign(signed_bytes(TYPE.encode(), payload))
    return {"payloadType": TYPE, "payload": _text(payload), "signatures": [{"sig": _text(signature)}]}


def open_report(value: dict[str, Any], key: bytes | None) -> dict[str, Any]:
    """The report in an envelope, or as it is where nobody signed it.

    Args:
        value: What was written.
        key: The device's public key (PEM), which must have signed it; None believes whoever wrote it.

    Raises:
        ValueError: The key did not sign it, or it is no envelope.
    """
    if "payload" not in value:
        if key is not None:
            raise ValueError("it is not signed, and the fleet has a key for this device")
        return value
    try:
        payload = base64.b64decode(value["payload"], validate=True)
        if key is not None:
            _check(payload, str(value["payloadType"]), base64.b64decode(value["signatures"][0]["sig"]), key)
    except InvalidSignature as error:
        raise ValueError("it is not signed by the key that the fleet has for this device") from error
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it is no signed envelope: {error}") from error
    report = json.loads(payload)
    if not isinstance(report, dict):
        raise ValueError("what is signed is no object")
    return report


def signed_bytes(kind: bytes, payload: bytes) -> bytes:
    """What a signature of an envelope is made over."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _check(payload: bytes, kind: str, signature: bytes, key: bytes) -> None:
    public = serialization.load_pem_public_key(key)
    if not isinstance(public, Ed25519PublicKey):
        raise ValueError("the key that the fleet has for this device is no Ed25519 key")
    if kind != TYPE:
        raise ValueError(f"what is signed is a {kind!r} and no report")
    public.verify(signature, signed_bytes(kind.encode(), payload))


def _make_key(folder: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = folder / f".{PRIVATE}.draft"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / PRIVATE)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
