"""cove build: an image from a Dockerfile and a directory; and the cache that builds leave."""

from __future__ import annotations

import binascii
import itertools
import os
import sys

from cove.cli import output
from cove.cli.buildcontext import find_ignore, send_context
from cove.cli.buildoutput import parse_output, write_output
from cove.cli.buildprogress import make_progress
from cove.cli.client import filters, query
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.shown import KEPT, printable
from cove.cli.values import parse_host, parse_size, parse_ulimit, split_csv
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

MAX_DOCKERFILE_BYTES = 1 << 20
_PROGRESS = ("auto", "plain", "tty", "quiet", "json", "rawjson")


def run_build(client: Client, options: Options) -> int:
    """cove build"""
    path = options.args[0]
    for text in options.all("output"):
        parse_output(text)
    progress_kind = "quiet" if options.on("quiet") else options.text("progress", "auto")
    if progress_kind not in _PROGRESS:
        raise CliError(f"--progress {progress_kind}: expected one of {', '.join(_PROGRESS)}")
    if path == "-":
        return _build_stdin(client, options, progress_kind)
    if "://" in path or path.startswith("git@"):
        return _build_classic(client, options, progress_kind, remote=path)
    if not os.path.isdir(path):
        raise CliError(f"{path}: no such directory: name the directory to build from, e.g. cove build .")
    dockerfile, name = _dockerfile(path, options.text("file"))
    return _build(client, options, progress_kind, path, dockerfile, name)


def _dockerfile(root: str, given: str) -> tuple[bytes, str]:
    """The Dockerfile's text and its path ("" for standard input)."""
    if given == "-":
        return sys.stdin.buffer.read(MAX_DOCKERFILE_BYTES + 1), ""
    candidates = [given] if given else [os.path.join(root, name) for name in ("Dockerfile", "dockerfile")]
    for path in candidates:
        try:
            with open(path, "rb") as file:
                return file.read(MAX_DOCKERFILE_BYTES + 1), path
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}") from None
    raise CliError(f"{candidates[0]}: there is no such Dockerfile: write one, or name it with --file")


def _build(
    client: Client, options: Options, progress_kind: str, root: str, dockerfile: bytes, name: str
) -> int:
    progress = make_progress(progress_kind)
    body = _body(options)
    body["Dockerfile"] = dockerfile.decode("utf-8", "surrogateescape")
    body["Name"] = name or "Dockerfile"
    if options.on("check"):
        return _check(client, body)
    if root:
        context, files, size = send_context(client, root, find_ignore(root, name))
        body["Context"] = context
        if files:
            progress.say(f"sent {files} files, {output.human_size(size)}")
    contexts = {}
    for text in options.all("build-context"):
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CliError(f"--build-context {text}: expected NAME=PATH, e.g. --build-context src=../src")
        if "://" in value:
            body.setdefault("Named", {})[key] = value
        elif not os.path.isdir(value):
            raise CliError(f"--build-context {text}: {value} is no directory")
        else:
            contexts[key] = send_context(client, value, find_ignore(value, ""))[0]
    if contexts:
        body["Contexts"] = contexts
    image = ""
    answer = client.request("POST", "/cove/v1/build", body)
    for line in answer.lines():
        progress.feed(line)
        if "image" in line:
            image = line["image"]
        if "error" in line:
            progress.finish()
            sys.stderr.write(progress.failure(line, body["Name"]))
            raise CliError(line["error"], 1)
    progress.finish()
    if not image:
        raise CliError("the build broke off: the daemon ended", 1)
    for text in options.all("output"):
        write_output(client, image, *parse_output(text))
    return _tell(options, image, progress_kind)


def _check(client: Client, body: dict[str, Any]) -> int:
    """--check: what there is to say of the Dockerfile; nothing is built."""
    found = client.post("/cove/v1/build/check", body)
    print(found["Text"])
    return 1 if found["Count"] else 0


