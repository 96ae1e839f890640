"""Sign an image: what a private key, and maybe its certificate, make of a digest. The key stays in this process."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from cove.model.errors import Invalid
from cove.signing.certificates import format_certificates, parse_certificates, read_certificate
from cove.signing.keys import PrivateKey
from cove.signing.payload import build_payload
from cove.signing.types import CERTIFICATE_KEY, CHAIN_KEY, SIGNATURE_KEY, SIMPLE_TYPE, Signature


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
        found = parse_certificates(certificates, "the certificate")
        leaf = read_certificate(found[0], "the certificate")
        if leaf.key.pem != key.public.pem:
            raise Invalid(
                "the certificate is of another key: the first one of the file has to be the key's own"
            )
        notes[CERTIFICATE_KEY] = format_certificates(found[:1])
        if found[1:]:
            notes[CHAIN_KEY] = format_certificates(found[1:])
    return Signature(media_type=SIMPLE_TYPE, content=payload, annotations=notes)
