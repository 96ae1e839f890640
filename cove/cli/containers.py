"""The plain commands on containers: each is one request for each name, and a word about what came of it."""

from __future__ import annotations

from cove.cli import createbody, output, values
from cove.cli.client import query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.cli.run import complain, each
from cove.cli.runflags import CREATE_FLAGS
from cove.cli.shown import for_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


def _post_each(client: Client, options: Options, action: str, parameters: dict[str, Any]) -> int:
    suffix = action + query(parameters)
    return each(client, options.args, lambda name: client.post(f"/containers/{quote(name)}/{suffix}"))


def run_stop(client: Client, options: Options) -> int:
    """cove stop"""
    seconds = options.number("time") if "time" in options else options.number("timeout")
    return _post_each(client, options, "stop", {"t": seconds, "signal": options.text("signal")})


def run_restart(client: Client, options: Options) -> int:
    """cove restart"""
    seconds = options.number("time") if "time" in options else options.number("timeout")
    return _post_each(client, options, "restart", {"t": seconds, "signal": options.text("signal")})


def run_kill(client: Client, options: Options) -> int:
    """cove kill"""
    return _post_each(client, options, "kill", {"signal": options.text("signal")})


def run_pause(client: Client, options: Options) -> int:
    """cove pause"""
    return _post_each(client, options, "pause", {})


def run_unpause(client: Client, options: Options) -> int:
    """cove unpause"""
    return _post_each(client, options, "unpause", {})


def run_rm(client: Client, options: Options) -> int:
    """cove rm"""
    force = options.on("force")
    parameters = query({"force": force, "v": options.on("volumes"), "link": options.on("link")})

    def remove(name: str) -> None:
        try:
            client.delete(f"/containers/{quote(name)}{parameters}")
        except ApiError as error:
            if not (force and error.http == 404):
                raise
            # as docker's: rm -f is content when there is nothing to remove, but says so
            raise CliError(str(error)) from None

    status = 0
    for name in options.args:
        try:
            remove(name)
        except ApiError as error:
            complain(f"error: {error}")
            status = 1
        except CliError as error:
            complain(f"error: {error}")
        else:
            print(name)
    return status


def run_wait(client: Client, options: Options) -> int:
    """cove wait"""
    status = 0
    for name in options.args:
        try:
            answer = client.post(f"/containers/{quote(name)}/wait")
        except ApiError as error:
            complain(f"error: {error}")
            status = 1
        else:
            print(answer["StatusCode"], flush=True)
    return status


def run_rename(client: Client, options: Options) -> int:
    """cove rename"""
    name, new = options.args
    client.post(f"/containers/{quote(name)}/rename" + query({"name": new}))
    return 0


_UPDATE_FLAGS = (
    ("", "blkio-weight", "int", "NUMBER", "Weight of disk I/O against others, 10 to 1000"),
    ("", "cpu-period", "int", "MICROSECONDS", "Period of the CPU quota, e.g. 100000"),
    ("", "cpu-quota", "int", "MICROSECONDS", "CPU time in each period, e.g. 50000"),
    ("", "cpu-rt-period", "int", "MICROSECONDS", "Period of the real-time quota"),
    ("", "cpu-rt-runtime", "int", "MICROSECONDS", "Real-time CPU time in each period"),
    ("c", "cpu-shares", "int", "NUMBER", "Weight of CPU time against others, e.g. 512"),
    ("", "cpuset-cpus", "str", "LIST", "Run on these CPUs only, e.g. 0-1,3"),
    ("", "cpuset-mems", "str", "LIST", "Use these memory nodes only, e.g. 0"),
    ("", "cpus", "str", "NUMBER", "Limit CPU time, e.g. 0.5"),
    ("m", "memory", "str", "SIZE", "Limit memory, e.g. 512m"),
    ("", "memory-reservation", "str", "SIZE", "Aim at this much memory when the host is short"),
    ("", "memory-swap", "str", "SIZE", "Limit memory and swap together, e.g. 1g; -1 for unlimited swap"),
    ("", "pids-limit", "int", "NUMBER", "Limit processes and threads; -1 for no limit"),
    ("", "restart", "str", "POLICY", "no, always, unless-stopped or on-failure[:COUNT]"),
    ("", "publish-add", "list", "[IP:][HOST:]PORT", "Publish a port more, e.g. 8443:443"),
    ("", "publish-rm", "list", "PORT", "Publish a port of the container no more, e.g. 80 or 53/udp"),
    (
        "",
        "mount-add",
        "list",
        "MOUNT",
        "Mount a bind or volume more, e.g. type=volume,source=data,target=/data",
    ),
    ("", "mount-rm", "list", "TARGET", "Take away what was added at TARGET while it runs; a volume stays"),
    ("", "label-add", "list", "NAME=VALUE", "Set a label, e.g. tier=web"),
    ("", "label-rm", "list", "NAME", "Remove a label"),
    *(flag for flag in CREATE_FLAGS if flag[1].startswith(("health-", "depends-"))),
)


