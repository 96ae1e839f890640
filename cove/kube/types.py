"""What a file asks for, as Cove makes it: volumes, pods, containers. No I/O.

A `body` is that of Docker's `POST /containers/create`, so that what is made is checked and shown like any container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cove.model.container import Container

LABEL = "kube.cove"  # on all that a play makes: KIND/NAME
CONTAINER_LABEL = "kube.cove.container"
HostKind = Literal[
    "", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "BlockDevice", "CharDevice"
]
HOST_KINDS: tuple[HostKind, ...] = (
    "",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
    "BlockDevice",
    "CharDevice",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a volume; its content is a secret, perhaps."""

    content: bytes = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePlan:
    """A volume to make. One that is `kept` may be there already, and down leaves it."""

    name: str
    owner: str  # KIND/NAME
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)  # by their path below it
    directories: tuple[str, ...] = ()
    mode: int | None = None
    group: int | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPath:
    """What has to be at a path of the host before a container is made."""

    shown: str  # the value's place in the file
    path: str
    kind: HostKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    name: str
    body: Mapping[str, Any] = field(repr=False)
    init: bool = False

    @property
    def image(self) -> str:
        return str(self.body["Image"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    name: str
    owner: str
    body: Mapping[str, Any] = field(repr=False)
    containers: tuple[ContainerPlan, ...] = ()  # in the order of their start
    host_paths: tuple[HostPath, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Volumes come before pods; down removes pods before volumes."""

    volumes: tuple[VolumePlan, ...] = ()
    pods: tuple[PodPlan, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is said beside the file."""

    network: str = ""
    publish: tuple[str, ...] = ()  # [ADDRESS:]PORT:CONTAINER_PORT[/PROTOCOL]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A pod: `infra` holds it; without one it's a container by itself."""

    name: str
    infra: Container | None
    containers: Sequence[Container]
