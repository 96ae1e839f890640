"""Images, volumes, networks and events: records without behaviour. No I/O."""

from __future__ import annotations

from typing import Literal

from cove.model.container import HealthCheck, Model


class ImageConfig(Model, frozen=True, kw_only=True):
    """The part of an image's configuration that containers inherit (OCI image-spec, config.md)."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: HealthCheck | None = None
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()


class HistoryEntry(Model, frozen=True, kw_only=True):
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class Image(Model, frozen=True, kw_only=True):
    """An image: its id is the digest of its configuration blob."""

    id: str  # "sha256:…"
    names: tuple[str, ...] = ()  # familiar references: "debian:latest"
    repo_digests: tuple[str, ...] = ()
    created: str = ""  # RFC 3339, as the image says
    architecture: str = ""
    variant: str = ""
    os: str = "linux"
    author: str = ""
    comment: str = ""
    config: ImageConfig = ImageConfig()
    diff_ids: tuple[str, ...] = ()  # lowest layer first
    history: tuple[HistoryEntry, ...] = ()
    size_bytes: int = 0
    parent: str = ""
    last_tagged_ns: int = 0


class VolumeRecord(Model, frozen=True, kw_only=True):
    name: str
    driver: str = "local"
    scope: Literal["local", "global"] = "local"
    mountpoint: str  # of a driver's volume: as the driver told last
    created_ns: int
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    anonymous: bool = False
    sized: Literal["", "project", "image"] = (
        ""  # what keeps it to its size: a project quota, or an image file
    )
    size_bytes: int = 0  # its limit, where it has one


class IpamPool(Model, frozen=True, kw_only=True):
    subnet: str
    gateway: str = ""
    ip_range: str = ""
    auxiliary: dict[str, str] = {}  # name → address that is never given out


class Network(Model, frozen=True, kw_only=True):
    """A network; the three built-in ones are bridge, host and none."""

    id: str
    name: str
    driver: str
    created_ns: int
    ipam: tuple[IpamPool, ...] = ()
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    bridge: str = ""  # the link's name on the host: the bridge's, or the parent's that interfaces hang on
    link_made: bool = False  # the parent is Cove's own, and goes with the network
    mtu: int = 0
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    ipam_options: dict[str, str] = {}


class Event(Model, frozen=True, kw_only=True):
    """Something that happened to an object, as `docker events` shows it."""

    kind: str  # container, image, volume, network, daemon
    action: str
    actor_id: str
    attributes: dict[str, str] = {}
    time_ns: int
