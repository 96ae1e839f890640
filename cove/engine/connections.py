"""Networks of a container after its creation: connect and disconnect, running or not.

What is asked for is kept in the container's record, so that the next start does the same; a running
container's network namespace is changed at once, and its hosts file follows.
"""

from __future__ import annotations

import os

import msgspec

from cove.engine.lifecycle import Lifecycle
from cove.engine.links import has_links, without_link
from cove.engine.parts import Parts
from cove.engine.start import network_requests
from cove.engine.types import View
from cove.model.container import Container, ContainerSpec, EndpointSpec
from cove.model.errors import Conflict, Forbidden, Invalid, NotFound
from cove.network.model import Attachment
from cove.runtime.launch import Task


class Connections:
    """connect and disconnect; each holds the container's lock."""

    def __init__(self, parts: Parts, lifecycle: Lifecycle) -> None:
        self._parts = parts
        self._lifecycle = lifecycle

    async def connect(self, container_id: str, request: EndpointSpec) -> None:
        """Raises Forbidden when the container is connected already, Invalid when it shares a namespace."""
        network = self._parts.networks.find_network(request.network)
        live = self._lifecycle.live(container_id)
        async with live.lock:
            view = self._parts.registry.find(container_id)
            _check_own_namespace(view.container)
            if network.id in self._network_ids(view.container):
                raise Forbidden(
                    f"endpoint with name {view.container.name} already exists in network {network.name}"
                )
            held = _held(view)
            if live.task is not None:
                namespace = await _open_namespace(live.task)
                try:
                    held = await self._parts.networks.attach(container_id, request, namespace)
                    await self._name(view, held, namespace, live.task, network.id)
                finally:
                    os.close(namespace)
            named = msgspec.structs.replace(request, network=network.name)
            spec = plan_connected(view.container.spec, named)
            await self._commit(view, spec, held)

    async def disconnect(self, container_id: str, network_id: str) -> None:
        """Raises NotFound when the container isn't connected."""
        network = self._parts.networks.find_network(network_id)
        live = self._lifecycle.live(container_id)
        async with live.lock:
            view = self._parts.registry.find(container_id)
            _check_own_namespace(view.container)
            if network.id not in self._network_ids(view.container):
                raise NotFound(f"container {view.container.id} is not connected to network {network.name}")
            held = _held(view)
            if view.state.pid:
                namespace = await _open_namespace(live.task) if live.task is not None else -1
                try:
                    held = await self._parts.networks.detach(container_id, network.id, namespace)
                finally:
                    if namespace >= 0:
                        os.close(namespace)
            requests = [
                request
                for request in network_requests(view.container)
                if self._id_of(request.network) != network.id
            ]
            await self._commit(view, plan_disconnected(view.container.spec, requests), held)

    async def unlink(self, container_id: str, alias: str) -> None:
        """Take a legacy link away. Raises NotFound."""
        async with self._lifecycle.live(container_id).lock:
            view = self._parts.registry.find(container_id)
            changed = without_link(view.container, alias)
            await self._commit(view, changed.spec, _held(view))

    async def _name(self, view: View, held: Attachment, namespace: int, task: Task, network_id: str) -> None:
        """A container that runs is on one more network; not if the DNS server can't serve it there."""
        try:
            await self._parts.naming.change(view.container, held.endpoints, namespace)
            self._parts.naming.watch(view.container.id, task)
        except BaseException:
            await self._parts.networks.detach(view.container.id, network_id, namespace)
            raise

    def _network_ids(self, container: Container) -> set[str]:
        return {self._id_of(request.network) for request in network_requests(container)}

    def _id_of(self, network: str) -> str:
        """A network's id; "" for one that was removed since."""
        try:
            return self._parts.networks.find_network(network).id
        except NotFound:
            return ""

    async def _commit(self, view: View, spec: ContainerSpec, held: Attachment) -> None:
        container = msgspec.structs.replace(view.container, spec=spec)
        await self._parts.registry.set_container(container)
        if has_links(container):
            self._parts.linking.add(container.id)
        if view.state.pid:
            state = msgspec.structs.replace(view.state, endpoints=held.endpoints, ports=held.ports)
            await self._parts.registry.set_state(container.id, state)
            self._parts.naming.update(container, held.endpoints)
            self._parts.write_files(container, held.endpoints)
            self._parts.refresh_hosts(container)


def _held(view: View) -> Attachment:
    return Attachment(namespace=-1, endpoints=tuple(view.state.endpoints), ports=tuple(view.state.ports))


async def _open_namespace(task: Task) -> int:
    """A descriptor of a running process's network namespace. Conflict when the process has just ended."""
    try:
        namespace = os.open(f"/proc/{task.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise Conflict(f"process {task.pid} has ended: the container is not running any more") from None
    try:
        await task.signal(0)  # still that process: the number isn't another's by now
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _check_own_namespace(container: Container) -> None:
    mode = container.spec.network_mode
    if mode == "host" or mode.startswith("container:"):
        raise Invalid(
            "container sharing network namespace with another container or host "
            "cannot be connected to any other network"
        )
    if container.spec.network_disabled:
        raise Conflict("the container's networking is disabled: create it without NetworkDisabled")


def plan_connected(spec: ContainerSpec, request: EndpointSpec) -> ContainerSpec:
    """The spec with one more network. Pure."""
    mode = request.network if spec.network_mode == "none" else spec.network_mode
    return msgspec.structs.replace(spec, network_mode=mode, endpoints=(*spec.endpoints, request))


def plan_disconnected(spec: ContainerSpec, left: list[EndpointSpec]) -> ContainerSpec:
    """The spec with only the networks that are left; the first of them is the main one. Pure."""
    mode = left[0].network if left else "none"
    return msgspec.structs.replace(spec, network_mode=mode, endpoints=tuple(left))
