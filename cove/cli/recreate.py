"""recreate: another container, with what the flags say different, takes a container's place."""

from __future__ import annotations

import os

from cove.cli import createbody
from cove.cli.client import query
from cove.cli.fail import CliError
from cove.cli.options import Command, Options
from cove.cli.run import complain
from cove.cli.runflags import CREATE_FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cove.cli.client import Client

_LEFT_OUT = frozenset("name cidfile pull quiet platform attach pod".split())
_ENDPOINT = ("ip", "ip6", "link-local-ip", "mac-address", "network-alias", "net-alias")
_REMOVE = {
    "env-rm": "Env",
    "label-rm": "Labels",
    "mount-rm": "Mounts",
    "publish-rm": "Ports",
    "secret-rm": "Secrets",
}

RECREATE_FLAGS = (
    ("", "image", "str", "IMAGE", "Take this image, e.g. debian:13 (default: the very image that it has)"),
    (
        "",
        "keep-files",
        "bool",
        "",
        "Keep the files that it wrote outside of volumes; it is down while they are read",
    ),
    ("", "env-rm", "list", "NAME", "Set an environment variable no more"),
    ("", "label-rm", "list", "NAME", "Label it so no more"),
    ("", "mount-rm", "list", "TARGET", "Mount nothing at TARGET any more; a volume stays"),
    ("", "publish-rm", "list", "PORT", "Publish a port of the container no more, e.g. 80 or 53/udp"),
    ("", "secret-rm", "list", "TARGET", "Give this secret no more"),
    *(flag for flag in CREATE_FLAGS if flag[1] not in _LEFT_OUT),
)


def build_recreation(options: Options, environment: Mapping[str, str]) -> dict[str, Any]:
    """The body: what the flags ask for and nothing else."""
    networks = "network" in options or "net" in options
    for flag in _ENDPOINT:
        if flag in options and not networks:
            raise CliError(
                f"--{flag}: it belongs to a network: name that too, e.g. --network NAME --{flag} …"
            )
    asked = Options()
    asked.given = options.given
    asked.args = [options.text("image") or "-", *options.args[1:]]
    body = createbody.build_body(asked, environment, detach=True)
    for name in ("AttachStdin", "AttachStdout", "AttachStderr", "StdinOnce"):
        del body[name]
    for flag, name in (("image", "Image"), ("tty", "Tty"), ("interactive", "OpenStdin")):
        if flag not in options:
            del body[name]
    for name in ("Env", "Labels"):
        if not body[name]:
            del body[name]
    if not networks:
        del body["HostConfig"]["NetworkMode"]
    if not body["HostConfig"]:
        del body["HostConfig"]
    remove = {name: options.all(flag) for flag, name in _REMOVE.items() if flag in options}
    if options.on("keep-files"):
        body["CoveKeepFiles"] = True
    if remove:
        body["CoveRemove"] = remove
    return body


def run_recreate(client: Client, options: Options) -> int:
    """cove recreate"""
    body = build_recreation(options, os.environ)
    answer = client.post("/cove/v1/recreate" + query({"container": options.args[0]}), body)
    for warning in answer.get("Warnings") or ():
        complain(f"warning: {warning}")
    print(answer["Id"])
    return 0


COMMANDS = {
    "recreate": Command(
        "recreate",
        run_recreate,
        "[OPTIONS] CONTAINER [COMMAND] [ARG...]",
        "Put another container in a container's place, with what is given different and all else the same: name, "
        "volumes, networks. If it can't start, the old one goes on.",
        flags=RECREATE_FLAGS,
        needed=1,
        most=-1,
        stops=True,
        example=(
            "cove recreate --env MODE=fast --memory 512m web\n"
            "cove recreate --image debian:13 --mount-rm /cache web sleep 600"
        ),
    ),
}
