"""A container of a pod → a create body. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cove.kube import fields
from cove.kube.configs import Configs, Meta, expand, read_env
from cove.kube.probes import plan_health
from cove.kube.quantity import read_bytes, read_milli_cpus
from cove.kube.reading import At
from cove.kube.types import CONTAINER_LABEL, LABEL, ContainerPlan
from cove.kube.volumes import PodVolume, plan_mounts

MAX_ID = 2**31 - 1
_SHARES_OF_A_CPU = 1024
_DEPENDS_TIMEOUT = "24h"  # for as long as an init container works
_PROTOCOLS = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodContext:
    """What a pod says for all of its containers."""

    name: str
    owner: str
    meta: Meta
    labels: Mapping[str, str]
    security: At
    configs: Configs
    volumes: Mapping[str, PodVolume]
    restart: Mapping[str, Any]  # RestartPolicy of a create body
    stop_timeout_s: int
    host_pid: bool
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Ports:
    """The ports of a pod, which are its infra container's."""

    exposed: dict[str, dict[str, Any]] = field(default_factory=dict)
    bindings: dict[str, list[dict[str, str]]] = field(default_factory=dict)


def read_ports(container: At, ports: Ports, *, host_network: bool) -> dict[str, int]:
    """Put a container's ports to the pod's; by name, for its probes."""
    named = {}
    for at in container.get("ports").items():
        at.check(fields.PORT)
        at.need("containerPort", "80")
        port = at.get("containerPort").number(0, 1, 65535)
        protocol = at.get("protocol").choice(_PROTOCOLS, "TCP").lower()
        host_port = at.get("hostPort").number(0, 0, 65535)
        host_ip = at.get("hostIP").text()
        if at.get("name"):
            named[at.get("name").text()] = port
        if host_network and host_port not in (0, port):
            raise at.get("hostPort").error(
                f"with hostNetwork it can't be other than the containerPort, {port}"
            )
        if host_ip and not host_port:
            raise at.get("hostIP").error("is of use beside a hostPort alone: leave it out, or give one")
        key = f"{port}/{protocol}"
        ports.exposed[key] = {}
        if host_port and not host_network:
            binding = {"HostIp": host_ip, "HostPort": str(host_port)}
            taken = ports.bindings.setdefault(key, [])
            if binding in taken:
                raise at.get("hostPort").error(f"{host_port} is published twice: leave one out")
            taken.append(binding)
    return named


def plan_container(
    at: At, pod: PodContext, ports: Mapping[str, int], depends: str, *, init: bool
) -> ContainerPlan:
    """`depends` is what its start waits for, by the key depends-on."""
    name = at.need("name", "app").label("app")
    image = at.need("image", "debian:latest").text()
    if not image:
        raise at.get("image").error("an image is needed, e.g. debian:latest")
    policy = at.get("imagePullPolicy").choice(("", "Always", "IfNotPresent", "Never"), "")
    if policy == "Always":
        raise at.get("imagePullPolicy").error(
            "a play pulls nothing: bring the image with cove pull, and say IfNotPresent"
        )
    stays = at.get("restartPolicy").choice(("", "Always"), "") == "Always"
    if stays and not init:
        raise at.get("restartPolicy").error("a container has the pod's restartPolicy: leave it out")
    if init and not stays:
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            if at.get(probe):
                raise at.get(probe).error("an init container has none: leave it out")
    restart = {"Name": "always"} if stays else {"Name": "no"} if init else pod.restart
    env = read_env(at, pod.configs, pod.meta)
    body: dict[str, Any] = {
        "Image": image,
        "Labels": {**pod.labels, LABEL: pod.owner, CONTAINER_LABEL: name},
        "Env": [f"{key}={value}" for key, value in env.items()],
        "StopTimeout": pod.stop_timeout_s,
    }
    for field_name, key in (("command", "Entrypoint"), ("args", "Cmd")):
        if at.get(field_name):
            body[key] = [expand(word, env) for word in at.get(field_name).texts()]
    if at.get("workingDir"):
        body["WorkingDir"] = at.get("workingDir").path_text("/srv")
    for field_name, key in (("tty", "Tty"), ("stdin", "OpenStdin"), ("stdinOnce", "StdinOnce")):
        if at.get(field_name).flag():
            body[key] = True
    host: dict[str, Any] = {"RestartPolicy": dict(restart)}
    if pod.meta.annotations:
        host["Annotations"] = dict(pod.meta.annotations)
    mounts, devices = plan_mounts(at, pod.volumes)
    if mounts:
        host["Mounts"] = mounts
    if devices:
        host["Devices"] = devices
    if pod.host_pid:
        host["PidMode"] = "host"
    host.update(_resources(at))
    user, security = _security(at, pod.security)
    host.update(security)
    if user:
        body["User"] = user
    health, cove = plan_health(at, ports, restarts=restart["Name"] != "no", warnings=pod.warnings)
    if health:
        body["Healthcheck"] = health
    body["HostConfig"] = host
    body["Cove"] = {**cove, "pod": pod.name, "depends-on": depends, "depends-timeout": _DEPENDS_TIMEOUT}
    return ContainerPlan(name=f"{pod.name}-{name}", body=body, init=init and not stays)


