"""Key pairs and DSSE envelopes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from compiler.errors import OutputError, UsageError
from compiler.store.envelope import Envelope, dump, encode_message, from_dict, load, sign, to_dict
from compiler.store.keys import generate_key, read_private_key, read_public_key, write_key_pair

pytest.importorskip("cryptography", reason="needs the extra trust")

TYPE = "application/vnd.in-toto+json"


def test_a_pair_is_written_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    key = generate_key()
    public = write_key_pair(key, tmp_path / "lab.pem")
    assert stat.S_IMODE((tmp_path / "lab.pem").stat().st_mode) == 0o600
    assert read_public_key(public) == key.public
    assert read_private_key(tmp_path / "lab.pem").public == key.public
    assert "PRIVATE" not in repr(key)


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    write_key_pair(generate_key(), tmp_path / "lab.pem")
    before = (tmp_path / "lab.pem").read_bytes()
    with pytest.raises(OutputError, match="a key that was replaced is lost"):
        write_key_pair(generate_key(), tmp_path / "lab.pem")
    assert (tmp_path / "lab.pem").read_bytes() == before


def test_a_signature_is_the_same_twice() -> None:
    key = generate_key()
    assert key.sign(b"bytes") == key.sign(b"bytes")


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 99]
)
def test_what_is_no_key_is_refused_by_its_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "no.pem"
    path.write_bytes(content)
    for read in (read_private_key, read_public_key):
        with pytest.raises(UsageError, match=r"no\.pem: no (private|public) key"):
            read(path)


def test_keys_of_other_kinds_and_with_a_password_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    path = tmp_path / "other.pem"
    for key in (Ed25519PrivateKey.generate(), generate_private_key(SECP384R1())):
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(UsageError, match="no key of the curve P-256"):
            read_private_key(path)
        path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        with pytest.raises(UsageError, match="no key of the curve P-256"):
            read_public_key(path)
    locked = generate_private_key(SECP384R1())
    path.write_bytes(locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(UsageError, match="Keys with a password are not read"):
        read_private_key(path)


def test_the_pre_authentication_encoding_is_that_of_the_dsse_specification() -> None:
    assert encode_message("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_is_read_back_with_both_signatures() -> None:
    first, second, other = generate_key(), generate_key(), generate_key()
    envelope = sign(sign(Envelope(TYPE, b"{}"), first), second)
    again = load(dump(envelope))
    assert again == envelope
    assert again.signed_by(first.public) and again.signed_by(second.public) and not again.signed_by(other.public)
    assert again.signer([other.public, second.public]) == second.public
    assert sign(again, first) == again


@pytest.mark.parametrize("change", ["payload", "payloadType"])
def test_a_changed_envelope_has_no_signer(change: str) -> None:
    key = generate_key()
    value = to_dict(sign(Envelope(TYPE, b"{}"), key))
    value[change] = value[change].replace("e30=", "e30g") if change == "payload" else "text/plain"
    assert from_dict(value).signer([key.public]) is None


def test_a_hint_alone_is_no_signature() -> None:
    key, thief = generate_key(), generate_key()
    value = to_dict(sign(Envelope(TYPE, b"{}"), thief))
    value["signatures"][0]["keyid"] = key.public.id
    assert from_dict(value).signer([key.public]) is None


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"payload": "!", "payloadType": "", "signatures": []}', b"[" * 99999]
)
def test_what_is_no_envelope_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        load(raw)


def test_the_id_of_a_key_is_what_openssl_says_of_its_file(tmp_path: Path) -> None:
    import hashlib

    public = write_key_pair(generate_key(), tmp_path / "lab.pem")
    assert read_public_key(public).id == hashlib.sha256(public.read_bytes()).hexdigest()
