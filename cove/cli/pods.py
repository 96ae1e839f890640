"""Pods: create, list, start, stop, remove."""

from __future__ import annotations

import os

from cove.cli import createbody, output
from cove.cli.client import query
from cove.cli.options import Command
from cove.cli.run import complain, each
from cove.cli.runflags import CREATE_FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

PATH = "/cove/v1/pods"

# of a container's flags, those that are a pod's
_OWN = frozenset(
    "label label-file publish publish-all network net network-alias net-alias ip ip6 mac-address dns dns-search "
    "dns-option dns-opt add-host hostname domainname sysctl shm-size restart cgroup-parent".split()
)


def run_create(client: Client, options: Options) -> int:
    """cove pod create"""
    name = options.args[0]
    body = createbody.build_body(options, os.environ, detach=True)
    del body["Image"]  # it was the pod's name
    answer = client.post(PATH + query({"name": name}), body)
    for warning in answer.get("Warnings") or ():
        complain(f"warning: {warning}")
    print(name)
    return 0


def run_ls(client: Client, options: Options) -> int:
    """cove pod ls"""
    rows = [
        {
            "Name": pod["Name"],
            "Status": pod["Status"],
            "Containers": ", ".join(one["Name"] for one in pod["Containers"]),
            "Ports": ", ".join(pod["Ports"]),
            "Created": pod["Created"],
            "Labels": output.key_values(pod["Labels"]),
        }
        for pod in client.get(PATH)
    ]
    columns = (("Name", "NAME"), ("Status", "STATUS"), ("Containers", "CONTAINERS"), ("Ports", "PORTS"))
    output.print_rows(
        rows, columns, format=options.text("format"), quiet="Name" if options.on("quiet") else ""
    )
    return 0


def run_start(client: Client, options: Options) -> int:
    """cove pod start"""
    return each(client, options.args, lambda name: client.post(f"{PATH}/start" + query({"name": name})))


def run_stop(client: Client, options: Options) -> int:
    """cove pod stop"""

    def stop(name: str) -> Any:
        return client.post(f"{PATH}/stop" + query({"name": name, "t": options.number("time")}))

    return each(client, options.args, stop)


def run_rm(client: Client, options: Options) -> int:
    """cove pod rm"""

    def remove(name: str) -> Any:
        return client.delete(PATH + query({"name": name, "force": options.on("force")}))

    return each(client, options.args, remove)


COMMANDS = {
    "pod create": Command(
        "pod create",
        run_create,
        "[OPTIONS] POD",
        "Make a pod. Ports, addresses and the host name are the pod's; cove run --pod puts containers into it.",
        flags=tuple(flag for flag in CREATE_FLAGS if flag[1] in _OWN),
        needed=1,
        example="cove pod create -p 8080:80 web",
    ),
    "pod ls": Command(
        "pod ls",
        run_ls,
        "[OPTIONS]",
        "List pods.",
        flags=(
            ("q", "quiet", "bool", "", "Print names only"),
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Name}}'"),
        ),
        example="cove pod ls --format '{{.Name}}: {{.Status}}'",
    ),
    "pod start": Command(
        "pod start",
        run_start,
        "POD...",
        "Start pods with their containers.",
        needed=1,
        most=-1,
        example="cove pod start web",
    ),
    "pod stop": Command(
        "pod stop",
        run_stop,
        "[OPTIONS] POD...",
        "Stop pods: their containers, the newest first.",
        flags=(("t", "time", "int", "SECONDS", "Wait SECONDS for each before SIGKILL"),),
        needed=1,
        most=-1,
        example="cove pod stop -t 5 web",
    ),
    "pod rm": Command(
        "pod rm",
        run_rm,
        "[OPTIONS] POD...",
        "Remove pods with their containers.",
        flags=(("f", "force", "bool", "", "Kill what is running first"),),
        needed=1,
        most=-1,
        example="cove pod rm -f web",
    ),
}
