"""The networks of one daemon: what the engine calls.

Signatures first; the parts land one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.objects import IpamPool, Network
from cove.network.model import Alive, Attachment, NetworkSettings
from cove.store.interface import Store


class Networks:
    """See the module."""

    @classmethod
    async def open(cls, store: Store, *, settings: NetworkSettings, run_dir: str) -> Networks:
        """Make or repair bridges and rules, and start filling the pool.

        Never fails for a missing kernel feature: bridge networks then raise Unavailable when used.
        """
        raise NotImplementedError

    def list_networks(self) -> list[Network]:
        """All networks: the three built-in ones, then the others by name."""
        raise NotImplementedError

    def find_network(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id; "default" is the default bridge. NotFound, Invalid."""
        raise NotImplementedError

    def members(self, network_id: str) -> list[tuple[str, Endpoint]]:
        """The container ids and endpoints that are connected now (what network inspect shows)."""
        raise NotImplementedError

    async def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        ipam: Sequence[IpamPool] = (),
        ipv6: bool = False,
        internal: bool = False,
        attachable: bool = False,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Network:
        """Make a network. Conflict (name in use), Invalid, Forbidden, Unavailable."""
        raise NotImplementedError

    async def remove(self, name_or_id: str) -> Network:
        """Remove a network. NotFound, Forbidden (built-in), Conflict (has endpoints)."""
        raise NotImplementedError

    async def connect(
        self,
        container_id: str,
        requests: Sequence[EndpointSpec],
        ports: Sequence[PortBinding],
        hostname: str,
    ) -> Attachment:
        """Attach a container that is about to start. Nothing remains of a call that raised.

        The first request is eth0, the next eth1 …; the first that isn't internal has the default route.
        Raises NotFound, Invalid, Conflict (address in use), PortInUse, Unavailable, HostError.
        """
        raise NotImplementedError

    async def disconnect(self, container_id: str) -> None:
        """Take a container's ports and addresses back. Idempotent; slow deletions happen behind."""
        raise NotImplementedError

    async def attach(self, container_id: str, request: EndpointSpec, namespace: int) -> Endpoint:
        """Connect a running container to one more network; `namespace` is a descriptor, borrowed."""
        raise NotImplementedError

    async def detach(self, container_id: str, network: str) -> None:
        """Disconnect a running container from one network. NotFound when it isn't connected."""
        raise NotImplementedError

    async def reconcile(self, alive: Mapping[str, Alive]) -> None:
        """After a restart: publish again what is alive, free everything else."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop helping: pool, listeners and threads go; bridges, rules and living containers stay."""
        raise NotImplementedError

    async def uninstall(self) -> None:
        """Remove every link, table and rule of this daemon from the host, then close."""
        raise NotImplementedError
