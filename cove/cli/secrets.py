"""Secrets: create, update, list, inspect, remove. What is in one is never printed."""

from __future__ import annotations

import base64

from cove.cli import output, values
from cove.cli.client import query
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.cli.run import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

PATH = "/cove/v1/secrets"
MAX_BYTES = 500 << 10


def read_content(source: str) -> str:
    """A file's content, or standard input's for -, in base64."""
    try:
        with open(0 if source == "-" else source, "rb", closefd=source != "-") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CliError(f"{source}: {error.strerror}; name a file, or - for standard input") from None
    if len(content) > MAX_BYTES:
        raise CliError(f"{source}: a secret has up to {MAX_BYTES} bytes")
    return base64.b64encode(content).decode()


def parse_secret(text: str, environment: Mapping[str, str]) -> tuple[str, str, str | None]:
    """`--secret`: (as the key `secrets` has it, its target, its content in base64 where it comes along).

    `NAME`, `NAME,target=FILE,uid=N,gid=N,mode=OCTAL`, `source=FILE,target=…` or `env=VARIABLE,target=…`.
    """
    first, *rest = text.split(",")
    fields = {} if "=" in first else {"name": first}
    for pair in rest if "name" in fields else (first, *rest):
        field, equals, value = pair.partition("=")
        if not equals or field not in ("source", "env", "target", "uid", "gid", "mode"):
            raise values.wrong("secret", text, "NAME or fields, e.g. db,mode=0400 or source=./key,target=key")
        fields[field] = value
    if sum(field in fields for field in ("name", "source", "env")) != 1:
        raise values.wrong("secret", text, "one of NAME, source=FILE and env=VARIABLE, e.g. --secret db")
    content = None
    target = fields.get("target", fields.get("name", ""))
    if "source" in fields:
        content = read_content(fields["source"])
        target = target or fields["source"].rpartition("/")[2]
    elif "env" in fields:
        if fields["env"] not in environment:
            raise CliError(f"--secret {text}: there is no environment variable {fields['env']}; set it")
        content = base64.b64encode(environment[fields["env"]].encode("utf-8", "surrogateescape")).decode()
        target = target or fields["env"]
    options = [f"target={target}"] + [
        f"{key}={fields[key]}" for key in ("uid", "gid", "mode") if key in fields
    ]
    return f"{fields.get('name', '')}:{';'.join(options)}", target.removeprefix("/run/secrets/"), content


def run_create(client: Client, options: Options) -> int:
    """cove secret create"""
    name, source = options.args
    body: dict[str, Any] = {
        "Name": name,
        "Data": read_content(source),
        "Labels": values.collect_labels(options.all("label"), ()),
    }
    client.post(PATH, body)
    print(name)
    return 0


def run_update(client: Client, options: Options) -> int:
    """cove secret update"""
    name, source = options.args
    client.post(f"{PATH}/update" + query({"name": name}), {"Data": read_content(source)})
    print(name)
    return 0


def run_ls(client: Client, options: Options) -> int:
    """cove secret ls"""
    rows = [
        {
            "ID": secret["ID"],
            "Name": secret["Name"],
            "Size": f"{secret['Size']} B",
            "Version": str(secret["Version"]),
            "UpdatedAt": secret["UpdatedAt"],
            "Containers": str(len(secret["Containers"])),
            "Labels": output.key_values(secret["Labels"]),
        }
        for secret in client.get(PATH)
    ]
    columns = (
        ("Name", "NAME"),
        ("Size", "SIZE"),
        ("Version", "VERSION"),
        ("Containers", "CONTAINERS"),
        ("UpdatedAt", "UPDATED"),
    )
    output.print_rows(
        rows, columns, format=options.text("format"), quiet="Name" if options.on("quiet") else ""
    )
    return 0


def run_rm(client: Client, options: Options) -> int:
    """cove secret rm"""
    status = 0
    for name in options.args:
        try:
            client.delete(PATH + query({"name": name}))
        except ApiError as error:
            complain(f"error: {error}")
            status = 1
        else:
            print(name)
    return status


COMMANDS = {
    "secret create": Command(
        "secret create",
        run_create,
        "[OPTIONS] NAME FILE|-",
        "Make a secret of a file's content, or of standard input.",
        flags=(("l", "label", "list", "NAME=VALUE", "Label the secret, e.g. tier=db"),),
        needed=2,
        example="cove secret create db-password ./password\npass show db | cove secret create db-password -",
    ),
    "secret update": Command(
        "secret update",
        run_update,
        "NAME FILE|-",
        "Give a secret new content; containers that run see it at once.",
        needed=2,
        example="cove secret update db-password ./password",
    ),
    "secret ls": Command(
        "secret ls",
        run_ls,
        "[OPTIONS]",
        "List secrets.",
        flags=(
            ("q", "quiet", "bool", "", "Print names only"),
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Name}}'"),
        ),
        example="cove secret ls --format '{{.Name}}: {{.Containers}}'",
    ),
    "secret rm": Command(
        "secret rm",
        run_rm,
        "SECRET...",
        "Remove secrets that no container has.",
        needed=1,
        most=-1,
        example="cove secret rm db-password",
    ),
}
