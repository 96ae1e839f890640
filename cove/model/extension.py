"""What a container can be asked for beyond Docker's API (docs/beyond-docker.md). No I/O."""

from __future__ import annotations

from typing import Literal

from cove.model.base import Model

OnUnhealthy = Literal["none", "kill", "stop", "restart"]


class Probe(Model, frozen=True, kw_only=True):
    """A health check that needs no process in the container: a connection made in its network namespace."""

    scheme: Literal["http", "https", "tcp"]
    port: int
    host: str = ""  # an address; "" is the container's own loopback, IPv4 first
    path: str = "/"
    status_low: int = 200  # answers from here …
    status_high: int = 399  # … to here are healthy
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path if self.scheme != 'tcp' else ''}"


class SecretUse(Model, frozen=True, kw_only=True):
    """A secret as a file below /run/secrets; one without a name came with the create, and the engine gives its id."""

    name: str
    target: str  # a file's name
    uid: int = 0
    gid: int = 0
    mode: int = 0o444
    id: str = ""


class Dependency(Model, frozen=True, kw_only=True):
    """What a start waits for."""

    container: str  # a name, as given
    condition: Literal["started", "healthy", "completed"]


class Extension(Model, frozen=True, kw_only=True):
    """The settings of one container; every default is Docker's behaviour."""

    on_unhealthy: OnUnhealthy = "none"
    probe: Probe | None = None
    secrets: tuple[SecretUse, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    pod: str = ""  # the name of the pod that it's in, or holds
    infra: bool = False  # it holds the pod
    init: Literal["", "auto"] = ""  # auto: an init as process 1, unless the command is one
    depends_timeout_s: int = 0  # 0: the default, a minute
