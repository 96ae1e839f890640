"""Images: list, load, import, save, tag, remove, history."""

from __future__ import annotations

import time

from cove.cli import output
from cove.cli.archivefile import read_archive, save_stream
from cove.cli.client import filters, query, quote
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.run import complain
from cove.cli.shown import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client, Response
    from cove.cli.options import Options

COLUMNS = (
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
)
TAR = {"Content-Type": "application/x-tar"}


def split_reference(reference: str) -> tuple[str, str]:
    """Repository and tag of `host:5000/name:tag`; the tag is "" where there is none."""
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference, "")


def image_rows(image: dict[str, Any], now_s: float, *, whole: bool, digests: bool) -> list[dict[str, Any]]:
    """The rows of one image: one for each name, or one `<none>`."""
    names = [name for name in image.get("RepoTags") or () if name != "<none>:<none>"]
    by_repository = dict(digest.split("@", 1) for digest in image.get("RepoDigests") or () if "@" in digest)
    rows = []
    pairs = [split_reference(name) for name in names]
    if not pairs:
        pairs = [(next(iter(by_repository), "<none>"), "<none>")]
    for repository, tag in pairs:
        rows.append(
            {
                "Repository": repository,
                "Tag": tag or "<none>",
                "Digest": by_repository.get(repository, "<none>"),
                "ID": output.short_id(image["Id"], whole),
                "CreatedSince": output.ago(image.get("Created") or 0, now_s),
                "CreatedAt": output.local_time(image.get("Created") or 0),
                "Size": output.human_size(image.get("Size") or 0),
                "Containers": "N/A" if image.get("Containers", -1) < 0 else str(image["Containers"]),
                "SharedSize": "N/A",
                "UniqueSize": "N/A",
            }
        )
    return rows


def run_images(client: Client, options: Options) -> int:
    """cove images"""
    asked = options.all("filter") + [f"reference={name}" for name in options.args]
    images = client.get("/images/json" + query({"all": options.on("all"), "filters": filters(asked)}))
    now_s = time.time()
    whole, digests = options.on("no-trunc"), options.on("digests")
    rows = [row for image in images for row in image_rows(image, now_s, whole=whole, digests=digests)]
    if options.on("quiet"):
        rows = list({row["ID"]: row for row in rows}.values())
    columns = COLUMNS if not digests else (*COLUMNS[:2], ("Digest", "DIGEST"), *COLUMNS[2:])
    output.print_rows(rows, columns, format=options.text("format"), quiet="ID" if options.on("quiet") else "")
    return 0


def follow_stream(answer: Response) -> list[str]:
    """The messages of a load or import as they come; CliError when the stream says that it failed."""
    messages = []
    for event in answer.lines():
        if "error" in event or "errorDetail" in event:
            detail = event.get("errorDetail") or {}
            raise CliError(str(event.get("error") or detail.get("message")), 1)
        text = event.get("stream") or ""
        if not text and event.get("status") and not event.get("progressDetail"):
            text = event["status"]
        if text.strip():
            messages.append(text.strip())
    return messages


def run_load(client: Client, options: Options) -> int:
    """cove load"""
    stream = read_archive(options.text("input"), "load")
    path = "/images/load" + query({"quiet": options.on("quiet"), "platform": options.text("platform")})
    for message in follow_stream(client.request("POST", path, stream=stream, headers=TAR)):
        print(printable(message))
    return 0


def run_import(client: Client, options: Options) -> int:
    """cove import"""
    source = options.args[0]
    if "://" in source:
        raise CliError(f"{source}: Cove fetches nothing; download it, then cove import FILE")
    repository, tag = split_reference(options.args[1]) if len(options.args) > 1 else ("", "")
    parameters = {
        "fromSrc": "-",
        "repo": repository,
        "tag": tag,
        "message": options.text("message"),
        "changes": options.all("change"),
        "platform": options.text("platform"),
    }
    stream = read_archive(source, "import")
    answer = client.request("POST", "/images/create" + query(parameters), stream=stream, headers=TAR)
    for message in follow_stream(answer):
        print(printable(message))
    return 0


def run_commit(client: Client, options: Options) -> int:
    """cove commit"""
    repository, tag = split_reference(options.args[1]) if len(options.args) > 1 else ("", "")
    asked = {
        "container": options.args[0],
        "repo": repository,
        "tag": tag,
        "comment": options.text("message"),
        "author": options.text("author"),
        "changes": options.all("change"),
        "pause": "1" if options.on("pause", True) else "0",
    }
    print(client.post("/commit" + query(asked), {})["Id"])
    return 0


def run_save(client: Client, options: Options) -> int:
    """cove save"""
    answer = client.request("GET", "/images/get" + query({"names": options.args}))
    save_stream(answer, options.text("output"), "save")
    return 0


def run_tag(client: Client, options: Options) -> int:
    """cove tag"""
    source, target = options.args
    repository, tag = split_reference(target)
    client.post(f"/images/{quote(source)}/tag" + query({"repo": repository, "tag": tag}))
    return 0


