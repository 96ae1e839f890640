"""TLS towards a receiver. Imported only where one asks for it: the library takes memory."""

from __future__ import annotations

import ssl

from cove.logs.destinations import Tls


def client_context(tls: Tls) -> ssl.SSLContext:
    """Read anew for each connection, so that renewed certificates count. Raises OSError (ssl.SSLError is one)."""
    context = ssl.create_default_context(cafile=tls.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    return context
