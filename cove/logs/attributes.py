"""What is told of a container beside its lines: the tag, and the labels and variables that options choose. Pure.

Options: tag, labels, labels-regex, env, env-regex. A later one wins where two have the same key, as in moby.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cove.logs.destinations import Source
from cove.logs.pattern import Pattern
from cove.logs.tag import render_tag
from cove.model.container import Container
from cove.model.errors import Invalid

OPTIONS = frozenset({"tag", "labels", "labels-regex", "env", "env-regex"})
DEFAULT_TAG = "{{.ID}}"
MOST_BYTES = 64 << 10  # of all attributes: they go along with every line


def check_attributes(options: Mapping[str, str]) -> None:
    """What can be told before there is a container. Raises Invalid."""
    for option in ("labels-regex", "env-regex"):
        if options.get(option):
            Pattern(option, options[option])


def find_attributes(container: Container) -> dict[str, str]:
    """The labels and variables that the container's log options choose. Raises Invalid: together they are too long."""
    options = container.log.options
    if not OPTIONS & options.keys():
        return {}
    variables = dict(item.split("=", 1) for item in container.env if "=" in item)
    found: dict[str, str] = {}
    for option, values in (("labels", container.labels), ("env", variables)):
        if options.get(option):
            found |= {key: values[key] for key in options[option].split(",") if key in values}
        if options.get(f"{option}-regex"):
            pattern = Pattern(f"{option}-regex", options[f"{option}-regex"])
            found |= {key: value for key, value in values.items() if pattern.search(key)}
    size = sum(len(key.encode()) + len(value.encode()) for key, value in found.items())
    if size > MOST_BYTES:
        raise Invalid(
            f"the labels and variables that the log options choose have {size} bytes, at most {MOST_BYTES} are "
            "possible: choose fewer by --log-opt labels=… or env=…"
        )
    return found


def find_tag(container: Container, host_name: str, default: str = DEFAULT_TAG) -> str:
    """The tag of a container's lines. Raises Invalid for a template that can't be understood or applied."""
    template = container.log.options.get("tag") or default
    return render_tag(template, _tag_fields(container, host_name)) if template else ""


def shown_attributes(container: Container, host_name: str) -> dict[str, str]:
    """What `logs --details` shows with each line; the tag only when one was asked for."""
    found = find_attributes(container)
    tag = find_tag(container, host_name, default="")
    return found | {"tag": tag} if tag else found


def find_source(container: Container, host_name: str) -> Source:
    """The container as receivers see it. Raises Invalid."""
    return Source(
        container_id=container.id,
        container_name=container.name,
        image_id=container.image_id,
        image_name=container.image_name,
        command=" ".join(container.args),
        created_ns=container.created_ns,
        host_name=host_name,
        tag=find_tag(container, host_name),
        attributes=find_attributes(container),
    )


def _tag_fields(container: Container, host_name: str) -> dict[str, Any]:
    """moby's logger.Info, fields and methods."""
    created = datetime.fromtimestamp(container.created_ns // 10**9, UTC)
    return {
        "ID": container.short_id,
        "FullID": container.id,
        "Name": container.name,
        "ImageID": container.image_id[:12]
        if ":" not in container.image_id
        else container.image_id.split(":")[1][:12],
        "ImageFullID": container.image_id,
        "ImageName": container.image_name,
        "Command": " ".join(container.args),
        "Hostname": host_name,
        "DaemonName": "docker",
        "ExtraAttributes": find_attributes(container),
        "ContainerID": container.id,
        "ContainerName": f"/{container.name}",
        "ContainerEntrypoint": container.args[0] if container.args else "",
        "ContainerArgs": list(container.args[1:]),
        "ContainerImageID": container.image_id,
        "ContainerImageName": container.image_name,
        "ContainerCreated": f"{created:%Y-%m-%d %H:%M:%S} +0000 UTC",
        "ContainerEnv": list(container.env),
        "ContainerLabels": container.labels,
        "Config": container.log.options,
    }
