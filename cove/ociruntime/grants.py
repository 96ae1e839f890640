"""Capabilities that this host can't give: left out with a warning, as the specification asks (config.md, "Linux
Process": a runtime "SHOULD NOT fail if the container configuration requests capabilities that cannot be granted")."""

from __future__ import annotations

import msgspec

from cove.runtime import capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.log import Log
    from cove.runtime.facts import Host
    from cove.runtime.oci import Config, Process


def grant(process: Process, config: Config, host: Host, log: Log) -> Process:
    """The process with the capabilities that it can have. In a user namespace that is every one."""
    sets = process.capabilities
    if sets is None or any(namespace.type == "user" for namespace in config.linux.namespaces):
        return process
    kept = {}
    missing: set[str] = set()
    for kind in type(sets).__struct_fields__:
        names: tuple[str, ...] = getattr(sets, kind)
        kept[kind] = tuple(name for name in names if capabilities.mask((name,)) & host.capabilities)
        missing.update(set(names) - set(kept[kind]))
    if not missing:
        return process
    log.warn(f"process.capabilities: left out, for this host can't give them: {', '.join(sorted(missing))}")
    return msgspec.structs.replace(process, capabilities=msgspec.structs.replace(sets, **kept))
