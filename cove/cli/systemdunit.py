"""systemd: a unit file for a container, so that systemd starts, watches and stops it like any other service.

The unit runs `cove start --attach`: what the container writes goes to the journal, its end is the end of the service.
systemd.unit(5), systemd.service(5).
"""

from __future__ import annotations

import os

from cove.cli.client import quote
from cove.cli.fail import CliError
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

POLICIES = ("no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog")
STOP_MARGIN_S = 10  # what systemd waits beyond the container's own time to stop
_DEFAULT_STOP_S = 10


def run_systemd(client: Client, options: Options) -> int:
    """cove systemd"""
    policy = options.text("restart", "on-failure")
    if policy not in POLICIES:
        raise CliError(f"--restart {policy}: expected one of {', '.join(POLICIES)}")
    directory = options.text("output")
    for name in options.args:
        shown = client.get(f"/containers/{quote(name)}/json")
        text = unit_text(
            shown,
            program=_program(),
            host=client.address.text,
            policy=policy,
            after=options.all("after"),
            wanted_by=options.text("wanted-by", "multi-user.target"),
        )
        if directory:
            path = f"{directory.rstrip('/')}/{unit_name(shown)}"
            _write(path, text)
            print(path)
        else:
            print(text, end="")
    return 0


def unit_name(shown: dict[str, Any]) -> str:
    """The unit's name, from what inspect shows of the container."""
    return f"cove-{shown['Name'].removeprefix('/')}.service"


def unit_text(
    shown: dict[str, Any],
    *,
    program: str,
    host: str,
    policy: str,
    after: Sequence[str],
    wanted_by: str,
) -> str:
    """The unit file of a container. CliError for one whose own restart policy would work against systemd's."""
    name = shown["Name"].removeprefix("/")
    own = shown["HostConfig"]["RestartPolicy"]["Name"] or "no"
    if own != "no" and policy != "no":
        raise CliError(
            f"{name}: it has the restart policy {own} and would be started by two; "
            f"cove update --restart no {name}, or cove systemd --restart no"
        )
    if shown["HostConfig"].get("AutoRemove"):
        raise CliError(f"{name}: it is removed when it ends (--rm), and systemd couldn't start it again")
    stop_s = shown["Config"].get("StopTimeout")
    stop_s = _DEFAULT_STOP_S if stop_s is None else stop_s
    others = " ".join(["network-online.target", "cove.service", *after])
    needs = "".join(f"Requires={unit}\n" for unit in after)
    wait = "infinity" if stop_s < 0 else str(stop_s + STOP_MARGIN_S)
    return (
        f"# {unit_name(shown)}: written by `cove systemd {name}`\n"
        "[Unit]\n"
        f"Description=Container {_escape(name)} of {_escape(shown['Config']['Image'])}\n"
        f"After={others}\n"
        "Wants=network-online.target\n"
        f"{needs}"
        "\n[Service]\n"
        f"Environment={_quote('COVE_HOST=' + host)}\n"
        f"ExecStart={_quote(program)} start --attach {_quote(name)}\n"
        f"ExecStop={_quote(program)} stop {_quote(name)}\n"
        f"Restart={policy}\n"
        "# SIGTERM's exit code, of a container that was stopped\n"
        "SuccessExitStatus=143\n"
        f"TimeoutStopSec={wait}\n"
        f"\n[Install]\nWantedBy={wanted_by}\n"
    )


def _program() -> str:
    return os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../bin/cove"))


def _escape(text: str) -> str:
    """Text in which systemd sees no specifier and no second line."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("%", "%%")


def _quote(text: str) -> str:
    """One word of a command line or an assignment."""
    escaped = _escape(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if not escaped or any(c in " ;'\"\\" for c in escaped) else escaped


def _write(path: str, text: str) -> None:
    """Write the file whole or not at all."""
    partial = f"{path}.{os.getpid()}"
    try:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        try:
            os.unlink(partial)
        except OSError:
            pass
        raise CliError(f"{path}: {error.strerror}") from None


COMMANDS = {
    "systemd": Command(
        "systemd",
        run_systemd,
        "[OPTIONS] CONTAINER...",
        "Write a systemd unit for each container: systemd starts and stops it, its output goes to the journal.",
        flags=(
            ("", "after", "list", "UNIT", "Start after UNIT and only with it, e.g. cove-db.service"),
            ("o", "output", "str", "DIR", "Write files into DIR, e.g. /etc/systemd/system (default: print)"),
            ("", "restart", "str", "POLICY", "systemd's restart policy, e.g. always (default: on-failure)"),
            ("", "wanted-by", "str", "TARGET", "Start with TARGET (default: multi-user.target)"),
        ),
        needed=1,
        most=-1,
        example="cove systemd -o /etc/systemd/system web",
    ),
}
