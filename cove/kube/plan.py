"""The documents of a file → what Cove makes of them. Pure: entry of the room.

ConfigMaps, Secrets and claims are read first, wherever they stand; pods come in the order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cove.kube import fields
from cove.kube.configs import Config, Meta, read_config_map, read_secret
from cove.kube.podspec import plan_pod
from cove.kube.reading import At
from cove.kube.types import LABEL, Options, Plan, PodPlan, VolumePlan
from cove.kube.yamlfile import parse_documents
from cove.model.errors import Invalid

MAX_REPLICAS = 100
MAX_PODS = 256
_VERSIONS = {
    "Pod": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "PersistentVolumeClaim": "v1",
    "Deployment": "apps/v1",
    "DaemonSet": "apps/v1",
    "Job": "batch/v1",
}
_WORKLOADS = {
    "Deployment": fields.DEPLOYMENT_SPEC,
    "DaemonSet": fields.DAEMON_SET_SPEC,
    "Job": fields.JOB_SPEC,
}


def plan_file(data: bytes, options: Options) -> Plan:
    """Raises Invalid with the path of what can't be honoured."""
    try:
        return _plan(parse_documents(data), options)
    except UnicodeEncodeError:
        raise Invalid("the YAML has half of a surrogate pair in it, which is no text") from None


def _plan(documents: Sequence[Any], options: Options) -> Plan:
    objects = [_Object(document, index) for index, document in enumerate(_flatten(documents))]
    configs: dict[tuple[str, str], Config] = {}
    seen = set()
    for one in objects:
        if (one.kind, one.name) in seen:
            raise one.at.error("comes twice in this file: rename or leave out one")
        seen.add((one.kind, one.name))
        if one.kind in ("ConfigMap", "Secret"):
            read = read_config_map if one.kind == "ConfigMap" else read_secret
            configs[one.kind, one.name] = read(one.name, one.at)
    volumes = {one.name: _claim(one) for one in objects if one.kind == "PersistentVolumeClaim"}
    pods: list[PodPlan] = []
    warnings: list[str] = []
    for one in objects:
        if one.kind in ("ConfigMap", "Secret", "PersistentVolumeClaim"):
            continue
        for pod, made, told in one.plan_pods(configs, options):
            pods.append(pod)
            warnings += told
            for volume in made:
                _add_volume(volumes, volume)
    _check_names(pods)
    return Plan(volumes=tuple(volumes.values()), pods=tuple(pods), warnings=tuple(dict.fromkeys(warnings)))


def _add_volume(volumes: dict[str, VolumePlan], volume: VolumePlan) -> None:
    known = volumes.get(volume.name)
    if known is None:
        volumes[volume.name] = volume
    elif known.kept and volume.kept:
        directories = tuple(sorted({*known.directories, *volume.directories}))
        volumes[volume.name] = replace(known, directories=directories)
    else:
        raise Invalid(f"{volume.owner}: two volumes would be called {volume.name}: rename one")


def _check_names(pods: Sequence[PodPlan]) -> None:
    if len(pods) > MAX_PODS:
        raise Invalid(f"{len(pods)} pods, and a play makes up to {MAX_PODS}: split the file")
    names = set()
    published: dict[tuple[str, str, str], str] = {}
    for pod in pods:
        for name in (pod.name, *(container.name for container in pod.containers)):
            if name in names:
                raise Invalid(f"{pod.owner}: the name {name} would be given twice: rename one")
            names.add(name)
        for key, bindings in pod.body["HostConfig"].get("PortBindings", {}).items():
            for binding in bindings:
                place = binding["HostIp"], binding["HostPort"], key.partition("/")[2]
                if published.setdefault(place, pod.name) != pod.name:
                    raise Invalid(
                        f"{pod.owner}: port {binding['HostPort']} of the host is that of {published[place]} already: "
                        "publish one of them elsewhere, or have one replica"
                    )


def _flatten(documents: Sequence[Any]) -> list[Any]:
    found = []
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            at = At("List", "", document)
            at.check({**fields.OBJECT, "items": fields.Field()})
            found += [item.value for item in at.get("items").items()]
        else:
            found.append(document)
    if not found:
        raise Invalid("the file has no documents: it needs a Pod, a Deployment, a DaemonSet or a Job")
    return found