def run_rmi(client: Client, options: Options) -> int:
    """cove rmi"""
    parameters = query({"force": options.on("force"), "noprune": options.on("no-prune")})
    status = 0
    for name in options.args:
        try:
            removed = client.delete(f"/images/{quote(name)}{parameters}")
        except CliError as error:
            complain(f"error: {error}")
            status = 1
            continue
        for item in removed or ():
            for what in ("Untagged", "Deleted"):
                if item.get(what):
                    print(printable(f"{what}: {item[what]}"))
    return status


def run_history(client: Client, options: Options) -> int:
    """cove history"""
    whole, now_s = options.on("no-trunc"), time.time()
    human = options.on("human", True)
    rows = []
    for layer in client.get(f"/images/{quote(options.args[0])}/history"):
        text = (layer.get("CreatedBy") or "").replace("\t", " ")
        size = layer.get("Size") or 0
        rows.append(
            {
                "ID": output.short_id(layer.get("Id") or "<missing>", whole),
                "CreatedSince": output.ago(layer.get("Created") or 0, now_s),
                "CreatedAt": output.local_time(layer.get("Created") or 0),
                "CreatedBy": text if whole else output.ellipsis(text, 45),
                "Size": output.human_size(size) if human else str(size),
                "Comment": layer.get("Comment") or "",
            }
        )
    columns = (
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    )
    output.print_rows(rows, columns, format=options.text("format"), quiet="ID" if options.on("quiet") else "")
    return 0


_FORMAT = ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Repository}}:{{.Tag}}'")
_QUIET = ("q", "quiet", "bool", "", "Print ids only")
_WHOLE = ("", "no-trunc", "bool", "", "Show everything in full")
_PLATFORM = ("", "platform", "str", "OS/ARCH", "Take this platform, e.g. linux/amd64")

COMMANDS = {
    "images": Command(
        "images",
        run_images,
        "[OPTIONS] [NAME]",
        "List images.",
        flags=(
            ("a", "all", "bool", "", "List intermediate images too"),
            _QUIET,
            (
                "f",
                "filter",
                "list",
                "NAME=VALUE",
                "Only those that match, e.g. dangling=true, reference=debian",
            ),
            _FORMAT,
            ("", "digests", "bool", "", "Show digests"),
            _WHOLE,
        ),
        most=1,
        example="cove images --format '{{.Repository}}:{{.Tag}} {{.Size}}'",
    ),
    "load": Command(
        "load",
        run_load,
        "[OPTIONS]",
        "Load images from an archive that docker save or an OCI tool made; any compression.",
        flags=(
            ("i", "input", "str", "FILE", "Read FILE (default: standard input)"),
            ("q", "quiet", "bool", "", "Say less"),
            _PLATFORM,
        ),
        example="cove load -i images.tar",
    ),
    "import": Command(
        "import",
        run_import,
        "[OPTIONS] FILE|- [NAME[:TAG]]",
        "Make an image of one layer from a file system's tar archive.",
        flags=(
            ("c", "change", "list", "LINE", "Set a property by a Dockerfile's line, e.g. 'CMD [\"bash\"]'"),
            ("m", "message", "str", "TEXT", "Note TEXT in the image's history"),
            _PLATFORM,
        ),
        needed=1,
        most=2,
        example="cove import -c 'CMD [\"bash\"]' debian.tar debian:latest",
    ),
    "commit": Command(
        "commit",
        run_commit,
        "[OPTIONS] CONTAINER [IMAGE[:TAG]]",
        "Make an image of a container: its image and, as one more layer, what it changed.",
        flags=(
            ("a", "author", "str", "TEXT", "Say who made it, e.g. 'Ada <ada@example.org>'"),
            ("c", "change", "list", "LINE", "Set a property by a Dockerfile's line, e.g. 'ENV DEBUG=1'"),
            ("m", "message", "str", "TEXT", "Note TEXT in the image's history"),
            ("p", "pause", "bool", "", "Freeze the container meanwhile (default: true)"),
        ),
        needed=1,
        most=2,
        example="cove commit -c 'CMD [\"serve\"]' web web:tools",
    ),
    "save": Command(
        "save",
        run_save,
        "[OPTIONS] IMAGE...",
        "Write images to an archive for load.",
        flags=(("o", "output", "str", "FILE", "Write to FILE (default: standard output)"), _PLATFORM),
        needed=1,
        most=-1,
        example="cove save -o images.tar debian",
    ),
    "tag": Command(
        "tag",
        run_tag,
        "IMAGE NAME[:TAG]",
        "Give an image another name.",
        needed=2,
        example="cove tag debian:latest mine:1",
    ),
    "rmi": Command(
        "rmi",
        run_rmi,
        "[OPTIONS] IMAGE...",
        "Remove names of images, and the images that have none left.",
        flags=(
            (
                "f",
                "force",
                "bool",
                "",
                "Remove it though a stopped container uses it, or it has several names",
            ),
            ("", "no-prune", "bool", "", "Keep parents without a name"),
        ),
        needed=1,
        most=-1,
        example="cove rmi mine:1",
    ),
    "history": Command(
        "history",
        run_history,
        "[OPTIONS] IMAGE",
        "Show how an image was made, newest step first.",
        flags=(("H", "human", "bool", "", "Print sizes for people (default: true)"), _QUIET, _FORMAT, _WHOLE),
        needed=1,
        example="cove history --no-trunc debian",
    ),
}
