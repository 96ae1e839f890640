"""Volumes: create, list, remove."""

from __future__ import annotations

from cove.cli import output, values
from cove.cli.client import filters, query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.cli.run import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


def run_create(client: Client, options: Options) -> int:
    """cove volume create"""
    body: dict[str, Any] = {
        "Name": options.args[0] if options.args else "",
        "Driver": options.text("driver", "local"),
        "DriverOpts": dict(values.split_pair("opt", text, "type=tmpfs") for text in options.all("opt")),
        "Labels": values.collect_labels(options.all("label"), ()),
    }
    print(client.post("/volumes/create", body)["Name"])
    return 0


def run_ls(client: Client, options: Options) -> int:
    """cove volume ls"""
    answer = client.get("/volumes" + query({"filters": filters(options.all("filter"))}))
    rows = [
        {
            "Driver": volume["Driver"],
            "Name": volume["Name"],
            "Mountpoint": volume["Mountpoint"],
            "Scope": volume.get("Scope", "local"),
            "Labels": output.key_values(volume.get("Labels")),
            "Size": "N/A",
            "Links": "N/A",
        }
        for volume in sorted(answer["Volumes"] or (), key=lambda volume: str(volume["Name"]))
    ]
    columns = (("Driver", "DRIVER"), ("Name", "VOLUME NAME"))
    quiet = "Name" if options.on("quiet") else ""
    output.print_rows(rows, columns, format=options.text("format"), quiet=quiet)
    return 0


def run_rm(client: Client, options: Options) -> int:
    """cove volume rm"""
    status = 0
    for name in options.args:
        try:
            client.delete(f"/volumes/{quote(name)}" + query({"force": options.on("force")}))
        except ApiError as error:
            complain(f"error: {error}")
            status = 1
        else:
            print(name)
    return status


def run_update(client: Client, options: Options) -> int:
    """cove volume update"""
    size = options.text("size")
    if not size:
        raise CliError("volume update: --size is missing: say how large the volume may be, e.g. --size 20g")
    name = options.args[0]
    print(client.post("/cove/v1/volumes/update" + query({"name": name}), {"Size": size})["Name"])
    return 0


COMMANDS = {
    "volume create": Command(
        "volume create",
        run_create,
        "[OPTIONS] [NAME]",
        "Create a volume and print its name.",
        flags=(
            ("d", "driver", "str", "NAME", "Make it by this driver (default: local)"),
            ("o", "opt", "list", "NAME=VALUE", "Set an option of the driver, e.g. size=10g, type=nfs"),
            ("", "label", "list", "NAME=VALUE", "Label the volume, e.g. tier=db"),
        ),
        most=1,
        example="cove volume create data",
    ),
    "volume ls": Command(
        "volume ls",
        run_ls,
        "[OPTIONS]",
        "List volumes.",
        flags=(
            ("f", "filter", "list", "NAME=VALUE", "Only those that match, e.g. dangling=true, name=data"),
            ("q", "quiet", "bool", "", "Print names only"),
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Name}}'"),
        ),
        example="cove volume ls -f dangling=true",
    ),
    "volume update": Command(
        "volume update",
        run_update,
        "--size SIZE VOLUME",
        "Change the size of a volume that was made with one.",
        flags=(("", "size", "str", "SIZE", "Let it hold SIZE, e.g. 20g; an image can only grow"),),
        needed=1,
        most=1,
        example="cove volume update --size 20g data",
    ),
    "volume rm": Command(
        "volume rm",
        run_rm,
        "[OPTIONS] VOLUME...",
        "Remove volumes that no container uses.",
        flags=(("f", "force", "bool", "", "Be content where there is no such volume"),),
        needed=1,
        most=-1,
        example="cove volume rm data",
    ),
}
