"""ConfigMaps and Secrets of a file, and where a container's variables come from them. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cove.kube import fields
from cove.kube.reading import At
from cove.kube.types import File

_KEY = re.compile(r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}")
_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A ConfigMap or a Secret."""

    kind: str
    name: str
    data: Mapping[str, bytes] = field(repr=False)


Configs = Mapping[tuple[str, str], Config]  # by kind and name


def read_config_map(name: str, document: At) -> Config:
    document.check(fields.CONFIG_MAP)
    data = {key: text.encode() for key, text in document.get("data").strings().items()}
    _take(data, _decoded(document.get("binaryData")), document.get("binaryData"))
    return _checked("ConfigMap", name, data, document)


def read_secret(name: str, document: At) -> Config:
    document.check(fields.SECRET)
    data = _decoded(document.get("data"))
    data.update(
        {key: text.encode() for key, text in document.get("stringData").strings().items()}
    )  # it wins there, too
    return _checked("Secret", name, data, document)


def _take(data: dict[str, bytes], more: Mapping[str, bytes], at: At) -> None:
    for key, content in more.items():
        if key in data:
            raise at.get(key).error("is in data, too: leave one out")
        data[key] = content


def _decoded(at: At) -> dict[str, bytes]:
    found = {}
    for key, text in at.strings().items():
        try:
            found[key] = base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            raise at.get(key).error("expected base64; stringData has plain text") from None
    return found


def _checked(kind: str, name: str, data: Mapping[str, bytes], document: At) -> Config:
    for key in data:
        if not _KEY.fullmatch(key):
            raise document.get("data").error(
                f"{key[:80]!r}: a key has letters, digits, '-', '_' and '.', e.g. app.conf"
            )
    if sum(map(len, data.values())) > _MAX_BYTES:
        raise document.get("data").error(f"more than {_MAX_BYTES} bytes: split it")
    return Config(kind=kind, name=name, data=data)


def find_config(configs: Configs, kind: str, at: At, optional: bool) -> Config | None:
    """The object that a name refers to; None for one that is optional and missing."""
    name = at.text()
    found = configs.get((kind, name))
    if found is None and not optional:
        raise at.error(f"no {kind} {name[:80]!r} in this file: put it there, or say optional: true")
    return found


def files_of(config: Config | None, at: At) -> dict[str, File]:
    """The files of a configMap or secret volume."""
    mode = at.get("defaultMode").number(0o644, 0, 0o777)
    data = config.data if config is not None else {}
    if not at.get("items"):
        return {key: File(content=content, mode=mode) for key, content in data.items()}
    found: dict[str, File] = {}
    for item in at.get("items").items():
        item.check(fields.KEY_PATH)
        key = item.need("key", "app.conf").text()
        path = item.need("path", "app.conf").relative_path("app.conf")
        if key not in data:
            if config is None or at.get("optional").flag():
                continue
            raise item.get("key").error(f"{config.kind} {config.name} has no key {key[:80]!r}")
        if any(path == one or path.startswith(one + "/") or one.startswith(path + "/") for one in found):
            raise item.get("path").error(
                f"{path[:80]!r}: another key has that path, or one above or below it"
            )
        found[path] = File(content=data[key], mode=item.get("mode").number(mode, 0, 0o777))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What fieldRef can name."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def read_env(container: At, configs: Configs, meta: Meta) -> dict[str, str]:
    """A container's variables: envFrom first, then env, whose values may refer to those before."""
    found: dict[str, str] = {}
    for entry in container.get("envFrom").items():
        entry.check(fields.ENV_FROM)
        if bool(entry.get("configMapRef")) == bool(entry.get("secretRef")):
            raise entry.error("expected one of configMapRef and secretRef")
        kind, reference = (
            ("ConfigMap", entry.get("configMapRef"))
            if entry.get("configMapRef")
            else ("Secret", entry.get("secretRef"))
        )
        reference.check(fields.OBJECT_REF)
        config = find_config(
            configs, kind, reference.need("name", "settings"), reference.get("optional").flag()
        )
        prefix = entry.get("prefix").text()
        for key, content in config.data.items() if config is not None else ():
            found[prefix + key] = _text(content, reference, key)
    for entry in container.get("env").items():
        entry.check(fields.ENV)
        name = entry.need("name", "MODE").text()
        if not name or "=" in name or not name.isprintable() or len(name) > 1000:
            raise entry.get("name").error(f"{name[:80]!r}: expected a variable's name, e.g. MODE")
        source = entry.get("valueFrom")
        if not source:
            found[name] = expand(entry.get("value").text(), found)
            continue
        if entry.get("value").value:
            raise source.error("there is a value, too: leave one out")
        value = _from(source, configs, meta)
        if value is not None:
            found[name] = value
    return found


def _from(source: At, configs: Configs, meta: Meta) -> str | None:
    source.check(fields.ENV_SOURCE)
    if not isinstance(source.value, dict) or len([one for one in source.value.values() if one]) != 1:
        raise source.error("expected one of configMapKeyRef, secretKeyRef and fieldRef")
    for kind, name in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        at = source.get(name)
        if not at:
            continue
        at.check(fields.KEY_REF)
        optional = at.get("optional").flag()
        key = at.need("key", "password").text()
        config = find_config(configs, kind, at.need("name", "settings"), optional)
        if config is None or (key not in config.data and optional):
            return None
        if key not in config.data:
            raise at.get("key").error(f"{kind} {config.name} has no key {key[:80]!r}")
        return _text(config.data[key], at, key)
    at = source.get("fieldRef").check(fields.FIELD_REF).need("fieldPath", "metadata.name")
    path = at.text()
    if path == "metadata.name":
        return meta.name
    if path == "metadata.namespace":
        return meta.namespace
    if match := _FIELD.fullmatch(path):
        return (meta.labels if match[1] == "labels" else meta.annotations).get(match[2], "")
    if path in ("status.podIP", "status.podIPs"):
        raise at.error(
            "an address is chosen at each start, after the variables: ask the resolver for the host name"
        )
    raise at.error(f"{path[:80]!r}: expected metadata.name, metadata.namespace, or metadata.labels['KEY']")


def _text(content: bytes, at: At, key: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise at.error(f"the key {key[:80]!r} isn't text, as a variable has to be: use a volume")
    return text


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` replaced by its value, where there is one; `$$` is a dollar."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else variables.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)
