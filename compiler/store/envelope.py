"""DSSE envelopes: bytes with the signatures of those who vouch for them (github.com/secure-systems-lab/dsse, v1)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.store.keys import PrivateKey, PublicKey


@dataclass(frozen=True)
class Signature:
    """One signature of an envelope; `key_id` is a hint, and proves nothing."""

    key_id: str
    signature: bytes


@dataclass(frozen=True)
class Envelope:
    """Bytes, what they are, and who signed them.

    Args:
        payload_type: Media type of the payload; it is signed, too.
        payload: The bytes.
        signatures: None where nobody has signed yet.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()

    def signed_by(self, key: PublicKey) -> bool:
        """Whether one of the signatures is of this key."""
        message = encode_message(self.payload_type, self.payload)
        return any(key.verifies(message, signature.signature) for signature in self.signatures)

    def signer(self, keys: Sequence[PublicKey]) -> PublicKey | None:
        """The first of the keys that signed it; None if none did."""
        return next((key for key in keys if self.signed_by(key)), None)


def sign(envelope: Envelope, key: PrivateKey) -> Envelope:
    """The envelope with one signature more; unchanged if the key has signed it before."""
    if envelope.signed_by(key.public):
        return envelope
    signature = Signature(key.public.id, key.sign(encode_message(envelope.payload_type, envelope.payload)))
    return replace(envelope, signatures=(*envelope.signatures, signature))


def encode_message(payload_type: str, payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding (PAE)."""
    name = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def to_dict(envelope: Envelope) -> dict[str, Any]:
    """The envelope as a JSON-ready value."""
    return {
        "payloadType": envelope.payload_type,
        "payload": base64.b64encode(envelope.payload).decode(),
        "signatures": [
            {"keyid": signature.key_id, "sig": base64.b64encode(signature.signature).decode()}
            for signature in envelope.signatures
        ],
    }


def from_dict(value: Any) -> Envelope:
    """The envelope that a JSON value describes.

    Raises:
        ValueError: It describes none.
    """
    try:
        signatures = tuple(
            Signature(str(item.get("keyid", "")), base64.b64decode(item["sig"], validate=True))
            for item in value["signatures"]
        )
        return Envelope(str(value["payloadType"]), base64.b64decode(value["payload"], validate=True), signatures)
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"no DSSE envelope: {type(error).__name__}: {error}") from error


def dump(envelope: Envelope) -> bytes:
    """The envelope as one line of JSON."""
    return json.dumps(to_dict(envelope), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def load(raw: bytes) -> Envelope:
    """The envelope that `dump` wrote.

    Raises:
        ValueError: The bytes are none.
    """
    try:
        return from_dict(json.loads(raw))
    except RecursionError as error:
        raise ValueError("no DSSE envelope: nested too deep") from error
