"""The server's own certificate authority: who talks to the engine has a certificate of it, on both sides.

<data>/tls/ca.pem, ca.key             the authority; `ca.pem` is what clients and workers are given
<data>/tls/server.pem, server.key     the server, for HTTPS and for the engine
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from compiler.errors import UsageError

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 825
"""825 days is the longest that browsers accept of a server."""


def authority(folder: Path) -> Path:
    """The authority's certificate; made where there is none."""
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if not certificate.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        own = ec.generate_private_key(ec.SECP256R1())
        name = _name("fleetc build server")
        builder = _builder(name, name, own.public_key(), AUTHORITY_DAYS).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        signed = builder.add_extension(usage, critical=True).sign(own, hashes.SHA256())
        write_key(key, own)
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return certificate


def server_certificate(folder: Path, hosts: Iterable[str]) -> tuple[Path, Path]:
    """The server's certificate for its names, and the key to it; made anew at each start, for the names may change."""
    authority(folder)
    certificate, key = folder / "server.pem", folder / "server.key"
    own = ec.generate_private_key(ec.SECP256R1())
    write_key(key, own)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name("server")).sign(own, hashes.SHA256())
    certificate.write_bytes(_sign(folder, request, hosts))
    return certificate, key


def new_request(key: Path, name: str) -> bytes:
    """Makes a key, and the request for a certificate to it."""
    own = ec.generate_private_key(ec.SECP256R1())
    write_key(key, own)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(own, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def sign_request(folder: Path, text: str) -> bytes:
    """The certificate that a worker asks for.

    Raises:
        UsageError: It is no request that its own key has signed.
    """
    try:
        request = x509.load_pem_x509_csr(text.encode())
    except ValueError as error:
        raise UsageError("it is no request for a certificate", where="csr") from error
    if not request.is_signature_valid:
        raise UsageError("the request is not signed by its own key", where="csr")
    return _sign(folder, request, ())


def _sign(folder: Path, request: x509.CertificateSigningRequest, hosts: Iterable[str]) -> bytes:
    issuer = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError("the authority's key is none of ours", where=str(folder / "ca.key"))
    names = [_general_name(host) for host in hosts]
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = _builder(request.subject, issuer.subject, request.public_key(), CERTIFICATE_DAYS)
    builder = builder.add_extension(usage, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(subject: x509.Name, issuer: x509.Name, key: object, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # an hour back: the clock of a worker may be a little behind
    start = now - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)  # type: ignore[arg-type]  # any kind of public key
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
    )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Writes a private key that nobody else may read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:60])])


def _general_name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ip_address(host))
    return x509.DNSName(host)
