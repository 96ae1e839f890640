"""The options of `cove registry serve`, `gc` and `check`: what may be said, and what it means."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cove.model.errors import Invalid
from cove.registry.uploads import Bounds

DATA_ROOT = "/var/lib/cove"  # root's; an ordinary user's daemon has its own (cove.rootless.bootstrap)
LISTEN = "127.0.0.1:5000"
_SIZE = re.compile(r"(\d{1,15})([bkmgt]?)b?", re.ASCII)
_DURATION = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise Invalid(message)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """`command` and what it was given. Raises Invalid."""
    parser = Parser(prog="cove registry", add_help=False, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", parser_class=Parser, required=True)
    serve = commands.add_parser("serve", add_help=False, allow_abbrev=False)
    collect = commands.add_parser("gc", add_help=False, allow_abbrev=False)
    check = commands.add_parser("check", add_help=False, allow_abbrev=False)
    for each in (serve, collect, check):
        each.add_argument("--root", default="")
        each.add_argument("--data-root", default=default_data_root())
        each.add_argument("--run-as", default="")
    serve.add_argument("--listen", action="append", default=[])
    serve.add_argument("--read-only", action="store_true")
    serve.add_argument("--reserve", default="1g")
    serve.add_argument("--max-blob", default="64g")
    serve.add_argument("--upload-expiry", default="24h")
    serve.add_argument("--anonymous", default="")
    for flag in ("--htpasswd", "--policy", "--tls", "--tls-cert", "--tls-key", "--tls-client-ca"):
        serve.add_argument(flag, default="")
    for flag in ("--user", "--tls-name"):
        serve.add_argument(flag, action="append", default=[])
    serve.add_argument("--share", default="local")
    serve.add_argument("--proxy", action="append", default=[])
    serve.add_argument("--proxy-credentials", default="")
    serve.add_argument("--proxy-age", default="60s")
    serve.add_argument("--images", action="store_true")
    serve.add_argument("--daemon", default="")
    serve.add_argument("--tokens", action="store_true")
    serve.add_argument("--quiet", action="store_true")
    collect.add_argument("--dry-run", action="store_true")
    collect.add_argument("--untagged", action="store_true")
    collect.add_argument("--grace", default="1h")
    check.add_argument("--fast", action="store_true")
    return parser.parse_args(list(arguments))


def default_data_root() -> str:
    """Where the daemon of this user keeps its images."""
    if os.geteuid() == 0:
        return DATA_ROOT
    given = os.environ.get("XDG_DATA_HOME", "")
    return f"{given}/cove" if given else str(Path.home() / ".local/share/cove")


def plan_root(options: argparse.Namespace) -> Path:
    """The registry's directory: --root, or the one beside the machine's images."""
    name = "registry-images" if getattr(options, "images", False) else "registry"
    path = Path(options.root or f"{options.data_root}/{name}")
    if not path.is_absolute():
        path = Path.cwd() / path
    return path


def plan_bounds(options: argparse.Namespace) -> Bounds:
    """What uploads may take. Raises Invalid."""
    return Bounds(
        blob_bytes=parse_size("--max-blob", options.max_blob),
        reserve_bytes=parse_size("--reserve", options.reserve),
        expiry_s=parse_duration("--upload-expiry", options.upload_expiry),
    )


def parse_size(flag: str, text: str) -> int:
    """A number of bytes from 512m, 10g … Raises Invalid."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise Invalid(f"{flag} {text}: expected a number and b, k, m, g or t, e.g. 10g")
    return int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]]


def parse_duration(flag: str, text: str) -> float:
    """Seconds from 90s, 10m, 24h, 7d. Raises Invalid."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Invalid(f"{flag} {text}: expected a number and s, m, h or d, e.g. 24h")
    return float(int(match[1]) * _SECONDS[match[2]])