# what only another container can have
_RECREATED = {
    flag: f"it can't be changed on a container that is there; cove recreate {flag} … creates it again with it"
    for short, long, *_, text in CREATE_FLAGS
    if text and long not in ("name", "cidfile", "pull", "quiet", "platform", "attach", "pod")
    for flag in (f"--{long}", f"-{short}" if short else "")
    if flag and long not in {known[1] for known in _UPDATE_FLAGS}
}


def run_update(client: Client, options: Options) -> int:
    """cove update"""
    changes = createbody.build_changes(options)
    body = createbody.build_limits(options)
    if "restart" in options:
        body["RestartPolicy"] = values.parse_restart(options.text("restart"))
    if not body and not changes:
        raise CliError("update: expected something to change, e.g. cove update --memory 512m web")

    def update(name: str) -> None:
        if changes:
            client.post("/cove/v1/update" + query({"container": name}), changes)
        answer = client.post(f"/containers/{quote(name)}/update", body) if body else {}
        for warning in (answer or {}).get("Warnings") or ():
            complain(f"warning: {warning}")

    return each(client, options.args, update)


def run_port(client: Client, options: Options) -> int:
    """cove port"""
    name = options.args[0]
    ports = (client.get(f"/containers/{quote(name)}/json")["NetworkSettings"].get("Ports")) or {}
    wanted = ""
    if len(options.args) == 2:
        text, protocol = values.split_protocol("port", options.args[1])
        wanted = f"{text}/{protocol}"
        if not ports.get(wanted):
            raise CliError(f"{wanted}: {name} doesn't publish it; cove port {name} lists what it does", 1)
    for port in [wanted] if wanted else sorted(ports, key=lambda port: (len(port), port)):
        for binding in ports[port] or ():
            host = binding["HostIp"]
            shown = f"{f'[{host}]' if ':' in host else host}:{binding['HostPort']}"
            print(shown if wanted else f"{port} -> {shown}")
    return 0


def run_top(client: Client, options: Options) -> int:
    """cove top"""
    name, *arguments = options.args
    answer = client.get(f"/containers/{quote(name)}/top" + query({"ps_args": " ".join(arguments)}))
    print(output.render_table(answer["Titles"], answer["Processes"] or []), end="")
    return 0


def run_diff(client: Client, options: Options) -> int:
    """cove diff"""
    for change in client.get(f"/containers/{quote(options.args[0])}/changes") or ():
        print(for_terminal(f"{'CAD'[change['Kind']]} {change['Path']}"))
    return 0


def run_export(client: Client, options: Options) -> int:
    """cove export"""
    from cove.cli.archivefile import save_stream

    answer = client.request("GET", f"/containers/{quote(options.args[0])}/export")
    save_stream(answer, options.text("output"), "export")
    return 0


# --- logs ---------------------------------------------------------------------------------


def run_logs(client: Client, options: Options) -> int:
    """cove logs"""
    import time

    from cove.cli.session import Demultiplexer, write_all

    name = options.args[0]
    tail = options.text("tail", "all")
    if tail != "all" and not tail.isdecimal():
        raise values.wrong("tail", tail, "a number of lines or all, e.g. --tail 100")
    now_s = time.time()
    container = client.get(f"/containers/{quote(name)}/json")
    tty = bool(container["Config"].get("Tty"))
    parameters = {
        "stdout": True,
        "stderr": True,
        "follow": options.on("follow"),
        "timestamps": options.on("timestamps"),
        "tail": tail,
        "since": parse_time("since", options.text("since"), now_s),
        "until": parse_time("until", options.text("until"), now_s),
        "details": options.on("details"),
    }
    if options.on("follow") and container.get("State", {}).get("Running"):
        from cove.cli.follow import follow

        follow(client, container, parameters)
        return 0
    answer = client.request("GET", f"/containers/{quote(name)}/logs" + query(parameters))
    demultiplexer = Demultiplexer()
    for data in answer.chunks():
        if tty:
            write_all(1, data)
        else:
            demultiplexer.feed(data)
    return 0


def parse_time(flag: str, text: str, now_s: float) -> str:
    """A point in time as the API takes it: seconds since the epoch, RFC 3339, or a duration before now."""
    if not text or _is_epoch(text):
        return text
    if "-" in text[1:]:
        padded = text + "0000-00-00T00:00:00"[len(text) :] if len(text) < 19 else text
        seconds = output.parse_rfc3339(padded)
        if not seconds:
            raise values.wrong(flag, text, "a time such as 2026-01-31T09:30:00Z, 10m or 1700000000")
        if padded[19:].lstrip(".0123456789") == "":
            # no zone named: the caller's
            seconds -= time_zone_offset(seconds)
        fraction = padded[19:].lstrip(".")
        digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
        return f"{seconds:.0f}.{digits}" if padded[19:20] == "." and digits else f"{seconds:.0f}"
    return f"{now_s - values.parse_duration_ns(flag, text) / 1e9:.9f}"


