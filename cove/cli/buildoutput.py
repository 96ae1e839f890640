"""cove build --output: the image, or its files, as something outside the daemon."""

from __future__ import annotations

import os

from cove.cli.archivefile import save_stream
from cove.cli.client import query, quote
from cove.cli.fail import CliError
from cove.cli.unpack import unpack
from cove.cli.values import split_csv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client

KINDS = ("image", "local", "tar", "oci", "docker")


def parse_output(text: str) -> tuple[str, str]:
    """`type=KIND,dest=PATH`, or a path alone: a directory, or - for an archive. Kind and path. Raises CliError."""
    if "=" not in text:
        return ("tar", "-") if text == "-" else ("local", text)
    found: dict[str, str] = {}
    for field in split_csv("--output", text):
        name, _, value = field.partition("=")
        if name not in ("type", "dest", "name", "push"):
            raise CliError(f"--output {text}: {name!r} isn't one of type, dest")
        found[name] = value
    kind = found.get("type", "")
    if kind not in KINDS:
        raise CliError(f"--output {text}: expected type={'|'.join(KINDS)}, e.g. type=local,dest=out")
    if kind == "local" and not found.get("dest"):
        raise CliError(f"--output {text}: name the directory, e.g. type=local,dest=out")
    return kind, found.get("dest", "-")


def write_output(client: Client, image: str, kind: str, dest: str) -> None:
    """Write an image that was built. CliError."""
    if kind in ("oci", "docker"):  # one archive that is both
        save_stream(client.request("GET", f"/images/get{query({'names': [image]})}"), dest, "build")
        return
    if kind not in ("local", "tar"):
        return
    body = {"Image": image, "Cmd": ["none"], "Entrypoint": [], "HostConfig": {"NetworkMode": "none"}}
    container = client.post("/containers/create", body)["Id"]
    try:
        if kind == "tar":
            answer = client.request("GET", f"/containers/{quote(container)}/export")
            save_stream(answer, dest, "build")
            return
        os.makedirs(dest, exist_ok=True)
        answer = client.request("GET", f"/containers/{quote(container)}/archive?path=/.")
        unpack(answer.chunks(), dest, "", keep_owner=False)
    except OSError as error:
        raise CliError(f"--output: {error.filename or dest}: {error.strerror}") from None
    finally:
        client.delete(f"/containers/{quote(container)}?v=1")
