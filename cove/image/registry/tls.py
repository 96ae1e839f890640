"""How TLS is spoken with a registry: the system's authorities, and what certs.d has for a host.

As Docker does: /etc/docker/certs.d/HOST[:PORT]/ may have *.crt (authorities), and pairs of *.cert and *.key (what to
show of oneself); Cove's own place, /etc/cove/certs.d, comes first. Files are read by `Trust`, before the walls of a
worker close, and the system's authorities, which cost 20 ms to parse, are parsed when they are first needed.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path

from cove.model.errors import Invalid

CERTS_DIRS = (Path("/etc/cove/certs.d"), Path("/etc/docker/certs.d"))


class Trust:
    """Whom to trust by host: call it for Connections. Invalid: a file in certs.d is no good."""

    def __init__(self, hosts: Iterable[str], directories: Iterable[Path] = CERTS_DIRS) -> None:
        self._lock = threading.Lock()
        self._system = _read_system()
        self._made: dict[tuple[str, bool], ssl.SSLContext] = {}
        places = list(directories)
        for host in hosts:
            if os.sep in host or host in ("", ".", ".."):
                continue
            found = next((d / host for d in places if (d / host).is_dir()), None)
            if found is not None:
                for verify in (True, False):
                    self._made[host, verify] = context = self._new(verify)
                    _add_directory(context, found)

    def __call__(self, host: str, verify: bool) -> ssl.SSLContext:
        """`host` with its port, if it was written; whether its certificate has to be right."""
        with self._lock:
            context = self._made.get((host, verify)) or self._made.get(("", verify))
            if context is None:
                context = self._made["", verify] = self._new(verify)
            return context

    def _new(self, verify: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self._system:
            context.load_verify_locations(cadata=self._system)
        return context


def _read_system() -> str:
    """The system's authorities as PEM; "" for a system that has none."""
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"):
        try:
            if path:
                return Path(path).read_text("ascii", "replace")
        except OSError:
            continue
    return ""


def _add_directory(context: ssl.SSLContext, directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(cafile=path)
            elif path.suffix == ".cert":
                key = path.with_suffix(".key")
                if not key.exists():
                    raise Invalid(
                        f"{path}: the certificate's key is missing: put it into {key.name} beside it"
                    )
                context.load_cert_chain(path, key)
        except (OSError, ssl.SSLError) as error:
            raise Invalid(f"{path}: it can't be used: {getattr(error, 'strerror', '') or error}") from error
