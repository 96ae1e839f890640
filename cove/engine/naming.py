"""The engine's hold on the embedded DNS server: when a container comes, changes and goes.

Decides nothing (`resolving` does); holds the server's service, and knows where the host's resolv.conf is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cove.engine.files import host_resolv, host_resolver_file
from cove.engine.resolving import plan_client, plan_records
from cove.engine.types import View
from cove.model.container import Container, Endpoint
from cove.model.objects import Network
from cove.network.dns.client import DnsService, Visit
from cove.network.dns.names import Client
from cove.runtime.launch import Task


class Naming:
    """See the module. `stub`: this daemon's network has the host's loopback, and so what serves names there."""

    def __init__(
        self, run_dir: Path, visit: Visit, find_network: Callable[[str], Network], *, stub: bool
    ) -> None:
        self._service = DnsService(run_dir / "dns", visit)
        self._find_network = find_network
        self._stub = stub

    def start(self) -> None:
        """All containers that run are adopted: find the server that they had, or start one."""
        self._service.start()

    async def close(self) -> None:
        await self._service.close()

    async def uninstall(self) -> None:
        await self._service.uninstall()

    def client(self, container: Container, endpoints: Sequence[Endpoint]) -> Client | None:
        """What the server has to know of a container; None: this one doesn't ask it."""
        text = host_resolver_file() if self._stub else host_resolv()
        return plan_client(container, endpoints, self._find_network, text, loopback=self._stub)

    async def serve(self, container: Container, endpoints: Sequence[Endpoint], namespace: int) -> None:
        """Answer a container before its first process runs, and others about it. Raises HostError."""
        client = self.client(container, endpoints)
        if client is not None:
            await self._service.serve(client, plan_records(container, endpoints), namespace)

    def watch(self, container_id: str, task: Task) -> None:
        """The container runs: its end counts, too, when no daemon is there to tell of it."""
        if task.exited is None:  # else its end is about to be taken in here
            self._service.watch(container_id, task.pid, task.pidfd)

    async def change(self, container: Container, endpoints: Sequence[Endpoint], namespace: int) -> None:
        """The networks of a container that runs have changed. Raises HostError."""
        if self._service.serves(container.id):
            self.update(container, endpoints)
        else:
            client = self.client(container, endpoints)
            if client is not None:
                await self._service.serve(client, plan_records(container, endpoints), namespace, again=True)

    def update(self, container: Container, endpoints: Sequence[Endpoint]) -> None:
        """The names or networks of a container that may be served have changed; it has no new one to be served on."""
        client = self.client(container, endpoints)
        if client is None:
            self._service.leave(container.id)
        else:
            self._service.update(client, plan_records(container, endpoints))

    def adopt(self, view: View, task: Task) -> None:
        """A container runs since before this daemon."""
        container, endpoints = view.container, view.state.endpoints
        client = self.client(container, endpoints)
        if client is not None and task.exited is None:
            self._service.adopt(client, plan_records(container, endpoints), task.pid, task.pidfd)

    def leave(self, container_id: str) -> None:
        """The container is gone. Idempotent."""
        self._service.leave(container_id)
