"""A pod's volumes, and where its containers mount them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cove.kube import fields
from cove.kube.configs import Configs, files_of, find_config
from cove.kube.quantity import read_bytes
from cove.kube.reading import At
from cove.kube.types import HOST_KINDS, HostKind, HostPath, VolumePlan

_PROPAGATION = {"": "", "None": "", "HostToContainer": "rslave", "Bidirectional": "rshared"}


@dataclass(slots=True, kw_only=True)
class PodVolume:
    """One entry of spec.volumes, and what the mounts of the pod's containers ask of it."""

    plan: VolumePlan | None = None  # None: a path of the host
    host: HostPath | None = None
    readonly: bool = False
    fill: bool = False  # with the image's content, while it is empty
    directories: set[str] = field(default_factory=set)


def read_volumes(spec: At, pod: str, owner: str, configs: Configs, group: int | None) -> dict[str, PodVolume]:
    found: dict[str, PodVolume] = {}
    for at in spec.get("volumes").items(256):
        at.check(fields.VOLUME)
        name = at.need("name", "data").label("data")
        if name in found:
            raise at.get("name").error(f"two volumes are called {name}: rename one")
        kinds = [key for key, value in at.value.items() if key != "name" and value is not None]
        if len(kinds) != 1:
            raise at.error("expected one of emptyDir, hostPath, configMap, secret and persistentVolumeClaim")
        found[name] = _read(at.get(kinds[0]), kinds[0], f"{pod}-{name}", owner, configs, group)
    return found


def _read(at: At, kind: str, name: str, owner: str, configs: Configs, group: int | None) -> PodVolume:
    if kind == "emptyDir":
        at.check(fields.EMPTY_DIR)
        medium = at.get("medium").choice(("", "Memory"), "")
        size = read_bytes(at.get("sizeLimit"))
        options = {}
        if medium:
            mode = "2777" if group is not None else "777"
            owned = f",gid={group}" if group is not None else ""
            sized = f",size={size}" if size else ""
            options = {"type": "tmpfs", "device": "tmpfs", "o": f"mode={mode}{owned}{sized}"}
        elif size:
            raise at.get("sizeLimit").error(
                "a limit needs medium: Memory, or a volume: cove volume create --opt size=1g"
            )
        return PodVolume(
            plan=VolumePlan(
                name=name,
                owner=owner,
                options=options,
                mode=None if medium else 0o777 if group is None else 0o2777,
                group=None if medium else group,
            )
        )
    if kind == "hostPath":
        at.check(fields.HOST_PATH)
        path = at.need("path", "/srv/www").path_text("/srv/www")
        host_kind: HostKind = at.get("type").choice(HOST_KINDS, "")  # type: ignore[assignment]
        return PodVolume(host=HostPath(shown=f"{at.owner}: {at.path}.path", path=path, kind=host_kind))
    if kind == "persistentVolumeClaim":
        at.check(fields.CLAIM)
        claim = at.need("claimName", "data").name("data")
        return PodVolume(
            plan=VolumePlan(name=claim, owner=f"PersistentVolumeClaim/{claim}", kept=True),
            readonly=at.get("readOnly").flag(),
            fill=True,
        )
    secret = kind == "secret"
    at.check(fields.SECRET_VOLUME if secret else fields.CONFIG_VOLUME)
    config = find_config(
        configs,
        "Secret" if secret else "ConfigMap",
        at.need("secretName" if secret else "name", "settings"),
        at.get("optional").flag(),
    )
    files = files_of(config, at)
    return PodVolume(
        plan=VolumePlan(
            name=name,
            owner=owner,
            files=files,
            mode=0o755 if group is None else 0o2755,
            group=group,
        ),
        readonly=True,
    )


def plan_mounts(
    container: At, volumes: Mapping[str, PodVolume]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`HostConfig.Mounts` and `HostConfig.Devices`."""
    mounts: list[dict[str, Any]] = []
    devices: list[dict[str, Any]] = []
    targets = set()
    for at in container.get("volumeMounts").items(256):
        at.check(fields.MOUNT)
        name = at.need("name", "data").text()
        volume = volumes.get(name)
        if volume is None:
            raise at.get("name").error(f"no volume {name[:80]!r} in spec.volumes: put it there")
        target = at.need("mountPath", "/data").path_text("/data")
        if target in targets:
            raise at.get("mountPath").error(f"{target[:80]}: two volumes are mounted there")
        targets.add(target)
        readonly = at.get("readOnly").flag() or volume.readonly
        propagation = at.get("mountPropagation").choice(tuple(_PROPAGATION), "")
        path = at.get("subPath").relative_path("www") if at.get("subPath").value else ""
        mount: dict[str, Any] = {"Target": target, "ReadOnly": readonly}
        if volume.host is not None:
            if path:
                raise at.get("subPath").error(
                    "of a hostPath it isn't honoured: write the whole path in hostPath.path"
                )
            if volume.host.kind in ("BlockDevice", "CharDevice"):
                permissions = "r" if readonly else "rw"
                devices.append(
                    {
                        "PathOnHost": volume.host.path,
                        "PathInContainer": target,
                        "CgroupPermissions": permissions,
                    }
                )
                continue
            mount |= {"Type": "bind", "Source": volume.host.path}
            if _PROPAGATION[propagation]:
                mount["BindOptions"] = {"Propagation": _PROPAGATION[propagation]}
        else:
            assert volume.plan is not None
            if _PROPAGATION[propagation]:
                raise at.get("mountPropagation").error("only a hostPath has that: leave it out")
            mount |= {"Type": "volume", "Source": volume.plan.name}
            settings: dict[str, Any] = {} if volume.fill else {"NoCopy": True}
            if path:
                if volume.plan.options:
                    raise at.get("subPath").error("of a volume in memory it isn't honoured: mount the whole")
                settings["Subpath"] = path
                if path not in volume.plan.files:
                    volume.directories.add(path)
            if settings:
                mount["VolumeOptions"] = settings
        mounts.append(mount)
    return mounts, devices
