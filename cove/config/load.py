"""The configuration of this process: its command line, and the file that it names."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cove import __version__
from cove.config.kinds import Switch
from cove.config.read import MAX_FILE_BYTES, Config, flag_example, read_config
from cove.config.table import DEFAULT_FILE, KEYS, Key
from cove.model.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the configuration comes from, to be read again at a reload.

    `path` is "" for no file; one that isn't `required` may be missing. `flags` are the words given to each key.
    """

    path: str
    required: bool
    flags: Mapping[str, Sequence[str]]
    defaults: Mapping[str, Any]

    def read(self) -> Config:
        """Read the file and put both together. Raises Invalid."""
        try:
            text = read_text(self.path, required=self.required) if self.path else ""
        except Invalid as error:
            raise Invalid(f"--config-file {error}") from None
        return read_config(text, self.path, self.flags, self.defaults)


def read_text(path: str, *, required: bool) -> str:
    """The file's text; "" when it is missing and needn't be there. Raises Invalid."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if not required:
            return ""
        raise Invalid(f"{path}: there is no such file") from None
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid(f"{path}: expected a regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Invalid(f"{path}: is larger than the limit of {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: byte {error.start} isn't UTF-8") from None


def command_line() -> argparse.ArgumentParser:
    """The parser of `cove daemon`: a flag for each key of the table, and what only a command line says."""
    parser = argparse.ArgumentParser(
        prog="cove daemon",
        description="Run the daemon in the foreground.",
        epilog="example: cove daemon --data-root /srv/cove --run-dir /run/cove2 -H unix:///run/cove2/docker.sock",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config-file",
        metavar="PATH",
        help="read the configuration from PATH, JSON with the keys of docs/daemon.md "
        f"(default: {DEFAULT_FILE} where it is there)",
    )
    parser.add_argument(
        "--validate", action="store_true", help="check the configuration, say what is wrong with it, and exit"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration in effect as JSON, and exit"
    )
    parser.add_argument(
        "--uninstall",
        action="store_true",
        help="end every container of this daemon, remove its bridge, nftables table and cgroups, and exit",
    )
    parser.add_argument("--version", action="version", version=f"cove {__version__}")
    sections: dict[str, Any] = {}
    for key in KEYS:
        if key.section not in sections:
            sections[key.section] = parser.add_argument_group(key.section)
        names = [
            *([f"-{key.short}"] if key.short else ()),
            key.option,
            *(f"--{name}" for name in key.flag_aliases),
        ]
        sections[key.section].add_argument(
            *names,
            action="append",
            dest=key.name,
            metavar=key.kind.metavar,
            help=_help(key),
            **({"nargs": "?", "const": "true"} if isinstance(key.kind, Switch) else {}),
        )
    return parser


def _help(key: Key) -> str:
    text = f"{key.help}, e.g. {flag_example(key)}"
    if key.refused:
        text += f" (refused: {key.refused})"
    elif key.ignored:
        text += f" (no effect: {key.ignored})"
    elif key.kind.to_json(key.default) not in ("", [], {}):
        shown = key.kind.to_json(key.default)
        text += f" (default: {str(shown).lower() if isinstance(shown, bool) else shown})"
    return text.replace("%", "%%")


def plan_source(
    options: argparse.Namespace,
    *,
    default_file: str = DEFAULT_FILE,
    defaults: Mapping[str, Any] | None = None,
) -> Source:
    """The source that a parsed command line names."""
    given = vars(options)
    path = given.get("config-file", given.get("config_file"))
    return Source(
        path=default_file if path is None else path,
        required=path is not None,
        flags={key.name: given[key.name] for key in KEYS if key.name in given},
        defaults=defaults or {},
    )
