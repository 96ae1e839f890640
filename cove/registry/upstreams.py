"""Other registries that this one is a cache of: which one a name belongs to, and asking it.

    --proxy https://HOST[/PREFIX]          of every repository that no other option names
    --proxy NAME=https://HOST[/PREFIX]     of NAME/…, and of what containerd asks for with ?ns=NAME

Choosing is pure. Asking is blocking, for threads: the transport is the image store's own (cove.image.registry), with
its bounds, retries, tokens and certs.d. An upstream is a stranger: what it sends is checked by whoever asked.
"""

from __future__ import annotations

import base64
import binascii
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cove import __version__
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Endpoint
from cove.image.registry.messages import Timing
from cove.image.registry.tls import Trust
from cove.image.registry.transport import Client, Connections
from cove.model.errors import Invalid
from cove.registry.names import parse_name
from cove.registry.refusals import Refused

DOCKER_HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]{1,5})?", re.ASCII)
TIMING = Timing(attempts=3, patience_s=20.0, connect_s=5.0, head_s=30.0)
CLIENTS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A registry to ask. `name` is the first part of its repositories' names here; "" for the one of all others."""

    name: str
    url: str
    prefix: str = ""  # of its repositories' names there

    def remote(self, name: str) -> str:
        """What a repository of this name here is called there."""
        rest = name.removeprefix(f"{self.name}/") if self.name else name
        return f"{self.prefix}/{rest}" if self.prefix else rest


def parse_upstreams(options: Sequence[str]) -> tuple[Upstream, ...]:
    """What --proxy says. Raises Invalid."""
    found: dict[str, Upstream] = {}
    for text in options:
        head, equals, tail = text.partition("=")
        name, url = (head, tail) if equals and "://" not in head else ("", text)
        parts = urlsplit(url)
        try:
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if (
            not good
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
            or (equals and name and not _NAME.fullmatch(name))
        ):
            raise Invalid(
                f"--proxy {text}: expected [NAME=]https://HOST[/PREFIX] without a user, e.g. "
                "docker.io=https://registry-1.docker.io"
            )
        prefix = parts.path.strip("/")
        if prefix:
            try:
                parse_name(prefix)
            except Refused as refused:
                raise Invalid(f"--proxy {text}: {refused.message}") from None
        if name in found:
            raise Invalid(f"--proxy {text}: there is one for {name or 'all repositories'} already")
        found[name] = Upstream(name=name, url=f"{parts.scheme}://{parts.netloc}", prefix=prefix)
    return tuple(found.values())


def choose(upstreams: Sequence[Upstream], name: str, namespace: str) -> tuple[str, Upstream | None]:
    """The repository's name here, and whose it is; None: it is this registry's own. `namespace` is ?ns=."""
    by_name = {each.name: each for each in upstreams}
    if namespace and namespace in by_name:
        name = f"{namespace}/{name}"
    first, slash, rest = name.partition("/")
    if slash and first and first in by_name:
        if first == DOCKER_HUB and "/" not in rest:
            name = f"{first}/library/{rest}"
        return name, by_name[first]
    return name, by_name.get("")


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct):
    auths: dict[str, _Entry] = {}


def read_credentials(path: Path) -> dict[str, Credentials]:
    """What a file in the form of docker's config.json has, by host. Raises Invalid; no error has a password."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError as error:
        raise Invalid(f"--proxy-credentials {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Invalid(
            f'--proxy-credentials {path}: expected docker\'s config.json: {{"auths": {{"HOST": {{"auth": "…"}}}}}}'
        ) from None
    found = {}
    for key, entry in config.auths.items():
        username, password = entry.username, entry.password
        if entry.auth:
            try:
                username, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                raise Invalid(
                    f"--proxy-credentials {path}: {key}: auth isn't base64 of NAME:PASSWORD"
                ) from None
        host = (
            "registry-1.docker.io"
            if key in _HUB_KEYS
            else urlsplit(key if "://" in key else f"//{key}").netloc
        )
        found[host] = Credentials(username=username, password=password, identity_token=entry.identitytoken)
    return found


class Upstreams:
    """Clients of the upstreams, one for each repository, the newest kept. For several threads."""

    def __init__(self, upstreams: Sequence[Upstream], credentials: Mapping[str, Credentials]) -> None:
        """Reads certs.d and the system's authorities. Raises Invalid."""
        self.known = tuple(upstreams)
        self._credentials = credentials
        hosts = [urlsplit(each.url).netloc for each in upstreams]
        self._connections = Connections(_resolve, Trust(hosts), TIMING, f"cove-registry/{__version__}")
        self._clients: dict[tuple[str, str], Client] = {}

    def client(self, upstream: Upstream, name: str) -> Client:
        """For the repository that is called so here."""
        key = upstream.url, upstream.remote(name)
        client = self._clients.get(key)
        if client is None:
            credentials = self._credentials.get(urlsplit(upstream.url).netloc, Credentials())
            client = Client(self._connections, Endpoint(url=upstream.url), credentials, key[1])
            if len(self._clients) >= CLIENTS_MAX:
                self._clients.pop(next(iter(self._clients)), None)
            self._clients[key] = client
        return client


def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(str(each[4][0]), port) for each in found]