def _tell(options: Options, image: str, progress_kind: str) -> int:
    names = options.all("tag")
    if path := options.text("iidfile"):
        _write(path, image)
    if path := options.text("metadata-file"):
        metadata = {"containerimage.config.digest": image, "containerimage.digest": image}
        if names:
            metadata["image.name"] = ",".join(names)
        _write(path, wirejson.dumps(metadata) + "\n")
    if progress_kind == "quiet":
        print(image)
    elif progress_kind not in ("json", "rawjson"):
        shown = f", named {', '.join(names)}" if names else ""
        print(printable(f"built {image}{shown}"), file=sys.stderr)
    return 0


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None


def _body(options: Options) -> dict[str, Any]:
    """The request's fields by the flags, as far as they are given."""
    found: dict[str, Any] = {
        "Tags": options.all("tag"),
        "BuildArgs": _arguments(options.all("build-arg")),
        "Labels": dict(_pair("--label", text) for text in options.all("label")),
        "Target": options.text("target"),
        "Platform": options.text("platform"),
        "Network": options.text("network"),
        "Hosts": [parse_host(text) for text in options.all("add-host")],
        "NoCache": options.on("no-cache"),
        "NoCacheStages": [
            name for text in options.all("no-cache-filter") for name in text.split(",") if name
        ],
        "Pull": options.on("pull"),
        "Ulimits": [parse_ulimit(text) for text in options.all("ulimit")],
        "Secrets": dict(_secret(text) for text in options.all("secret")),
        "Agents": dict(_agent(text) for text in options.all("ssh")),
    }
    for flag, key in (("memory", "Memory"), ("shm-size", "ShmSize")):
        if text := options.text(flag):
            found[key] = parse_size(f"--{flag}", text)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch and "SOURCE_DATE_EPOCH" not in found["BuildArgs"]:
        found["BuildArgs"]["SOURCE_DATE_EPOCH"] = epoch
    return {key: value for key, value in found.items() if value}


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise CliError(f"{flag} {text}: expected NAME=VALUE")
    return name, value


def _arguments(given: list[str]) -> dict[str, str]:
    """--build-arg NAME=VALUE, or NAME for the variable of that name here."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise CliError(f"--build-arg {text}: expected NAME=VALUE, e.g. --build-arg VERSION=1.2")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _fields(flag: str, text: str, known: tuple[str, ...], first: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in split_csv(flag, text):
        name, equals, value = field.partition("=")
        if not equals and not found:
            name, value = first, field
        if name not in known:
            raise CliError(f"{flag} {text}: {name!r} isn't one of {', '.join(known)}")
        found[name] = value
    return found


def _secret(text: str) -> tuple[str, str]:
    """--secret id=NAME[,src=FILE|,env=VARIABLE]: the contents as base64."""
    found = _fields("--secret", text, ("id", "src", "source", "env", "type"), "id")
    name = found.get("id", "")
    if not name:
        raise CliError(f"--secret {text}: an id is needed, e.g. --secret id=token,src=token.txt")
    path = found.get("src") or found.get("source") or ""
    variable = found.get("env", "")
    if not path and (variable or found.get("type") == "env" or name in os.environ):
        value = os.environ.get(variable or name)
        if value is None:
            raise CliError(f"--secret {text}: there is no variable {variable or name}")
        data = value.encode("utf-8", "surrogateescape")
    else:
        try:
            with open(path or name, "rb") as file:
                data = file.read((500 << 10) + 1)
        except OSError as error:
            raise CliError(f"--secret {text}: {path or name}: {error.strerror}") from None
    if len(data) > 500 << 10:
        raise CliError(f"--secret {text}: it is larger than 500 KiB, which is the limit")
    return name, binascii.b2a_base64(data, newline=False).decode()


def _agent(text: str) -> tuple[str, str]:
    """--ssh default[=SOCKET]: an agent's socket on this machine."""
    name, _, path = text.partition("=")
    path = path or os.environ.get("SSH_AUTH_SOCK", "")
    if not path:
        raise CliError(
            f"--ssh {text}: there is no agent: start ssh-agent, or name its socket: --ssh default=PATH"
        )
    return name or "default", os.path.abspath(path)


