"""What a container gets that its caller didn't ask for: the daemon's defaults. Pure.

They are settled at create and kept in the container's record, so that a reload of the daemon's configuration counts
for later containers alone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cove.engine.types import Settings
from cove.logs.drivers import merge_defaults
from cove.model.container import ContainerSpec, LogConfig


def with_defaults(spec: ContainerSpec, settings: Settings) -> ContainerSpec:
    """The spec with the daemon's defaults for what it leaves open."""
    changes: dict[str, Any] = {}
    for name, value in (
        ("shm_size_bytes", settings.default_shm_size_bytes),
        ("ipc_mode", settings.default_ipc_mode),
        ("cgroupns_mode", settings.default_cgroupns_mode),
        ("dns", settings.dns),
        ("dns_search", settings.dns_search),
        ("dns_options", settings.dns_options),
    ):
        if value and not getattr(spec, name):
            changes[name] = value
    for name, on in (("init", settings.init), ("no_new_privileges", settings.no_new_privileges)):
        if on and getattr(spec, name) is None:
            changes[name] = True
    if settings.default_ulimits:
        own = {limit.name for limit in spec.ulimits}
        added = tuple(limit for limit in settings.default_ulimits if limit.name not in own)
        changes["ulimits"] = (*spec.ulimits, *added)
    if settings.publish_address and spec.ports:
        changes["ports"] = tuple(
            port if port.host_ip else msgspec.structs.replace(port, host_ip=settings.publish_address)
            for port in spec.ports
        )
    return msgspec.structs.replace(spec, **changes) if changes else spec


def default_log(asked: LogConfig, settings: Settings) -> LogConfig:
    """The log driver and its options, the daemon's merged in."""
    default = LogConfig(driver=settings.default_log_driver, options=dict(settings.default_log_options))
    return merge_defaults(asked, default)
