"""A PodSpec → a pod and its volumes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cove.kube import fields
from cove.kube.configs import Configs, Meta
from cove.kube.containers import MAX_ID, PodContext, Ports, plan_container, read_ports
from cove.kube.reading import At
from cove.kube.types import LABEL, ContainerPlan, HostPath, Options, PodPlan, VolumePlan
from cove.kube.volumes import read_volumes
from cove.model.errors import Invalid

INFRA = "-infra"
_RESTARTS = {"Always": "always", "OnFailure": "on-failure", "Never": "no"}
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_PUBLISH = re.compile(
    r"(?:(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp|sctp))?"
)


def plan_pod(
    spec: At,
    *,
    name: str,
    owner: str,
    meta: Meta,
    configs: Configs,
    options: Options,
    restarts: tuple[str, ...] = ("Always", "OnFailure", "Never"),
    tries: int | None = None,
) -> tuple[PodPlan, tuple[VolumePlan, ...], tuple[str, ...]]:
    """The pod, its volumes, and warnings. `tries` is how often on-failure starts again; None: always."""
    spec.check(fields.POD_SPEC)
    policy = spec.get("restartPolicy").choice(restarts, restarts[0])
    restart: dict[str, Any] = {"Name": _RESTARTS[policy]}
    if tries is not None and policy == "OnFailure":
        restart = {"Name": "on-failure", "MaximumRetryCount": tries} if tries else {"Name": "no"}
    security = spec.get("securityContext").check(fields.POD_SECURITY)
    group = security.get("fsGroup").number(0, 0, MAX_ID) if security.get("fsGroup") else None
    volumes = read_volumes(spec, name, owner, configs, group)
    host_network = spec.get("hostNetwork").flag()
    pod = PodContext(
        name=name,
        owner=owner,
        meta=meta,
        labels=meta.labels,
        security=security,
        configs=configs,
        volumes=volumes,
        restart=restart,
        stop_timeout_s=spec.get("terminationGracePeriodSeconds").number(30, 0, 1 << 30),
        host_pid=spec.get("hostPID").flag(),
    )
    ports = Ports()
    depends = f"{name}{INFRA}:started"
    containers: list[ContainerPlan] = []
    inits, others = list(spec.get("initContainers").items(64)), list(spec.get("containers").items(256))
    if not others:
        raise spec.get("containers").error("a pod needs a container, e.g. - {name: app, image: debian}")
    for at in (*inits, *others):
        init = len(containers) < len(inits)
        at.check(fields.CONTAINER)
        named = read_ports(at, ports, host_network=host_network)
        plan = plan_container(at, pod, named, depends, init=init)
        if any(one.name == plan.name for one in containers):
            raise at.get("name").error("two containers of the pod have this name: rename one")
        if plan.name == name + INFRA:
            raise at.get("name").error("is the name of the container that holds the pod: choose another one")
        containers.append(plan)
        if init:
            depends = f"{plan.name}:{'completed' if plan.init else 'started'}"
    _publish(ports, options, host_network)
    body = _infra(spec, pod, ports, options, host_network)
    plans: dict[str, VolumePlan] = {}
    host_paths: list[HostPath] = []
    for volume in volumes.values():
        if volume.host is not None:
            host_paths.append(volume.host)
        if volume.plan is not None:
            directories = {
                *volume.directories,
                *(plans[volume.plan.name].directories if volume.plan.name in plans else ()),
            }
            plans[volume.plan.name] = replace(volume.plan, directories=tuple(sorted(directories)))
    return (
        PodPlan(
            name=name, owner=owner, body=body, containers=tuple(containers), host_paths=tuple(host_paths)
        ),
        tuple(plans.values()),
        tuple(pod.warnings),
    )


def _publish(ports: Ports, options: Options, host_network: bool) -> None:
    for text in options.publish:
        match = _PUBLISH.fullmatch(text)
        if match is None or not 0 < int(match[3]) <= 65535 or not 0 < int(match[4]) <= 65535:
            raise Invalid(
                f"publish: {text[:80]!r}: expected [ADDRESS:]PORT:CONTAINER_PORT[/PROTOCOL], e.g. 8080:80"
            )
        if host_network:
            raise Invalid(f"publish: {text}: the pod has the host's network, and its ports: leave it out")
        key = f"{int(match[4])}/{match[5] or 'tcp'}"
        ports.exposed[key] = {}
        ports.bindings.setdefault(key, []).append(
            {"HostIp": match[1] or match[2] or "", "HostPort": str(int(match[3]))}
        )


def _infra(spec: At, pod: PodContext, ports: Ports, options: Options, host_network: bool) -> dict[str, Any]:
    """The body of the container that holds the pod."""
    host: dict[str, Any] = {"RestartPolicy": dict(pod.restart)}
    if pod.meta.annotations:
        host["Annotations"] = dict(pod.meta.annotations)
    if host_network:
        if options.network:
            raise Invalid(
                f"network: {options.network[:80]}: {pod.owner} has hostNetwork: leave one of them out"
            )
        host["NetworkMode"] = "host"
    elif options.network:
        host["NetworkMode"] = options.network
    if ports.bindings:
        host["PortBindings"] = ports.bindings
    if spec.get("hostIPC").flag():
        host["IpcMode"] = "host"
    sysctls = {}
    for at in pod.security.get("sysctls").items():
        at.check(fields.SYSCTL)
        sysctls[at.need("name", "net.core.somaxconn").text()] = at.need("value", '"1024"').text()
    if sysctls:
        host["Sysctls"] = sysctls
    host.update(_names(spec))
    body: dict[str, Any] = {"Labels": {**pod.labels, LABEL: pod.owner}, "HostConfig": host, "StopTimeout": 0}
    if ports.exposed:
        body["ExposedPorts"] = ports.exposed
    if spec.get("hostname"):
        body["Hostname"] = spec.get("hostname").label("web")
    return body


def _names(spec: At) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    aliases = []
    for at in spec.get("hostAliases").items():
        at.check(fields.HOST_ALIAS)
        address = at.need("ip", "192.0.2.2").text()
        aliases += [f"{name}:{address}" for name in at.need("hostnames", '["db"]').texts()]
    if aliases:
        found["ExtraHosts"] = aliases
    policy = spec.get("dnsPolicy").choice(_DNS_POLICIES, "ClusterFirst")
    dns = spec.get("dnsConfig").check(fields.DNS_CONFIG)
    if policy == "None" and not dns.get("nameservers").value:
        raise spec.get("dnsPolicy").error("None needs dnsConfig.nameservers: give at least one")
    for name, key in (("nameservers", "Dns"), ("searches", "DnsSearch")):
        if dns.get(name):
            found[key] = dns.get(name).texts()
    settings = []
    for at in dns.get("options").items():
        at.check(fields.DNS_OPTION)
        value = at.get("value")
        settings.append(at.need("name", "ndots").text() + (f":{value.text()}" if value else ""))
    if settings:
        found["DnsOptions"] = settings
    return found
