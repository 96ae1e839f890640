"""Kubernetes files: play, down, generate. The daemon reads them; here is nothing but files and words."""

from __future__ import annotations

from cove.cli.client import query
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.run import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

PATH = "/cove/v1/kube"
MAX_BYTES = 1 << 20


def read_files(sources: Sequence[str]) -> bytes:
    """The files' documents one after the other; - is standard input."""
    parts = []
    for source in sources:
        try:
            with open(0 if source == "-" else source, "rb", closefd=source != "-") as file:
                parts.append(file.read(MAX_BYTES + 1))
        except OSError as error:
            raise CliError(f"{source}: {error.strerror}; name a file, or - for standard input") from None
    content = b"\n---\n".join(parts)
    if len(content) > MAX_BYTES:
        raise CliError(f"{' '.join(sources)}: up to {MAX_BYTES} bytes are read: split the file")
    return content


def send(client: Client, verb: str, content: bytes, parameters: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/yaml"}
    path = f"{PATH}/{verb}" + query(parameters)
    return client.request("POST", path, stream=(content or b"\n",), headers=headers).json()


def take_down(client: Client, content: bytes, options: Options) -> int:
    for line in send(client, "down", content, {"volumes": options.on("volumes")})["Removed"]:
        print(line)
    return 0


def run_play(client: Client, options: Options) -> int:
    """cove kube play"""
    content = read_files((*options.args, *options.all("configmap")))
    if options.on("down"):
        return take_down(client, content, options)
    parameters = {
        "dry-run": options.on("dry-run"),
        "replace": options.on("replace"),
        "start": "1" if options.on("start", True) else "0",
        "network": options.text("network"),
        "publish": options.all("publish"),
    }
    try:
        answer = send(client, "play", content, parameters)
    except KeyboardInterrupt:
        if not options.on("dry-run"):
            complain("taking it back")
            client.forget()
            send(client, "down", content, {})
        raise
    for warning in answer["Warnings"]:
        complain(f"warning: {warning}")
    for volume in answer["Volumes"]:
        print(f"volume {volume['Name']}")
    for pod in answer["Pods"]:
        print(f"pod {pod['Name']}")
        for one in pod["Containers"]:
            print(f"container {one['Name']} {one['Image']}{' (init)' if one['Init'] else ''}")
    return 0


def run_down(client: Client, options: Options) -> int:
    """cove kube down"""
    return take_down(client, read_files((*options.args, *options.all("configmap"))), options)


def run_generate(client: Client, options: Options) -> int:
    """cove kube generate"""
    text = client.get(f"{PATH}/generate" + query({"name": options.args}))["Text"]
    print(text, end="")
    return 0


_CONFIG_MAP = ("", "configmap", "list", "FILE", "Read ConfigMaps from another file, too")
_VOLUMES = ("", "volumes", "bool", "", "With down: remove the volumes of claims, too")

COMMANDS = {
    "kube play": Command(
        "kube play",
        run_play,
        "[OPTIONS] FILE|-",
        "Make and start the pods, containers and volumes of a Kubernetes file. What isn't honoured is refused by its "
        "path (docs/kube.md); a play that fails leaves nothing.",
        flags=(
            ("", "dry-run", "bool", "", "Check the file and print what would be made"),
            ("", "replace", "bool", "", "Take down first what this file has made before"),
            ("", "down", "bool", "", "Remove what this file has made"),
            _VOLUMES,
            ("", "start", "bool", "", "Start the pods, or leave them as made with --start=false"),
            ("", "network", "str", "NETWORK", "Connect the pods to this network"),
            ("p", "publish", "list", "PORT:PORT", "Publish a pod's port, e.g. 8080:80"),
            _CONFIG_MAP,
        ),
        needed=1,
        example="cove kube play --dry-run web.yaml\ncove kube play --replace -p 8080:80 web.yaml",
    ),
    "kube down": Command(
        "kube down",
        run_down,
        "[OPTIONS] FILE|-",
        "Remove the pods, containers and volumes that a Kubernetes file has made. Volumes of claims stay.",
        flags=(("", "volumes", "bool", "", "Remove the volumes of claims, too"), _CONFIG_MAP),
        needed=1,
        example="cove kube down web.yaml",
    ),
    "kube generate": Command(
        "kube generate",
        run_generate,
        "POD|CONTAINER...",
        "Write pods and containers as a Kubernetes file. What it can't say is told in comments at its head.",
        needed=1,
        most=-1,
        example="cove kube generate web >web.yaml",
    ),
}
