"""A daemon over TLS: certificates by flag or environment, and a plain socket to an encrypted connection.

The connection's plain end is what everything else here speaks to; a thread pumps between the two (cove/tls/pump.py).
Docker's rules: --tls encrypts, --tlsverify checks the daemon's certificate too; DOCKER_TLS, DOCKER_TLS_VERIFY and
DOCKER_CERT_PATH say the same.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading

from cove.cli.fail import CliError
from cove.tls.pump import Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.address import Address, Tls


def client_context(tls: Tls) -> ssl.SSLContext:
    """What the options ask for. CliError names the file that can't be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.authority:
        _load(lambda: context.load_verify_locations(tls.authority), "--tlscacert", tls.authority)
    else:
        context.load_default_certs()
    if tls.certificate:
        _load(
            lambda: context.load_cert_chain(tls.certificate, tls.key or None, password=lambda: b""),
            "--tlscert and --tlskey",
            f"{tls.certificate} {tls.key}",
        )
    return context


def _load(load, flag: str, path: str) -> None:  # type: ignore[no-untyped-def]
    try:
        load()
    except OSError as error:
        told = getattr(error, "reason", None) or error.strerror or error
        raise CliError(f"{flag} {path}: {told}; expected files in PEM format") from None


def open_tls(address: Address, tls: Tls, sock: socket.socket) -> socket.socket:
    """The plain end of an encrypted connection over `sock`. CliError when the daemon isn't who it should be."""
    pump = Pump(sock, client_context(tls), server_side=False, name=address.host)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    try:
        while not pump.shake():
            poller.poll()
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise CliError(
            f"{address.text}: the daemon's certificate isn't trusted: {error.verify_message}; name its authority by "
            "--tlscacert"
        ) from None
    except ssl.SSLError as error:
        sock.close()
        raise CliError(
            f"{address.text}: no TLS connection: {error.reason or error}; does it speak TLS?"
        ) from None
    ours, theirs = socket.socketpair()
    pump.join(theirs)
    threading.Thread(target=_pump, args=(address, pump), daemon=True).start()
    return ours


def _pump(address: Address, pump: Pump) -> None:
    assert pump.plain is not None
    poller = select.poll()
    while not pump.ended:
        for sock, events in zip((pump.tls, pump.plain), pump.interest(), strict=True):
            poller.register(sock, events)
        poller.poll()
        pump.move()
    if pump.failure:
        address.failure = pump.failure
    pump.close()


def find_tls(flags: dict[str, str]) -> Tls | None:
    """The options from flags and environment; None: plain."""
    from cove.cli.address import Tls

    verify = (
        _on(flags.get("tlsverify")) if "tlsverify" in flags else bool(os.environ.get("DOCKER_TLS_VERIFY"))
    )
    on = verify or (_on(flags["tls"]) if "tls" in flags else bool(os.environ.get("DOCKER_TLS")))
    if not on:
        return None
    directory = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
    found = [flags.get(name, "") for name in ("tlscacert", "tlscert", "tlskey")]
    for index, name in enumerate(("ca.pem", "cert.pem", "key.pem")):
        path = f"{directory}/{name}"
        if not found[index] and os.path.exists(path):
            found[index] = path
    return Tls(verify, *found)


def _on(text: str | None) -> bool:
    return (text or "true").lower() in ("1", "t", "true")
