"""Pods and containers → a Kubernetes file that plays as them. Pure.

What a file can't say of them is told in comments at its head, so that nothing is lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cove.kube.types import CONTAINER_LABEL, LABEL, Group
from cove.model.container import Bind, Container, ContainerSpec, HealthCheck, ImageMount, Tmpfs, Volume

_SECOND_NS = 1_000_000_000
_RESTARTS = {"always": "Always", "unless-stopped": "Always", "on-failure": "OnFailure", "no": "Never"}
_PROPAGATION = {"rslave": "HostToContainer", "rshared": "Bidirectional"}
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")

# what a container can have that a file can't say, but for its default
_UNSAID = (
    "domainname stop_signal volumes_from links seccomp apparmor devices device_requests device_cgroup_rules ulimits "
    "oom_score_adj shm_size_bytes userns_mode cgroupns_mode cgroup_parent storage_size_bytes auto_remove init"
).split()


def generate_file(groups: Sequence[Group]) -> str:
    """YAML with a Pod for each group."""
    import yaml

    notes: list[str] = []
    documents = [_pod(group, notes) for group in groups]
    dumper = yaml.CSafeDumper if hasattr(yaml, "CSafeDumper") else yaml.SafeDumper
    text: str = yaml.dump_all(documents, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return "".join(f"# {note}\n" for note in notes) + text


def name_of(text: str) -> str:
    """A name as Kubernetes has it."""
    return _NOT_A_NAME.sub("-", text.lower()).strip("-")[:63].strip("-") or "x"


def _pod(group: Group, notes: list[str]) -> dict[str, Any]:
    first = group.containers[0] if group.containers else None
    holding = group.infra or first
    holder = holding.spec if holding is not None else None
    labels = {
        key: value
        for key, value in (holder.labels if holder else {}).items()
        if key not in (LABEL, CONTAINER_LABEL) and not key.startswith("cove.")
    }
    metadata: dict[str, Any] = {"name": name_of(group.name)}
    if labels:
        metadata["labels"] = labels
    spec: dict[str, Any] = {}
    policies = {_RESTARTS[one.spec.restart.name] for one in group.containers if not _is_init(one, group)}
    if len(policies) > 1:
        notes.append(f"pod {group.name}: its containers have several restart policies, a pod has one")
    spec["restartPolicy"] = min(policies, default="Always")
    stops = {one.spec.stop_timeout_s for one in group.containers} - {None}
    if stops:
        spec["terminationGracePeriodSeconds"] = max(max(stop or 0, 0) for stop in stops)
    if holder is not None:
        spec.update(_network(holder, group, notes))
    if any(one.spec.pid_mode == "host" for one in group.containers):
        spec["hostPID"] = True
    volumes: dict[str, dict[str, Any]] = {}
    for key, wanted in (("initContainers", True), ("containers", False)):
        found = [
            _container(one, group, volumes, notes)
            for one in group.containers
            if _is_init(one, group) is wanted
        ]
        if found:
            spec[key] = found
    if volumes:
        spec["volumes"] = list(volumes.values())
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _is_init(container: Container, group: Group) -> bool:
    """Whether another one of the pod waits for its end."""
    return any(
        one.container == container.name and one.condition == "completed"
        for other in group.containers
        for one in other.spec.extension.depends_on
    )


def _network(spec: ContainerSpec, group: Group, notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if spec.network_mode == "host":
        found["hostNetwork"] = True
    elif spec.network_mode not in ("", "default", "bridge"):
        notes.append(f"pod {group.name}: its network is {spec.network_mode}: play the file with --network")
    if spec.ipc_mode == "host":
        found["hostIPC"] = True
    if spec.hostname and group.infra is not None and spec.hostname != group.name[:63]:
        found["hostname"] = spec.hostname
    aliases: dict[str, list[str]] = {}
    for entry in spec.extra_hosts:
        host, _, address = entry.partition(":")
        aliases.setdefault(address, []).append(host)
    if aliases:
        found["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in aliases.items()]
    dns: dict[str, Any] = {}
    if spec.dns:
        dns["nameservers"] = list(spec.dns)
    if spec.dns_search:
        dns["searches"] = list(spec.dns_search)
    if spec.dns_options:
        pairs = [option.partition(":") for option in spec.dns_options]
        dns["options"] = [{"name": name, **({"value": value} if value else {})} for name, _, value in pairs]
    if dns:
        found["dnsConfig"] = dns
    if spec.sysctls:
        found["securityContext"] = {
            "sysctls": [{"name": name, "value": value} for name, value in spec.sysctls.items()]
        }
    return found


def _container(
    container: Container, group: Group, volumes: dict[str, dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    spec = container.spec
    default = ContainerSpec(image="")
    unsaid = [field for field in _UNSAID if getattr(spec, field) != getattr(default, field)]
    if spec.extension.secrets:
        unsaid.append("secrets")
    if any(isinstance(mount, ImageMount) for mount in spec.mounts):
        unsaid.append("mounts of images")
    if unsaid:
        notes.append(f"container {container.name}: not in this file: {', '.join(unsaid)}")
    name = spec.labels.get(CONTAINER_LABEL) or name_of(container.name.removeprefix(group.name + "-"))
    found: dict[str, Any] = {"name": name, "image": container.image_name}
    # $ begins a reference in a file
    if spec.entrypoint is not None:
        found["command"] = [word.replace("$", "$$") for word in spec.entrypoint]
    if spec.command is not None:
        found["args"] = [word.replace("$", "$$") for word in spec.command]
    env = [entry.partition("=") for entry in spec.env if "=" in entry]
    if env:
        found["env"] = [{"name": key, "value": value.replace("$", "$$")} for key, _, value in env]
    if spec.working_dir:
        found["workingDir"] = spec.working_dir
    for field, key in (("tty", "tty"), ("open_stdin", "stdin"), ("stdin_once", "stdinOnce")):
        if getattr(spec, field):
            found[key] = True
    holder = group.infra if group.infra is not None else container
    if holder is container or container is group.containers[0]:
        ports = _ports(holder.spec)
        if ports:
            found["ports"] = ports
    mounts = [_mount(mount, volumes) for mount in spec.mounts if not isinstance(mount, ImageMount)]
    if mounts:
        found["volumeMounts"] = mounts
    resources = _resources(spec)
    if resources:
        found["resources"] = resources
    security = _security(spec)
    if security:
        found["securityContext"] = security
    if spec.healthcheck is not None:
        found.update(_probe(spec.healthcheck, spec.extension.on_unhealthy != "none", container.name, notes))
    return found


def _ports(spec: ContainerSpec) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    published = set()
    for port in spec.ports:
        published.add(f"{port.container_port}/{port.protocol}")
        entry: dict[str, Any] = {"containerPort": port.container_port}
        if port.protocol != "tcp":
            entry["protocol"] = port.protocol.upper()
        if port.host_port:
            entry["hostPort"] = port.host_port
            if port.host_ip:
                entry["hostIP"] = port.host_ip
        found.append(entry)
    for text in spec.exposed_ports:
        number, _, protocol = text.partition("/")
        if text not in published:
            found.append(
                {
                    "containerPort": int(number),
                    **({"protocol": protocol.upper()} if protocol != "tcp" else {}),
                }
            )
    return found


def _mount(mount: Bind | Volume | Tmpfs, volumes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if isinstance(mount, Bind):
        key, source = f"host-{mount.source}", {"hostPath": {"path": mount.source}}
        if mount.propagation in _PROPAGATION:
            entry["mountPropagation"] = _PROPAGATION[mount.propagation]
    elif isinstance(mount, Volume) and mount.name:
        key, source = mount.name, {"persistentVolumeClaim": {"claimName": mount.name}}
    elif isinstance(mount, Volume):
        key, source = f"empty-{mount.target}-{len(volumes)}", {"emptyDir": {}}
    else:
        size = {"sizeLimit": str(mount.size_bytes)} if mount.size_bytes else {}
        key, source = f"tmpfs-{mount.target}-{len(volumes)}", {"emptyDir": {"medium": "Memory", **size}}
    volume = volumes.setdefault(key, {"name": "", **source})
    if not volume["name"]:
        taken = {one["name"] for one in volumes.values()}
        name = name_of(key)
        volume["name"] = name if name not in taken else f"{name[:55]}-{len(volumes)}"
    entry = {"name": volume["name"], "mountPath": mount.target, **entry}
    if isinstance(mount, Volume) and mount.subpath:
        entry["subPath"] = mount.subpath
    if not isinstance(mount, Tmpfs) and mount.readonly:
        entry["readOnly"] = True
    return entry


def _resources(spec: ContainerSpec) -> dict[str, Any]:
    given = spec.resources
    limits: dict[str, str] = {}
    requests: dict[str, str] = {}
    if given.nano_cpus > 0:
        limits["cpu"] = f"{-(-given.nano_cpus // 1_000_000)}m"
    elif given.cpu_quota_us > 0:
        limits["cpu"] = f"{-(-given.cpu_quota_us * 1000 // (given.cpu_period_us or 100_000))}m"
    if given.memory_bytes > 0:
        limits["memory"] = str(given.memory_bytes)
    if given.cpu_shares > 0:
        requests["cpu"] = f"{-(-given.cpu_shares * 1000 // 1024)}m"
    if given.memory_reservation_bytes > 0:
        requests["memory"] = str(given.memory_reservation_bytes)
    return {key: value for key, value in (("limits", limits), ("requests", requests)) if value}


def _security(spec: ContainerSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    user, _, group = spec.user.partition(":")
    if user.isdecimal():
        found["runAsUser"] = int(user)
        if group.isdecimal():
            found["runAsGroup"] = int(group)
    if spec.privileged:
        found["privileged"] = True
    if spec.readonly_rootfs:
        found["readOnlyRootFilesystem"] = True
    if spec.no_new_privileges and not spec.privileged:
        found["allowPrivilegeEscalation"] = False
    capabilities = {
        key: [name.removeprefix("CAP_") for name in names]
        for key, names in (("add", spec.cap_add), ("drop", spec.cap_drop))
        if names
    }
    if capabilities:
        found["capabilities"] = capabilities
    if spec.seccomp == "unconfined":
        found["seccompProfile"] = {"type": "Unconfined"}
    return found


def _probe(check: HealthCheck, acts: bool, name: str, notes: list[str]) -> dict[str, Any]:
    handler: dict[str, Any]
    if check.probe is not None:
        where: dict[str, Any] = {"port": check.probe.port}
        if check.probe.host:
            where["host"] = check.probe.host
        if check.probe.scheme == "tcp":
            handler = {"tcpSocket": where}
        else:
            where |= {"path": check.probe.path, "scheme": check.probe.scheme.upper()}
            if check.probe.headers:
                where["httpHeaders"] = [{"name": key, "value": value} for key, value in check.probe.headers]
            handler = {"httpGet": where}
    elif check.test[:1] == ("CMD",):
        handler = {"exec": {"command": list(check.test[1:])}}
    elif check.test[:1] == ("CMD-SHELL",):
        handler = {"exec": {"command": ["/bin/sh", "-c", *check.test[1:]]}}
    else:
        return {}
    for key, value in (
        ("initialDelaySeconds", check.start_period_ns),
        ("periodSeconds", check.interval_ns or 30 * _SECOND_NS),
        ("timeoutSeconds", check.timeout_ns or 30 * _SECOND_NS),
    ):
        if value:
            handler[key] = -(-value // _SECOND_NS)
    handler["failureThreshold"] = check.retries or 3
    return {"livenessProbe" if acts else "readinessProbe": handler}
