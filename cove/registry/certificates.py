"""TLS for the registry: certificates from files, or from an authority of the registry's own.

The registry speaks TLS in its own process (asyncio's, by OpenSSL): unlike the daemon it hands no connection on, and it
has no privilege that a relay would keep a stranger's bytes away from (docs/decisions/0020).

    ROOT/tls/ca.pem, ca.key       an authority for this registry alone, for ten years
    ROOT/tls/cert.pem, cert.key   its certificate, made anew before it expires or when its names change
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cove.model.errors import Invalid

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

AUTHORITY_DAYS, CERTIFICATE_DAYS, RENEWED_DAYS = 3650, 397, 30


def server_context(certificate: Path, key: Path, client_authority: str, *, required: bool) -> ssl.SSLContext:
    """TLS 1.2 and newer; with an authority, clients may show a certificate of it (`required`: must). Raises Invalid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
        raise Invalid(
            f"--tls-cert {certificate}, --tls-key {key}: {reason}; expected a certificate and its key without a "
            "password, in PEM format"
        ) from None
    if client_authority:
        try:
            context.load_verify_locations(client_authority)
        except OSError as error:
            raise Invalid(
                f"--tls-client-ca {client_authority}: {error.strerror or error}; expected PEM"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def own_certificate(directory: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """The certificate and key of an authority of one's own, made where there are none that still do."""
    from cryptography import x509

    directory.mkdir(mode=0o700, exist_ok=True)
    certificate, key = directory / "cert.pem", directory / "cert.key"
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        have = {str(each.value) for each in extension}
        left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        if key.exists() and set(names) <= have and left.days > RENEWED_DAYS:
            return certificate, key
    except (OSError, ValueError, x509.ExtensionNotFound):
        pass
    _make(directory, names)
    return certificate, key


def _make(directory: Path, names: Sequence[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)

    def begin(
        name: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
            now + datetime.timedelta(days=days)
        )

    def usage(*, authority: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=authority,
            crl_sign=authority,
            encipher_only=False,
            decipher_only=False,
        )

    try:
        loaded = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        authority_key = loaded
        authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    except OSError:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = (
            begin(f"Cove registry {names[0]}", None, authority_key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage(authority=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        _write(directory / "ca.key", _private(authority_key), 0o600)
        _write(directory / "ca.pem", authority.public_bytes(serialization.Encoding.PEM), 0o644)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        begin(names[0], authority.subject, key, CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general_name(each) for each in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    _write(directory / "cert.key", _private(key), 0o600)
    _write(directory / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _private(key: object) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _general_name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_suffix(path.suffix + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
        stream.write(data)
        os.fsync(stream.fileno())
    temporary.rename(path)