def _build_stdin(client: Client, options: Options, progress_kind: str) -> int:
    """`-`: standard input is a Dockerfile, or an archive of all files."""
    head = os.read(0, 512)
    if not _is_archive(head):
        text = head + sys.stdin.buffer.read(MAX_DOCKERFILE_BYTES + 1 - len(head))
        return _build(client, options, progress_kind, "", text, "")
    stream = itertools.chain((head,), iter(lambda: os.read(0, 1 << 18), b""))
    return _build_classic(client, options, progress_kind, stream=stream)


_NOT_CLASSIC = (
    "add-host build-context check iidfile memory metadata-file no-cache-filter output secret shm-size ssh ulimit"
).split()


def _build_classic(
    client: Client,
    options: Options,
    progress_kind: str,
    *,
    stream: Iterable[bytes] = (),
    remote: str = "",
) -> int:
    """An archive of all files, or a URL of one: by Docker's own endpoint, which knows less."""
    for flag in _NOT_CLASSIC:
        if flag in options:
            raise CliError(f"--{flag}: works when a directory is built: unpack the archive first")
    asked = {
        "t": options.all("tag"),
        "dockerfile": options.text("file"),
        "target": options.text("target"),
        "buildargs": wirejson.dumps(_arguments(options.all("build-arg"))),
        "labels": wirejson.dumps(dict(_pair("--label", text) for text in options.all("label"))),
        "nocache": options.on("no-cache"),
        "pull": options.on("pull"),
        "networkmode": options.text("network"),
        "platform": options.text("platform"),
        "q": progress_kind == "quiet",
        "remote": remote,
    }
    headers = {"Content-Type": "application/x-tar"}
    answer = client.request("POST", "/build" + query(asked), stream=iter(stream), headers=headers)
    for event in answer.lines():
        if "error" in event:
            raise CliError(event["error"], 1)
        text = event.get("stream", "").replace("\x1b[91m", "").replace("\x1b[0m", "")
        print(printable(text, KEPT), end="", flush=True)
    return 0


def _is_archive(head: bytes) -> bool:
    magics = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    return head.startswith(magics) or head[257:262] == b"ustar" or (len(head) >= 512 and b"\0" in head[:200])


# --- the cache ----------------------------------------------------------------------------


def run_prune(client: Client, options: Options) -> int:
    """cove builder prune"""
    asked: dict[str, Any] = {"filters": filters(options.all("filter")), "all": options.on("all")}
    if text := options.text("keep-storage"):
        asked["keep-storage"] = parse_size("--keep-storage", text)
    if not options.on("force"):
        print(
            "This will remove what builds keep. Are you sure you want to continue? [y/N] ", end="", flush=True
        )
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    found = client.post("/build/prune" + query(asked))
    for name in found.get("CachesDeleted") or ():
        print(name)
    print(f"Total reclaimed space: {output.human_size(found.get('SpaceReclaimed') or 0)}")
    return 0


def run_ls(client: Client, options: Options) -> int:
    """cove builder ls"""
    rows = [
        {
            "ID": entry["ID"] if options.on("no-trunc") else entry["ID"][:12],
            "Description": printable(" ".join(entry["Description"].split())),
            "Size": output.human_size(entry["Size"]),
            "Shared": "true" if entry["Shared"] else "false",
            "UsageCount": str(entry["UsageCount"]),
            "LastUsedAt": entry["LastUsedAt"],
        }
        for entry in client.get("/system/df?type=build-cache")["BuildCache"] or ()
    ]
    columns = (
        ("ID", "ID"),
        ("Size", "SIZE"),
        ("Shared", "SHARED"),
        ("UsageCount", "USED"),
        ("LastUsedAt", "LAST USED"),
        ("Description", "DESCRIPTION"),
    )
    quiet = "ID" if options.on("quiet") else ""
    output.print_rows(rows, columns, format=options.text("format"), quiet=quiet)
    return 0


