"""pull: have the daemon get an image from its registry, and say how it goes."""

from __future__ import annotations

import sys

from cove.cli.client import query
from cove.cli.credentials import auth_headers, registry_of
from cove.cli.fail import ApiError, CliError
from cove.cli.images import split_reference
from cove.cli.options import Command
from cove.cli.progress import show_progress
from cove.cli.shown import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from cove.cli.client import Client
    from cove.cli.options import Options

WHEN = ("always", "missing", "never")


def split_name(reference: str) -> tuple[str, str]:
    """Repository, and tag or digest ("" for none)."""
    repository, at, digest = reference.partition("@")
    if at:
        return repository, digest
    return split_reference(reference)


def full_name(repository: str, tag: str) -> str:
    """The reference in full, as docker prints it: docker.io/library/debian:latest."""
    host = registry_of(repository)
    path = repository
    if host == "docker.io":
        path = repository.removeprefix("index.docker.io/").removeprefix("docker.io/")
        path = f"docker.io/{path}" if "/" in path else f"docker.io/library/{path}"
    return f"{path}{'@' if ':' in tag else ':'}{tag}"


def pull_image(
    client: Client,
    repository: str,
    tag: str,
    stream: TextIO,
    *,
    platform: str = "",
    quiet: bool = False,
) -> None:
    """Pull one image, or with tag "" all of a repository, and show it on `stream`. CliError."""
    path = "/images/create" + query({"fromImage": repository, "tag": tag, "platform": platform})
    answer = client.request("POST", path, headers=auth_headers(repository))
    show_progress(answer.lines(), stream, quiet=quiet)


def run_pull(client: Client, options: Options) -> int:
    """cove pull"""
    quiet = options.on("quiet")
    repository, tag = split_name(options.args[0])
    if options.on("all-tags"):
        if tag:
            raise CliError(f"--all-tags: {options.args[0]} has a tag: leave one of the two out")
    elif not tag:
        tag = "latest"
        if not quiet:
            print(f"Using default tag: {tag}")
    try:
        pull_image(client, repository, tag, sys.stdout, platform=options.text("platform"), quiet=quiet)
    except ApiError as error:
        raise CliError(str(error), 1) from None
    if tag:
        print(printable(full_name(repository, tag)))
    return 0


COMMANDS = {
    "pull": Command(
        "pull",
        run_pull,
        "[OPTIONS] NAME[:TAG|@DIGEST]",
        "Get an image from its registry.",
        flags=(
            ("a", "all-tags", "bool", "", "Pull every tag of the repository"),
            ("q", "quiet", "bool", "", "Print the image's name alone"),
            (
                "",
                "platform",
                "str",
                "OS/ARCH",
                "Pull for this platform, e.g. linux/arm64 (default: this machine's)",
            ),
        ),
        needed=1,
        example="cove pull registry.example:5000/app:1.2",
    ),
}
