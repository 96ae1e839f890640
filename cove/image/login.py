"""Whether a registry takes a user's password: what `docker login` asks of the engine.

`GET /v2/` of the OCI distribution specification, and where that asks for a token (RFC 6750), one from the realm it
names, as Docker's registry tokens have it (distribution, docs/content/spec/auth/token.md). Blocking: for a thread.
No redirect is followed, nothing of an answer but its status and its challenge is used, and no error has the password.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from cove.model.errors import Invalid, Unauthorized, Unavailable

DOCKER_HUB = "https://index.docker.io/v1/"
TIMEOUT_S = 15.0
_ANSWER_MAX = 256 << 10
_PARAMETER = re.compile(r'([a-z]+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client gives: a password, or a token that it has been given before."""

    username: str
    password: str = field(default="", repr=False)
    server: str = DOCKER_HUB


def check_login(credentials: Credentials, insecure: Sequence[str] = ()) -> None:
    """Return if the registry takes them. `insecure` are hosts that may be spoken to without TLS.

    Raises Invalid for an address that isn't one, Unauthorized, and Unavailable for a registry that can't be asked.
    """
    host, secure = find_registry(credentials.server, insecure)
    schemes = ("https",) if secure else ("https", "http")
    failure: Exception | None = None
    for scheme in schemes:
        try:
            _ask(f"{scheme}://{host}", credentials)
            return
        except (OSError, http.client.HTTPException) as error:
            failure = error
    raise Unavailable(f"the registry {host} can't be asked: {_reason(failure)}") from None


def find_registry(server: str, insecure: Sequence[str]) -> tuple[str, bool]:
    """The host (and port) of a registry's address, and whether TLS is a must. Raises Invalid."""
    text = server or DOCKER_HUB
    parts = urlsplit(text if "://" in text else f"https://{text}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
        raise Invalid(
            f"serveraddress: {text[:200]!r} isn't a registry's address, e.g. registry.example.org:5000"
        )
    if parts.hostname in ("index.docker.io", "docker.io", "registry-1.docker.io"):
        return "registry-1.docker.io", True
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    whole = f"{host}:{port}" if port else host
    return whole, not (whole in insecure or parts.hostname in insecure or _is_loopback(parts.hostname))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(base: str, credentials: Credentials) -> None:
    basic = "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
    status, challenge, _ = _get(f"{base}/v2/", {})
    if status == 401 and challenge.lower().startswith("bearer "):
        wanted = dict(_PARAMETER.findall(challenge))
        realm = urlsplit(wanted.get("realm", ""))
        if realm.scheme not in ("http", "https") or (base.startswith("https:") and realm.scheme == "http"):
            raise Unavailable(f"the registry {base} names no realm that can be asked for a token")
        query = urlencode({"service": wanted.get("service", ""), "account": credentials.username})
        status, _, body = _get(
            f"{realm.geturl()}{'&' if realm.query else '?'}{query}", {"Authorization": basic}
        )
        if status == 200:
            token = _token(body)
            status, _, _ = _get(f"{base}/v2/", {"Authorization": f"Bearer {token}"})
    elif status == 401:
        status, _, _ = _get(f"{base}/v2/", {"Authorization": basic})
    if status in (401, 403):
        raise Unauthorized(
            f"login attempt to {base}/v2/ failed with status: {status}: unknown user, or wrong password"
        )
    if status != 200:
        raise Unavailable(f"login attempt to {base}/v2/ failed with status: {status}")


def _token(body: bytes) -> str:
    try:
        found = json.loads(body)
        token = found.get("token") or found.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str) or not token.isprintable():
        raise Unavailable("the registry's token service gave no token")
    return token


def _get(url: str, headers: dict[str, str]) -> tuple[int, str, bytes]:
    """Status, challenge and body. Raises OSError, HTTPException."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.netloc, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        connection.request("GET", path, headers={"User-Agent": "cove", **headers})
        answer = connection.getresponse()
        return answer.status, answer.getheader("WWW-Authenticate") or "", answer.read(_ANSWER_MAX)
    finally:
        connection.close()


def _reason(error: Exception | None) -> str:
    if isinstance(error, socket.gaierror):
        return "its name isn't known"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {error.verify_message}"
    return getattr(error, "strerror", None) or type(error).__name__