def time_zone_offset(seconds: float) -> int:
    """The local zone's seconds east of UTC at a time."""
    import time

    return time.localtime(seconds).tm_gmtoff


def _is_epoch(text: str) -> bool:
    whole, dot, fraction = text.partition(".")
    return whole.isdecimal() and (fraction.isdecimal() or not dot)


_TIME = (
    (
        "t",
        "time",
        "int",
        "SECONDS",
        "Wait SECONDS before SIGKILL; 0 kills at once (default: the container's)",
    ),
    ("", "timeout", "int", "SECONDS", ""),
    ("s", "signal", "str", "SIGNAL", "Send this signal (default: the container's stop signal)"),
)


def _command(name: str, function: Any, summary: str, example: str, flags: Any = (), **counts: Any) -> Command:
    usage = counts.pop("usage", "[OPTIONS] CONTAINER..." if flags else "CONTAINER...")
    counts = {"needed": 1, "most": -1, **counts}
    return Command(name, function, usage, summary, flags=flags, example=example, **counts)


COMMANDS = {
    "stop": _command(
        "stop", run_stop, "Stop containers: a signal, then SIGKILL.", "cove stop -t 5 web", _TIME
    ),
    "restart": _command(
        "restart", run_restart, "Stop containers and start them again.", "cove restart web", _TIME
    ),
    "kill": _command(
        "kill",
        run_kill,
        "Send a signal to the first process of containers.",
        "cove kill -s HUP web",
        (("s", "signal", "str", "SIGNAL", "Send this signal, e.g. HUP or 1 (default: KILL)"),),
    ),
    "rm": _command(
        "rm",
        run_rm,
        "Remove containers.",
        "cove rm -f web",
        (
            ("f", "force", "bool", "", "Kill it first if it is running"),
            ("v", "volumes", "bool", "", "Remove its anonymous volumes too"),
            ("l", "link", "bool", "", "Remove the link, not the container"),
        ),
    ),
    "pause": _command("pause", run_pause, "Freeze every process of containers.", "cove pause web"),
    "unpause": _command("unpause", run_unpause, "Let frozen containers go on.", "cove unpause web"),
    "wait": _command(
        "wait", run_wait, "Wait until containers end and print their exit codes.", "cove wait job"
    ),
    "rename": _command(
        "rename",
        run_rename,
        "Give a container another name.",
        "cove rename web web-old",
        needed=2,
        most=2,
        usage="CONTAINER NAME",
    ),
    "update": _command(
        "update",
        run_update,
        "Change limits, published ports, labels and health checks of containers, running or not.",
        "cove update --memory 512m --memory-swap 1g web\ncove update --publish-add 8443:443 --label-add tier=web web",
        _UPDATE_FLAGS,
        hints=_RECREATED,
    ),
    "port": _command(
        "port",
        run_port,
        "List the ports that a container publishes, or where one of them is.",
        "cove port web 80/tcp",
        usage="CONTAINER [PORT[/PROTOCOL]]",
        most=2,
    ),
    "top": _command(
        "top",
        run_top,
        "List the processes of a container, as ps on the host sees them.",
        "cove top web -o pid,rss,args",
        usage="CONTAINER [PS OPTIONS]",
        stops=True,
    ),
    "diff": _command(
        "diff",
        run_diff,
        "List files that a container changed (C), added (A) and deleted (D).",
        "cove diff web",
        usage="CONTAINER",
        most=1,
    ),
    "export": _command(
        "export",
        run_export,
        "Write a container's file system as a tar archive.",
        "cove export -o web.tar web",
        (("o", "output", "str", "FILE", "Write to FILE (default: standard output)"),),
        usage="[OPTIONS] CONTAINER",
        most=1,
    ),
    "logs": _command(
        "logs",
        run_logs,
        "Show what a container wrote.",
        "cove logs -f --tail 20 web",
        (
            ("f", "follow", "bool", "", "Go on as it writes"),
            ("n", "tail", "str", "NUMBER", "Only the last NUMBER lines, e.g. 100 (default: all)"),
            ("t", "timestamps", "bool", "", "Put its time before each line"),
            ("", "since", "str", "TIME", "From TIME on, e.g. 10m or 2026-01-31T09:30:00Z"),
            ("", "until", "str", "TIME", "Up to TIME, e.g. 5m"),
            ("", "details", "bool", "", "Show extra attributes of the log driver"),
        ),
        usage="[OPTIONS] CONTAINER",
        most=1,
    ),
}
