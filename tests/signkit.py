"""Keys, authorities and signatures for tests, also bad ones: each mends exactly what a test is about."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cove.signing.keys import PrivateKey, generate_key

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
NOW_S = NOW.timestamp()
CODE_SIGNING = ExtendedKeyUsageOID.CODE_SIGNING
DAY = datetime.timedelta(days=1)
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Issued:
    """A signer's key and certificate; `pem` has the chain after it, without the root."""

    key: PrivateKey
    certificate: x509.Certificate
    chain: Sequence[x509.Certificate]

    @property
    def pem(self) -> str:
        return "".join(_pem(one) for one in (self.certificate, *self.chain))


@dataclass
class Authority:
    """An authority with one certificate between it and those whom it signs for."""

    name: str = "authority"
    now: datetime.datetime = NOW
    root_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )
    middle_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.root = self._authority(self.name, self.root_key, self.name, self.root_key, None)
        self.middle = self._authority(f"{self.name} 1", self.middle_key, self.name, self.root_key, 0)

    @property
    def pem(self) -> str:
        return _pem(self.root)

    def _authority(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        length: int | None,
    ) -> x509.Certificate:
        builder = self._builder(name, key.public_key(), issuer, issuer_key, -30 * DAY, 365 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(True, length), critical=True)
        builder = builder.add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        )
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        builder = builder.add_extension(x509.ExtendedKeyUsage([CODE_SIGNING]), critical=False)  # as Fulcio's
        return builder.sign(issuer_key, hashes.SHA256())

    def issue(
        self,
        subject: str = "ci@example.org",
        *,
        issuer: str = "https://login.example.org",
        key: PrivateKey | None = None,
        begin: datetime.timedelta = -DAY,
        end: datetime.timedelta = DAY,
        usage: x509.ObjectIdentifier | None = CODE_SIGNING,
    ) -> Issued:
        made = key or generate_key("ecdsa-p256")
        public = made.key.public_key()
        builder = self._builder("", public, f"{self.name} 1", self.middle_key, begin, end)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(subject) if "://" in subject else x509.RFC822Name(subject)
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if issuer:
            text = issuer.encode()
            der = bytes([0x0C, len(text)]) + text
            for oid, value in ((_ISSUER, text), (_ISSUER_V2, der)):  # both, as Fulcio: cosign reads the first
                builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
        return Issued(made, builder.sign(self.middle_key, hashes.SHA256()), [self.middle])

    def _builder(
        self,
        name: str,
        key: object,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        begin: datetime.timedelta,
        end: datetime.timedelta,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + begin)
            .not_valid_after(self.now + end)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
        )
