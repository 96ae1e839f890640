"""Certificates that signatures come with: their chain to a configured authority, their life, and whom they name.

The chain is checked by cryptography's path validation (RFC 5280, with the CA/Browser Forum's rules for keys and
algorithms: ECDSA and RSA, no Ed25519). What it leaves to its caller is here: the purpose (code signing), the subject
and the issuer of the login behind it (sigstore/fulcio, docs/oid-info.md).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from cove.model.errors import Invalid
from cove.signing.keys import PublicKey, public_key
from cove.signing.pem import format_pem, parse_pem
from cove.signing.types import IdentityRequirement

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # its text as it is
_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")  # a DER UTF8String
_DEPTH_MAX = 4
_SUBJECTS_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A signer's certificate, read: its key, whom it names, and when it holds (seconds since the epoch)."""

    found: x509.Certificate
    key: PublicKey
    subjects: tuple[str, ...]
    issuer: str
    from_s: float
    until_s: float

    @property
    def shown(self) -> str:
        """Whom it names, for people."""
        return ", ".join(self.subjects) + (f" ({self.issuer})" if self.issuer else "")


def parse_certificates(text: str, what: str) -> list[x509.Certificate]:
    """Every certificate of a PEM text. Raises Invalid."""
    found = []
    for label, content in parse_pem(text, what):
        if label != "CERTIFICATE":
            raise Invalid(f"{what}: expected certificates, found the PEM block {label}")
        try:
            found.append(x509.load_der_x509_certificate(content))
        except ValueError as error:
            raise Invalid(f"{what}: a certificate can't be read: {error}") from None
    return found


def format_certificates(found: Sequence[x509.Certificate]) -> str:
    return "".join(format_pem("CERTIFICATE", one.public_bytes(Encoding.DER)) for one in found)


def read_certificate(found: x509.Certificate, what: str) -> Certificate:
    """What counts of a signer's certificate. Raises Invalid."""
    try:
        key = public_key(found.public_key(), what)
        subjects = _subjects(found)
        issuer = _issuer(found)
        from_s, until_s = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    except Invalid:
        raise
    except Exception as error:  # cryptography reads extensions late, and with many kinds of errors
        raise Invalid(f"{what}: a field of the certificate can't be read: {error}") from None
    return Certificate(found=found, key=key, subjects=subjects, issuer=issuer, from_s=from_s, until_s=until_s)


def check_chain(
    leaf: Certificate, chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], time_s: float
) -> str:
    """Why the certificate isn't one of these authorities' at this time; "" if it is."""
    if not leaf.from_s <= time_s <= leaf.until_s:
        when = _moment(time_s)
        return f"it holds from {_moment(leaf.from_s)} to {_moment(leaf.until_s)}, the signature is of {when}"
    try:
        usage = leaf.found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CODE_SIGNING not in usage:
            return "its extended key usage isn't code signing"
    except x509.ExtensionNotFound:
        return "it has no extended key usage; code signing is wanted"
    except ValueError as error:
        return f"its extensions can't be read: {error}"
    any_place = verification.Criticality.AGNOSTIC
    authority = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.ExtendedKeyUsage, any_place, None
    )
    end = verification.ExtensionPolicy.permit_all().require_present(
        x509.SubjectAlternativeName, any_place, None
    )
    try:
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store(list(roots)))
            .time(datetime.fromtimestamp(time_s, UTC))
            .max_chain_depth(_DEPTH_MAX)
            .extension_policies(ca_policy=authority, ee_policy=end)
            .build_client_verifier()
        )
        verifier.verify(leaf.found, [one for one in chain if one not in roots])
    except verification.VerificationError as error:
        return f"no chain leads to a configured authority: {error}"
    except ValueError as error:
        return f"its chain can't be checked: {error}"
    return ""


def matches_identity(certificate: Certificate, wanted: IdentityRequirement) -> bool:
    """Whether it names whom the requirement wants."""
    subjects = certificate.subjects
    if wanted.subject and wanted.subject not in subjects:
        return False
    if wanted.subject_pattern and not any(_matches(wanted.subject_pattern, one) for one in subjects):
        return False
    if wanted.issuer and wanted.issuer != certificate.issuer:
        return False
    return not wanted.issuer_pattern or _matches(wanted.issuer_pattern, certificate.issuer)


def _matches(pattern: str, text: str) -> bool:
    """Of a pattern only `*` is special: an address may well have other characters that fnmatch knows."""
    escaped = re.sub(r"([?\[])", r"[\1]", pattern)
    return fnmatch.fnmatchcase(text, escaped)


def _subjects(found: x509.Certificate) -> tuple[str, ...]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    texts: list[str] = []
    for name in names:
        if isinstance(name, x509.RFC822Name | x509.UniformResourceIdentifier | x509.DNSName):
            texts.append(name.value)
        elif isinstance(name, x509.OtherName) and name.type_id.dotted_string == "1.3.6.1.4.1.57264.1.7":
            texts.append(_utf8(name.value))
    if len(texts) > _SUBJECTS_MAX:
        raise Invalid(f"the certificate names {len(texts)} subjects; the limit is {_SUBJECTS_MAX}")
    return tuple(texts)


def _issuer(found: x509.Certificate) -> str:
    for oid in (_ISSUER_V2, _ISSUER):
        try:
            value = found.extensions.get_extension_for_oid(oid).value
        except x509.ExtensionNotFound:
            continue
        assert isinstance(value, x509.UnrecognizedExtension)
        return _utf8(value.value) if oid == _ISSUER_V2 else value.value.decode("utf-8", "replace")
    return ""


def _utf8(der: bytes) -> str:
    """A DER UTF8String of up to 64 KiB (X.690, 8.1.3). Raises Invalid."""
    if len(der) < 2 or der[0] != 0x0C:
        raise Invalid("a name in the certificate isn't a UTF8String")
    length, start = der[1], 2
    if length in (0x81, 0x82):
        start += length - 0x80
        length = int.from_bytes(der[2:start], "big")
    elif length > 0x80:
        raise Invalid("a name in the certificate is longer than it may be")
    if start + length != len(der):
        raise Invalid("a name in the certificate has another length than it says")
    return der[start:].decode("utf-8", "replace")


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
