"""Device requests (`--gpus`, `--device vendor.com/class=name`) → names of CDI devices, and their edits for a start.

Rules are Docker's (moby, daemon/devices.go, cdi.go): the driver "cdi" takes qualified names; a request for
the capability "gpu" without a driver takes the devices of a vendor of GPUs whose specification is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from cove.model.container import Container, DeviceRequest
from cove.model.errors import Invalid
from cove.runtime import cdi, cdi_files, oci
from cove.runtime.spec import StartFacts

GPU_VENDORS = ("nvidia.com", "amd.com")  # in the order of preference


def plan_devices(
    requests: Sequence[DeviceRequest], registry: cdi.Registry, directories: Sequence[str]
) -> list[str]:
    """The qualified names that requests ask for. Raises `Invalid` for a request that no driver answers."""
    names: list[str] = []
    for request in requests:
        if request.driver == "cdi":
            if request.count:
                raise Invalid("CDI device injection failed: unexpected count in CDI device request")
            if request.options:
                raise Invalid("CDI device injection failed: unexpected options in CDI device request")
            names += request.device_ids
        elif request.driver in ("", "nvidia", "amd") and _wants_gpu(request):
            names += _gpus(request, registry, directories)
        else:
            raise Invalid(_no_driver(request, directories))
    return names


def _wants_gpu(request: DeviceRequest) -> bool:
    """Capabilities are alternatives, each a set of which all are needed; with a driver named they don't count."""
    return bool(request.driver) or any("gpu" in wanted for wanted in request.capabilities)


def _gpus(request: DeviceRequest, registry: cdi.Registry, directories: Sequence[str]) -> list[str]:
    vendors = (f"{request.driver}.com",) if request.driver else GPU_VENDORS
    kinds = {name.partition("=")[0] for name in registry.devices}
    kind = next((f"{vendor}/gpu" for vendor in vendors if f"{vendor}/gpu" in kinds), "")
    if not kind:
        raise Invalid(_no_driver(request, directories))
    if request.device_ids:
        return [name if "=" in name else f"{kind}={name}" for name in request.device_ids]
    if request.count < 0:
        return [f"{kind}=all"]
    return [f"{kind}={index}" for index in range(request.count)]


def _no_driver(request: DeviceRequest, directories: Sequence[str]) -> str:
    wanted = " ".join(f"[{' '.join(words)}]" for words in request.capabilities)
    where = " and ".join(directories) or "directories, of which none is configured"
    refusal = f'could not select device driver "{request.driver}" with capabilities: [{wanted}]'
    return f"{refusal}: Cove takes devices from CDI specifications in {where}"


async def find_device_edits(requests: Sequence[DeviceRequest], directories: Sequence[str]) -> cdi.Edits:
    """What requests bring into a container, as the specifications say now. Raises `Invalid`, `NotFound`."""

    def find() -> cdi.Edits:
        registry = cdi_files.read_registry(directories)
        return cdi.find_edits(registry, plan_devices(requests, registry, directories))

    return await asyncio.to_thread(find)


def with_device_edits(container: Container, edits: cdi.Edits) -> Container:
    """The container with the variables and groups of its devices."""
    env = {entry.partition("=")[0]: entry for entry in (*container.env, *edits.env)}
    groups = (*container.spec.group_add, *(str(gid) for gid in edits.additional_gids))
    spec = msgspec.structs.replace(container.spec, group_add=groups)
    return msgspec.structs.replace(container, env=tuple(env.values()), spec=spec)


def with_device_nodes(facts: StartFacts, edits: cdi.Edits) -> StartFacts:
    """The facts of a start with the device nodes. Raises `Invalid` for one that isn't here."""
    nodes, rules = cdi_files.find_nodes(edits)
    paths = {node.path for node in nodes}
    kept: tuple[oci.LinuxDevice, ...] = tuple(node for node in facts.devices if node.path not in paths)
    return replace(facts, devices=kept + nodes, device_rules=facts.device_rules + rules)