COMMANDS = {
    "build": Command(
        "build",
        run_build,
        "[OPTIONS] PATH|URL|-",
        "Build an image from a Dockerfile; of the directory PATH only what has changed is sent.",
        flags=(
            ("", "add-host", "list", "NAME:ADDRESS", "Add a line to /etc/hosts of steps"),
            ("", "build-arg", "list", "NAME=VALUE", "Set an ARG; NAME alone takes the variable's value here"),
            (
                "",
                "build-context",
                "list",
                "NAME=PATH",
                "A further directory, or docker-image://IMAGE, by NAME",
            ),
            (
                "",
                "check",
                "bool",
                "",
                "Check the Dockerfile and build nothing; 1 when there is something to say",
            ),
            ("f", "file", "str", "FILE", "Read FILE, or - for standard input (default: PATH/Dockerfile)"),
            ("", "iidfile", "str", "FILE", "Write the image's id to FILE"),
            ("", "label", "list", "NAME=VALUE", "Give the image a label"),
            ("m", "memory", "str", "SIZE", "Limit the memory of each step, e.g. 512m (default: no limit)"),
            ("", "metadata-file", "str", "FILE", "Write the result's digests to FILE, as JSON"),
            ("", "network", "str", "NAME", "The network of steps: none, host, or a name (default: bridge)"),
            ("", "no-cache", "bool", "", "Run every step again"),
            ("", "no-cache-filter", "list", "STAGE", "Run every step of these stages again"),
            (
                "o",
                "output",
                "list",
                "type=KIND,dest=PATH",
                "Write its files (local, tar) or itself (oci, docker)",
            ),
            ("", "platform", "str", "OS/ARCH", "Build for this platform, e.g. linux/amd64"),
            ("", "progress", "str", "KIND", "auto, plain, quiet or json (default: auto)"),
            ("", "pull", "bool", "", "Look for newer base images"),
            ("q", "quiet", "bool", "", "Print the image's id alone"),
            (
                "",
                "secret",
                "list",
                "id=NAME,src=FILE",
                "A secret for RUN --mount=type=secret; env=VARIABLE too",
            ),
            ("", "shm-size", "str", "SIZE", "Size of /dev/shm of steps, e.g. 128m (default: 64m)"),
            ("", "ssh", "list", "NAME[=SOCKET]", "Let steps use an SSH agent of this machine, e.g. default"),
            ("t", "tag", "list", "NAME[:TAG]", "Name the image; may be repeated"),
            ("", "target", "str", "STAGE", "Build this stage (default: the last)"),
            ("", "ulimit", "list", "NAME=SOFT[:HARD]", "Set a limit of steps, e.g. nofile=1024"),
        ),
        needed=1,
        example="cove build -t app:1 .",
    ),
    "builder prune": Command(
        "builder prune",
        run_prune,
        "[OPTIONS]",
        "Remove what builds keep: results of steps, cache mounts, contexts.",
        flags=(
            ("a", "all", "bool", "", "Everything (as without it)"),
            ("", "filter", "list", "NAME=VALUE", "Only those, e.g. until=24h or id=1f0e"),
            ("f", "force", "bool", "", "Don't ask"),
            ("", "keep-storage", "str", "SIZE", "Keep what was used last, up to SIZE, e.g. 10g"),
        ),
        example="cove builder prune -f --keep-storage 10g",
    ),
    "builder ls": Command(
        "builder ls",
        run_ls,
        "[OPTIONS]",
        "List the results that builds keep, the longest unused first.",
        flags=(
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.ID}}'"),
            ("q", "quiet", "bool", "", "Print ids only"),
            ("", "no-trunc", "bool", "", "Show everything in full"),
        ),
        example="cove builder ls",
    ),
}