class _Object:
    """A document that says what it is."""

    def __init__(self, document: Any, index: int) -> None:
        at = At(f"document {index + 1}", "", document)
        if not isinstance(document, dict):
            raise at.error("expected a mapping, with apiVersion, kind and metadata")
        self.kind = at.need("kind", "Pod").text()
        if self.kind in fields.KINDS_REFUSED:
            raise at.get("kind").error(f"a {self.kind} isn't played: {fields.KINDS_REFUSED[self.kind]}")
        if self.kind not in _VERSIONS:
            raise at.get("kind").error(f"{self.kind[:80]!r}: expected one of {', '.join(_VERSIONS)}")
        version = at.need("apiVersion", _VERSIONS[self.kind]).text()
        if version != _VERSIONS[self.kind]:
            raise at.get("apiVersion").error(f"{version[:80]!r}: a {self.kind} has {_VERSIONS[self.kind]}")
        metadata = at.need("metadata", "{name: web}").check(fields.METADATA)
        self.name = metadata.need("name", "web").name("web")
        self.at = At(f"{self.kind}/{self.name}", "", document)
        self.metadata = self.at.get("metadata")

    def _meta(self, name: str, *others: At) -> Meta:
        labels: dict[str, str] = {}
        annotations: dict[str, str] = {}
        for at in (self.metadata, *others):
            labels.update(at.get("labels").strings())
            annotations.update(at.get("annotations").strings())
        return Meta(
            name=name,
            namespace=self.metadata.get("namespace").text("default"),
            labels=labels,
            annotations=annotations,
        )

    def plan_pods(
        self, configs: dict[tuple[str, str], Config], options: Options
    ) -> list[tuple[PodPlan, tuple[VolumePlan, ...], tuple[str, ...]]]:
        self.at.check(fields.OBJECT)
        spec = self.at.need("spec", "{containers: [{name: app, image: debian}]}")
        owner = self.at.owner
        if self.kind == "Pod":
            meta = self._meta(self.name)
            return [plan_pod(spec, name=self.name, owner=owner, meta=meta, configs=configs, options=options)]
        spec.check(_WORKLOADS[self.kind])
        template = spec.need("template", "{spec: …}").check(fields.TEMPLATE)
        inner = template.need("spec", "{containers: [{name: app, image: debian}]}")
        metadata = template.get("metadata")
        if metadata:
            metadata.check({**fields.METADATA, "name": fields.Field()})
        replicas = spec.get("replicas").number(1, 0, MAX_REPLICAS) if self.kind == "Deployment" else 1
        found = []
        for index in range(replicas):
            name = f"{self.name}-pod" + (f"-{index + 1}" if index else "")
            found.append(
                plan_pod(
                    inner,
                    name=name,
                    owner=owner,
                    meta=self._meta(name, metadata),
                    configs=configs,
                    options=options,
                    restarts=_restarts(self.kind, inner),
                    tries=spec.get("backoffLimit").number(6, 0, 1000) if self.kind == "Job" else None,
                )
            )
        return found


def _restarts(kind: str, spec: At) -> tuple[str, ...]:
    if kind != "Job":
        return ("Always",)
    if isinstance(spec.value, dict) and not spec.get("restartPolicy"):
        raise spec.get("restartPolicy").error("is missing: a job's pod has OnFailure or Never")
    return ("OnFailure", "Never")


def _claim(one: _Object) -> VolumePlan:
    one.at.check(fields.OBJECT)
    spec = one.at.get("spec").check(fields.CLAIM_SPEC)
    spec.get("accessModes").texts()
    if spec.get("volumeMode").choice(("Filesystem", "Block"), "Filesystem") == "Block":
        raise spec.get("volumeMode").error("a volume is a directory: it can be 'Filesystem'")
    labels = {**one.metadata.get("labels").strings(), LABEL: one.at.owner}
    return VolumePlan(name=one.name, owner=one.at.owner, labels=labels, kept=True)
