"""image slim: record what a container opens, show what a smaller image would leave out, and make it."""

from __future__ import annotations

import os

from cove.cli import output
from cove.cli.client import query, quote
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

_LICENCES = "/usr/share/doc/*/copyright"


def run_slim(client: Client, options: Options) -> int:
    """cove image slim"""
    name, command = (options.args[0] if options.args else ""), options.args[1:]
    container = options.text("container")
    if bool(name) == bool(container):
        raise CliError("image slim: name an image to run, or a running container with --container NAME")
    seconds = options.number("for") or 0
    if container and not seconds:
        raise CliError("image slim: --container needs --for, e.g. --for 60, to say how long to look at it")
    recorded = _load(options.text("recording")) if "recording" in options else _empty()
    if container:
        found = client.post("/cove/v1/images/record" + query({"container": container, "for": seconds}))
        status = 0
    else:
        found, status = _run(client, options, name, command, seconds)
    _merge(recorded, found)
    if "recording" in options:
        with open(options.text("recording"), "w", encoding="utf-8") as file:
            file.write(wirejson.pretty(recorded) + "\n")
    if found["Lost"]:
        raise CliError("more was opened than could be recorded: nothing is made of it", 1)
    include = [*options.all("include"), *([_LICENCES] if options.on("licenses") else [])]
    body = {"Opened": recorded["Opened"], "OpenedRaw": recorded["OpenedRaw"], "Include": include}
    asked = query({"image": found["Image"], "tag": options.text("tag")})
    made = client.post("/cove/v1/images/slim" + asked, body)
    if options.text("format"):
        print(output.render_value(options.text("format"), made))
    else:
        _show(made, options)
    if status:
        raise CliError(
            f"the command ended with {status}: what it opened until then is what was recorded", status
        )
    return 0


def _run(
    client: Client, options: Options, image: str, command: list[str], seconds: int
) -> tuple[dict[str, Any], int]:
    """Run a command in a container of the image, and remove that; what it opened, and its exit status."""
    from cove.cli.run import run_attached

    body = {
        "Image": image,
        "Cmd": command or None,
        "Env": options.all("env"),
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "Binds": options.all("volume"),
            "NetworkMode": options.text("network") or "default",
        },
    }
    if options.text("entrypoint"):
        body["Entrypoint"] = [options.text("entrypoint")]
    container = client.post("/containers/create", body)["Id"]
    recording = client.connect()
    try:

        def start(_: Client, name: str) -> None:
            asked = {"container": name, "start": True, "for": seconds}
            recording.send("POST", "/cove/v1/images/record" + query(asked))

        status = 0
        if seconds:
            start(client, container)
        else:
            status = run_attached(
                client,
                container,
                tty=False,
                streams=(False, True, True),
                keys=b"",
                keys_text="",
                condition="next-exit",
                start=True,
                proxy=True,
                starter=start,
            )
        return recording.receive().check().json(), status
    finally:
        recording.close()
        client.delete(f"/containers/{quote(container)}" + query({"force": True, "v": True}))


def _empty() -> dict[str, Any]:
    return {"Opened": [], "OpenedRaw": []}


def _load(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        return _empty()
    with open(path, encoding="utf-8") as file:
        try:
            found = wirejson.loads(file.read())
            return {key: list(found[key]) for key in ("Opened", "OpenedRaw")}
        except (ValueError, KeyError, TypeError):
            raise CliError(
                f"{path}: expected a recording that --recording wrote; or name a new file"
            ) from None


def _merge(recorded: dict[str, Any], found: dict[str, Any]) -> None:
    for key in ("Opened", "OpenedRaw"):
        recorded[key] = sorted({*recorded[key], *found[key]})


def _show(made: dict[str, Any], options: Options) -> None:
    size, most = output.human_size, options.number("top") or 10
    left = made["Size"] - made["KeptSize"]
    print(
        f"kept {made['KeptFiles']} of {made['Files']} files, {size(made['KeptSize'])} of {size(made['Size'])}; "
        f"left out {size(left)} ({left * 100 // max(made['Size'], 1)}%)"
    )
    for title, rows in (("packages", made["Packages"]), ("directories", made["Directories"])):
        if not rows:
            continue
        print()
        print(f"Of {title}, kept and in all:")
        for row in sorted(rows, key=lambda one: one["KeptSize"] - one["Size"])[:most]:
            name = row["Name"] or "(no package)"
            print(
                printable(
                    f"   {size(row['KeptSize']):>8} of {size(row['Size']):>8}, "
                    f"{row['KeptFiles']} of {row['Files']} files  {name}"
                )
            )
    if made["LargestLeft"]:
        print()
        print("The largest files left out:")
        for row in made["LargestLeft"][:most]:
            print(printable(f"   {size(row['Size']):>8}  {row['Path']}"))
    for pattern in made["Unmatched"]:
        print(printable(f"nothing in the image matches --include {pattern}"))
    if made.get("Id"):
        print()
        print(printable(f"{options.text('tag')}  {made['Id']}".strip()))


COMMANDS = {
    "image slim": Command(
        "image slim",
        run_slim,
        "[OPTIONS] IMAGE [COMMAND [ARG...]]",
        "Record which files a container opens, show what a smaller image would leave out, and make it.",
        flags=(
            ("t", "tag", "str", "NAME[:TAG]", "Make the smaller image and name it"),
            ("", "container", "str", "NAME", "Record a running container instead of a new one"),
            ("", "for", "int", "SECONDS", "Record for SECONDS (default: until the command ends)"),
            ("", "include", "list", "PATTERN", "Keep these, too, e.g. /etc/ssl or /usr/share/locale/de*/**"),
            ("", "licenses", "bool", "", "Keep the packages' copyright files, too"),
            ("", "recording", "str", "FILE", "Add what was opened to FILE, and keep all that it has by now"),
            ("e", "env", "list", "NAME=VALUE", "Set a variable in the container"),
            ("v", "volume", "list", "SOURCE:TARGET", "Mount a volume or a directory in the container"),
            (
                "",
                "network",
                "str",
                "NETWORK",
                "Connect the container to NETWORK (default: the default bridge)",
            ),
            ("", "entrypoint", "str", "COMMAND", "Replace the image's entrypoint"),
            ("", "top", "int", "N", "Show N rows of each kind (default: 10)"),
            ("", "format", "str", "FORMAT", "json, or a template"),
        ),
        most=-1,
        stops=True,
        example="cove image slim -t app:slim app:1 app --self-test",
    ),
}