def _resources(container: At) -> dict[str, Any]:
    at = container.get("resources").check(fields.RESOURCES)
    limits = at.get("limits").check(fields.AMOUNTS)
    requests = at.get("requests").check(fields.AMOUNTS)
    cpu, memory = read_milli_cpus(limits.get("cpu")), read_bytes(limits.get("memory"))
    share, reserved = read_milli_cpus(requests.get("cpu")), read_bytes(requests.get("memory"))
    found: dict[str, Any] = {}
    if cpu:
        found["NanoCpus"] = cpu * 1_000_000
    if memory:
        # a limit is one of memory: Kubernetes gives no swap by default
        found["Memory"] = found["MemorySwap"] = memory
    if share:
        if cpu and share > cpu:
            raise requests.get("cpu").error("is more than the limit: ask for less")
        found["CpuShares"] = max(2, share * _SHARES_OF_A_CPU // 1000)
    if reserved:
        if memory and reserved > memory:
            raise requests.get("memory").error("is more than the limit: ask for less")
        found["MemoryReservation"] = reserved
    return found


def _security(container: At, pod: At) -> tuple[str, dict[str, Any]]:
    """The user, and what `HostConfig` has of the rest; a container's own word counts before the pod's."""
    own = container.get("securityContext").check(fields.CONTAINER_SECURITY)

    def chosen(name: str) -> At:
        return own.get(name) if own.get(name) else pod.get(name)

    user, group = chosen("runAsUser"), chosen("runAsGroup")
    uid, gid = user.number(-1, 0, MAX_ID), group.number(-1, 0, MAX_ID)
    if gid >= 0 and uid < 0:
        raise group.error("needs a runAsUser beside it: give both")
    if chosen("runAsNonRoot").flag() and uid <= 0:
        raise chosen("runAsNonRoot").error("needs a runAsUser other than 0, e.g. runAsUser: 1000")
    found: dict[str, Any] = {}
    groups = [str(one.number(0, 0, MAX_ID)) for one in pod.get("supplementalGroups").items(256)]
    if pod.get("fsGroup"):
        groups.append(str(pod.get("fsGroup").number(0, 0, MAX_ID)))
    if groups:
        found["GroupAdd"] = groups
    capabilities = own.get("capabilities").check(fields.CAPABILITIES)
    for name, key in (("add", "CapAdd"), ("drop", "CapDrop")):
        if capabilities.get(name):
            found[key] = capabilities.get(name).texts()
    privileged = own.get("privileged").flag()
    if privileged:
        found["Privileged"] = True
    if own.get("readOnlyRootFilesystem").flag():
        found["ReadonlyRootfs"] = True
    options = []
    if not own.get("allowPrivilegeEscalation").flag(True):
        if privileged:
            raise own.get("allowPrivilegeEscalation").error("a privileged container escalates: leave one out")
        options.append("no-new-privileges=true")
    seccomp = chosen("seccompProfile").check(fields.SECCOMP)
    if seccomp:
        seccomp.need("type", "RuntimeDefault")
        if seccomp.get("type").choice(("RuntimeDefault", "Unconfined"), "") == "Unconfined":
            options.append("seccomp=unconfined")
    if own.get("procMount").choice(("Default", "Unmasked"), "Default") == "Unmasked":
        options.append("systempaths=unconfined")
    if options:
        found["SecurityOpt"] = options
    return (f"{uid}:{gid}" if gid >= 0 else str(uid)) if uid >= 0 else "", found
