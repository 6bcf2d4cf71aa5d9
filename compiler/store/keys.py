"""Key pairs that builds and cache entries are signed with: ECDSA on the curve P-256, in PEM files.

OpenSSL, cosign and model_signing read the same files. Signatures are deterministic (RFC 6979): the same key and the
same bytes give the same signature, so that signing a build twice gives the same files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from compiler.errors import MissingError, OutputError, UsageError
from compiler.store.disk import output_errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

MAX_KEY_BYTES = 64 << 10
"""Size of the largest key file that is read: a key has a few hundred bytes."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class PublicKey:
    """What checks signatures.

    Args:
        der: The key as SubjectPublicKeyInfo.
    """

    der: bytes

    @property
    def id(self) -> str:
        """SHA-256 (64 hex digits) of the PEM file: what signatures name it by, as OMS bundles do."""
        return hashlib.sha256(self.pem).hexdigest()

    @property
    def pem(self) -> bytes:
        """The key as a PEM file."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether the owner of the private key signed these bytes."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self._key.verify(signature, message, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> EllipticCurvePublicKey:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        key = load_der_public_key(self.der)
        if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ValueError("it is no key of the curve P-256")
        return key


class PrivateKey:
    """What makes signatures.

    Args:
        key: The key of the curve P-256.
    """

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id[:16]}…)"

    @cached_property
    def public(self) -> PublicKey:
        """What checks its signatures."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return PublicKey(self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @property
    def pem(self) -> bytes:
        """The key as a PEM file without a password."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """The signature of these bytes, in DER."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._key.sign(message, ECDSA(SHA256(), deterministic_signing=True))


def generate_key() -> PrivateKey:
    """A new private key.

    Raises:
        MissingError: The package `cryptography` is not installed.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    return PrivateKey(generate_private_key(SECP256R1()))


def write_key_pair(key: PrivateKey, path: Path) -> Path:
    """Writes a private key, which only its owner may read, and its public key beside it. Returns the latter's path.

    Raises:
        OutputError: One of the files is there already, or the place cannot be written.
    """
    public = path.with_suffix(".pub")
    for place in (path, public):
        if place.exists():
            remedy = "Choose another name: a key that was replaced is lost."
            raise OutputError("there is a file already", where=str(place), remedy=remedy)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.pem)
        public.write_bytes(key.public.pem)
    return public


def read_private_key(path: Path) -> PrivateKey:
    """Reads a private key.

    Raises:
        UsageError: The file cannot be read, or is no such key.
        MissingError: The package `cryptography` is not installed.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _load(path, "private", lambda raw: load_pem_private_key(raw, password=None))
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise _no_key(path, "private", "it is no key of the curve P-256")
    return PrivateKey(key)


def read_public_keys(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """Reads public keys.

    Raises:
        UsageError: A file cannot be read, or is no such key.
        MissingError: The package `cryptography` is not installed.
    """
    return tuple(read_public_key(path) for path in paths)


def read_public_key(path: Path) -> PublicKey:
    """Reads a public key.

    Raises:
        UsageError: The file cannot be read, or is no such key.
        MissingError: The package `cryptography` is not installed.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    def load(raw: bytes) -> PublicKey:
        key = PublicKey(load_pem_public_key(raw).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        key.pem  # noqa: B018  the curve is looked at
        return key

    return _load(path, "public", load)


def _load(path: Path, kind: str, load: Callable[[bytes], Key]) -> Key:
    """What a file holds; raises UsageError where it is no such key."""
    from cryptography.exceptions import UnsupportedAlgorithm

    raw = _read(path)
    try:
        return load(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a password
        raise _no_key(path, kind, str(error)) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(
            f"the key cannot be read: {error.strerror}", where=str(path), remedy="Check the path."
        ) from error


def _no_key(path: Path, kind: str, reason: str) -> UsageError:
    remedy = "`fleetc keygen` makes a pair: NAME.pem signs, NAME.pub verifies. Keys with a password are not read."
    return UsageError(f"no {kind} key that can be used: {reason.rstrip('.')}", where=str(path), remedy=remedy)


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        remedy = "Install it: pip install 'fleetc[trust]'."
        raise MissingError("signatures need the package cryptography", remedy=remedy) from error
