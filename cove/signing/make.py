"""Sign an image: what a private key, and maybe its certificate, make of a digest. The key stays in this process."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cove.model.errors import Invalid
from cove.signing.bundle import STATEMENT_TYPE, build_bundle, encode_pae
from cove.signing.certificates import format_certificates, parse_certificates, read_certificate
from cove.signing.keys import PrivateKey
from cove.signing.payload import build_payload, build_statement
from cove.signing.types import BUNDLE_TYPE, CERTIFICATE_KEY, CHAIN_KEY, SIGNATURE_KEY, SIMPLE_TYPE, Signature


def sign_image(
    key: PrivateKey,
    reference: str,
    digest: str,
    annotations: Mapping[str, str],
    *,
    certificates: str = "",
) -> Signature:
    """A signature of the manifest `digest` as the repository `reference`.

    `certificates`: PEM, the key's own first, then its chain. Raises Invalid when they aren't the key's.
    """
    payload = build_payload(reference, digest, annotations)
    notes = {SIGNATURE_KEY: base64.b64encode(key.sign(payload)).decode()}
    if certificates:
        found = _own(key, certificates)
        notes[CERTIFICATE_KEY] = format_certificates(found[:1])
        if found[1:]:
            notes[CHAIN_KEY] = format_certificates(found[1:])
    return Signature(media_type=SIMPLE_TYPE, content=payload, annotations=notes)


def sign_bundle(
    key: PrivateKey, reference: str, digest: str, annotations: Mapping[str, str], *, certificates: str = ""
) -> Signature:
    """The same as a sigstore bundle, as cosign 3 makes it. Of the certificates a bundle has the key's own alone."""
    statement = build_statement(reference, digest, annotations)
    made = key.sign(encode_pae(STATEMENT_TYPE, statement))
    certificate = b""
    if certificates:
        certificate = _own(key, certificates)[0].public_bytes(Encoding.DER)
    hint = base64.b64encode(bytes.fromhex(key.public.fingerprint)).decode()
    content = build_bundle(statement, made, hint=hint, certificate=certificate)
    return Signature(media_type=BUNDLE_TYPE, content=content)


def _own(key: PrivateKey, certificates: str) -> list[x509.Certificate]:
    """Certificates whose first is the key's. Raises Invalid."""
    found = parse_certificates(certificates, "the certificate")
    if read_certificate(found[0], "the certificate").key.pem != key.public.pem:
        raise Invalid("the certificate is of another key: the first one of the file has to be the key's own")
    return found
