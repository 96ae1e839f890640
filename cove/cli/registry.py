"""registry: serves a registry, or looks after its content. It becomes a process of its own, as the daemon does."""

from __future__ import annotations

import os

from cove.cli.fail import CliError
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client
    from cove.cli.options import Flag, Options

_ROOT: tuple[Flag, ...] = (
    ("", "root", "str", "DIR", "Keep the registry's content in DIR (default: DATA-ROOT/registry)"),
    ("", "data-root", "str", "DIR", "The daemon's directory (default: $COVE_DATA_ROOT, /var/lib/cove)"),
    ("", "run-as", "str", "USER", "Become USER (default: the directory's owner, cove-registry, nobody)"),
)
SERVE: tuple[Flag, ...] = (
    (
        "",
        "listen",
        "list",
        "ADDRESS",
        "Answer on HOST:PORT or unix:///PATH; may be repeated (default: 127.0.0.1:5000)",
    ),
    *_ROOT,
    ("", "read-only", "bool", "", "Take no pushes and no deletions"),
    (
        "",
        "anonymous",
        "str",
        "WHAT",
        "What callers without a login may do: none, pull or push (default: push on loopback)",
    ),
    ("", "htpasswd", "str", "FILE", "Users and hashes of their passwords, as htpasswd -B writes them"),
    ("", "user", "list", "NAME:FILE", "A user whose password is FILE's first line; may be repeated"),
    ("", "policy", "str", "FILE", "Rules in TOML: who may pull, push and delete in which repositories"),
    (
        "",
        "tokens",
        "bool",
        "",
        "Let clients log in for tokens of this server (Bearer) instead of by password",
    ),
    ("", "tls", "str", "self", "Speak TLS with a certificate of the registry's own authority"),
    ("", "tls-name", "list", "NAME", "Another name or address for that certificate; may be repeated"),
    ("", "tls-cert", "str", "FILE", "Speak TLS with this certificate (PEM)"),
    ("", "tls-key", "str", "FILE", "Its key (PEM)"),
    (
        "",
        "tls-client-ca",
        "str",
        "FILE",
        "Know clients by certificates of this authority; their common name is the user",
    ),
    (
        "",
        "share",
        "str",
        "WHOM",
        "Whose pushes may take blobs from this machine's images by a link: local, pushers or none (default: local)",
    ),
    ("", "images", "bool", "", "Serve this machine's images to other machines, and take no pushes"),
    (
        "",
        "daemon",
        "str",
        "ADDRESS",
        "The daemon whose images these are (default: unix:///run/cove/docker.sock)",
    ),
    (
        "",
        "proxy",
        "list",
        "[NAME=]URL",
        "Be a cache of another registry, of NAME/… or of everything; may be repeated",
    ),
    ("", "proxy-credentials", "str", "FILE", "Users of those registries, as in docker's config.json"),
    ("", "proxy-age", "str", "TIME", "Ask again about a tag that was asked about TIME ago (default: 60s)"),
    ("", "reserve", "str", "SIZE", "Leave SIZE of the disk free, e.g. 10g (default: 1g)"),
    ("", "max-blob", "str", "SIZE", "Take no blob larger than SIZE (default: 64g)"),
    (
        "",
        "upload-expiry",
        "str",
        "TIME",
        "Forget uploads that nobody goes on with for TIME, e.g. 2h (default: 24h)",
    ),
    ("", "quiet", "bool", "", "Write no line for each request"),
)


def run_registry(verb: str, options: Options) -> int:
    """Become `python -m cove.registry VERB` with the options that were given."""
    words = [verb]
    for name, value in options.given.items():
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                words.append(f"--{name}")
            elif each is not False:
                words.append(f"--{name}={each}")
    if os.environ.get("COVE_DATA_ROOT") and "data-root" not in options:
        words.append(f"--data-root={os.environ['COVE_DATA_ROOT']}")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = f"{root}/.venv/bin/python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = root
    try:
        os.execve(python, [python, "-P", "-m", "cove.registry", *words], environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise CliError(
            f"cannot start the registry: {python}: {error.strerror}; run sh scripts/setup.sh run"
        ) from None


def _serve(client: Client, options: Options) -> int:
    return run_registry("serve", options)


def _gc(client: Client, options: Options) -> int:
    return run_registry("gc", options)


def _check(client: Client, options: Options) -> int:
    return run_registry("check", options)


COMMANDS = {
    "registry gc": Command(
        "registry gc",
        _gc,
        "[--dry-run] [--untagged] [OPTIONS]",
        "Free the space of what no repository of a registry needs. The registry may serve meanwhile.",
        flags=(
            ("", "dry-run", "bool", "", "Say what would be removed, and remove nothing"),
            ("", "untagged", "bool", "", "Remove manifests, too, that no tag leads to"),
            (
                "",
                "grace",
                "str",
                "TIME",
                "Keep what somebody relied on within TIME: pushes that are under way (default: 1h)",
            ),
            *_ROOT,
        ),
        example="cove registry gc --dry-run",
    ),
    "registry check": Command(
        "registry check",
        _check,
        "[--fast] [OPTIONS]",
        "Check a registry's content and links, and say what is wrong; exits with 1 when something is.",
        flags=(("", "fast", "bool", "", "Compare sizes, and read no content"), *_ROOT),
        example="cove registry check",
    ),
    "registry serve": Command(
        "registry serve",
        _serve,
        "[--listen ADDRESS]... [OPTIONS]",
        "Serve a registry that docker, skopeo and cove push to and pull from, in the foreground.",
        flags=SERVE,
        example="cove registry serve --listen 127.0.0.1:5000",
    ),
}
