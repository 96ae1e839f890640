"""run, create, start, attach and exec: the commands that bind a process to the caller's terminal.

Order that must hold for run, as in docker's own: create; then, before start, attach and ask to
wait for the exit, both answered; then start. So no output and no exit can be missed. The requests
that don't depend on each other are sent before their answers are read.
"""

from __future__ import annotations

import os
import sys
import time

from cove.cli import createbody, terminal
from cove.cli.client import Connection, filters, query, quote
from cove.cli.fail import REFUSED, ApiError, CliError
from cove.cli.options import Command
from cove.cli.runflags import CREATE_FLAGS, RUN_FLAGS
from cove.cli.session import Session
from cove.cli.shown import KEPT, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cove.cli.client import Client, Response
    from cove.cli.options import Options

RESTART_PATIENCE_S = 60.0  # how long a daemon that went away may take to be back
UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


# --- run and create -----------------------------------------------------------------------


def create_container(client: Client, options: Options, *, detach: bool) -> str:
    """Create by the flags of run; returns the container's id."""
    body = createbody.build_body(options, os.environ, detach=detach)
    if "init" not in options:
        body.setdefault("Cove", {})["init"] = "auto"
    if options.on("tty"):
        rows, columns = terminal.window_size(1)
        if rows:
            body["HostConfig"]["ConsoleSize"] = [rows, columns]
    cidfile = createbody.write_cidfile(options.text("cidfile")) if options.text("cidfile") else -1
    made = False
    try:
        path = "/containers/create" + query(
            {"name": options.text("name"), "platform": options.text("platform")}
        )
        answer = _create(client, path, body, options)
        for warning in answer.get("Warnings") or ():
            complain(f"warning: {warning}")
        if cidfile >= 0:
            os.write(cidfile, answer["Id"].encode())
        made = True
    except ApiError as error:
        raise CliError(_explain_create(error, body["Image"])) from None
    finally:
        if cidfile >= 0:
            os.close(cidfile)
            if not made:
                os.unlink(options.text("cidfile"))
    return str(answer["Id"])


def _create(client: Client, path: str, body: dict[str, Any], options: Options) -> Any:
    """Create, after a pull where `--pull` says so; what is missing is pulled once."""
    when = options.text("pull", "missing")
    if when == "always":
        _pull(client, body["Image"], options)
    try:
        return client.post(path, body)
    except ApiError as error:
        if when != "missing" or error.http != 404 or not str(error).startswith("No such image"):
            raise
    if not options.on("quiet"):
        complain(f"Unable to find image '{body['Image']}' locally")
    _pull(client, body["Image"], options)
    return client.post(path, body)


def _pull(client: Client, image: str, options: Options) -> None:
    from cove.cli.pull import pull_image, split_name

    repository, tag = split_name(image)
    platform, quiet = options.text("platform"), options.on("quiet")
    try:
        pull_image(client, repository, tag or "latest", sys.stderr, platform=platform, quiet=quiet)
    except CliError as error:
        raise CliError(str(error)) from None  # the container isn't there: run's own status


def _explain_create(error: ApiError, image: str) -> str:
    message = str(error)
    if error.http == 404 and message.startswith("No such image"):
        return f"{message}; cove images lists what is there, cove pull brings more"
    return message


def run_create(client: Client, options: Options) -> int:
    """cove create"""
    print(create_container(client, options, detach=False))
    return 0


def run_run(client: Client, options: Options) -> int:
    """cove run"""
    detach = options.on("detach")
    keys = terminal.parse_detach_keys(options.text("detach-keys"))
    stdin, stdout, stderr = createbody.attached_streams(options, detach=detach)
    if stdin and options.on("tty"):
        require_terminal()
    container = create_container(client, options, detach=detach)
    if "depends-on" in options:
        tell_waits(client, options.text("name") or container)
    if not (stdin or stdout or stderr):
        start_container(client, container)
        print(container)
        return 0
    return run_attached(
        client,
        container,
        tty=options.on("tty"),
        streams=(stdin, stdout, stderr),
        keys=keys,
        keys_text=options.text("detach-keys"),
        condition="removed" if options.on("rm") else "next-exit",
        start=True,
        proxy=options.on("sig-proxy", True),
    )


def run_attached(
    client: Client,
    container: str,
    *,
    tty: bool,
    streams: tuple[bool, bool, bool],
    keys: bytes,
    keys_text: str,
    condition: str,
    start: bool,
    proxy: bool,
    starter: Callable[[Client, str], None] | None = None,
) -> int:
    """Attach, start if asked to, copy until the end; the container's exit code, 0 after detaching. `starter` starts in
    another way."""
    begun_s = time.time()
    stdin, stdout, stderr = streams
    parameters = {
        "stream": True,
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "detachKeys": keys_text,
    }
    attached = client.connect()
    attached.send("POST", f"/containers/{quote(container)}/attach" + query(parameters), headers=UPGRADE)
    waiting = client.connect()
    waiting.send("POST", f"/containers/{quote(container)}/wait" + query({"condition": condition}))
    attached.receive().check()
    # An old daemon sends the head of its answer to wait only at the end.
    if start:
        try:
            waited = waiting.receive().check()
            (starter or start_container)(client, container)
        except CliError:
            attached.close()
            waiting.close()
            raise
    else:
        waited = waiting.receive().check()
    detached = converse(
        client,
        attached,
        tty=tty,
        stdin=stdin,
        keys=keys,
        proxy=proxy,
        resize=f"/containers/{quote(container)}/resize",
        kill=f"/containers/{quote(container)}/kill",
    )
    if detached:
        return 0
    return _exit_code(client, container, waited, begun_s)


def _exit_code(client: Client, container: str, waited: Response, begun_s: float) -> int:
    try:
        answer = waited.json() or {}
    except CliError:  # the daemon was restarted; the container went on, and so did its streams
        return _told_exit_code(client, container, begun_s)
    problem = (answer.get("Error") or {}).get("Message")
    if problem:
        raise CliError(str(problem))
    return int(answer.get("StatusCode", REFUSED))


def _told_exit_code(client: Client, container: str, begun_s: float) -> int:
    """The exit code by the daemon's event store: a container with --rm is gone when the daemon is back."""
    deadline = time.monotonic() + RESTART_PATIENCE_S
    while True:
        client.forget()
        selected = filters([f"container={container}", "event=die"])
        window = {"since": f"{begun_s:.9f}", "until": f"{time.time():.9f}", "filters": selected}
        try:
            told = list(client.request("GET", "/events" + query(window)).lines())
            if told:
                return int(told[-1]["Actor"]["Attributes"]["exitCode"])
        except ApiError:
            raise
        except CliError:
            pass  # it doesn't answer yet
        if time.monotonic() > deadline:
            raise CliError(
                f"{container[:12]}: the daemon went away, so its exit code is unknown; once it is back, see cove ps -a"
            )
        time.sleep(0.1)


def tell_waits(client: Client, container: str) -> None:
    """Say what a start is going to wait for."""
    try:
        waits = client.get("/cove/v1/waits" + query({"container": container}))
    except ApiError:
        return  # dockerd, or the start will say it
    for one in waits:
        if not one["Met"]:
            complain(f"{container}: waits for {one['Text']}")


def start_container(client: Client, container: str) -> None:
    """Start; a failure's exit status is the shell's: 127 not found, 126 not executable, else 125."""
    try:
        client.post(f"/containers/{quote(container)}/start")
    except ApiError as error:
        message = str(error)
        lowered = message.lower()
        status = REFUSED
        if "executable file not found" in lowered or "no such file or directory" in lowered:
            status = 127
        elif "permission denied" in lowered or "is a directory" in lowered:
            status = 126
        raise CliError(message, status) from None


def converse(
    client: Client,
    attached: Connection,
    *,
    tty: bool,
    stdin: bool,
    keys: bytes,
    proxy: bool,
    resize: str,
    kill: str,
) -> bool:
    """Copy between the caller and an attached process; True when the person detached.

    With a terminal the process gets its signals by keys, so only the terminal's size is passed
    on, and a signal that would end this command ends it with the terminal restored. `kill` ""
    means that signals have nowhere to go (exec).
    """
    sock, early = attached.hijack()
    raw = tty and stdin and os.isatty(0)

    def on_signal(number: int) -> None:
        if number == terminal.SIGWINCH:
            send_size(client, resize)
        elif tty or not kill:
            raise SystemExit(128 + number)
        else:
            try:
                client.post(kill + query({"signal": terminal.signal_name(number)}))
            except ApiError:
                pass  # it ended meanwhile

    numbers: tuple[int, ...] = (terminal.SIGWINCH,) if tty else ()
    if tty:
        numbers += (terminal.SIGTERM, terminal.SIGHUP)
    elif proxy and kill:
        numbers += terminal.PROXIED
    session = Session(
        sock, early, tty=tty, stdin=stdin, detach_keys=keys if stdin else b"", on_signal=on_signal
    )
    try:
        with terminal.Signals(numbers) as signals:
            if tty:
                send_size(client, resize)
            if raw:
                with terminal.RawMode(0):
                    session.run(signals)
            else:
                session.run(signals)
    except SystemExit as end:
        raise CliError(
            f"ended by {terminal.signal_name(int(end.code or 0) - 128)}", int(end.code or 0)
        ) from None
    finally:
        sock.close()
    return session.detached


def send_size(client: Client, path: str) -> None:
    """Tell the daemon the terminal's size, where there is a terminal."""
    rows, columns = terminal.window_size(1)
    if not rows:
        rows, columns = terminal.window_size(0)
    if rows and columns:
        try:
            client.post(path + query({"h": rows, "w": columns}))
        except ApiError:
            pass  # it ended meanwhile


def require_terminal() -> None:
    """docker's check before -i and -t together."""
    if not os.isatty(0):
        raise CliError("the input device is not a TTY; leave out -t, or run it in a terminal", 1)


def complain(message: str) -> None:
    """A line on standard error."""
    os.write(2, (printable(message, KEPT) + "\n").encode())


# --- start and attach ---------------------------------------------------------------------


def run_start(client: Client, options: Options) -> int:
    """cove start"""
    attach, stdin = options.on("attach"), options.on("interactive")
    if attach or stdin:
        if len(options.args) > 1:
            raise CliError("--attach and --interactive work with one container; name one only")
        return _attach_to(client, options.args[0], options, start=True, stdin=stdin)

    def start(name: str) -> None:
        tell_waits(client, name)
        start_container(client, name)

    return each(client, options.args, start, status=1)


def each(client: Client, names: list[str], act: Callable[[str], Any], *, status: int = 1) -> int:
    """Act on every name and print it; what fails is said and the rest goes on."""
    result = 0
    for name in names:
        try:
            act(name)
        except CliError as error:
            complain(f"error: {error}")
            result = status
        else:
            print(name)
    return result


def run_attach(client: Client, options: Options) -> int:
    """cove attach"""
    return _attach_to(client, options.args[0], options, start=False, stdin=not options.on("no-stdin"))


def _attach_to(client: Client, name: str, options: Options, *, start: bool, stdin: bool) -> int:
    keys = terminal.parse_detach_keys(options.text("detach-keys"))
    shown = client.get(f"/containers/{quote(name)}/json")
    config, state = shown["Config"], shown["State"]
    if not start and not state["Running"]:
        raise CliError(f"{name}: it isn't running; cove start --attach {name} starts it", 1)
    if not start and state.get("Paused"):
        raise CliError(f"{name}: it is paused; cove unpause {name} lets it go on", 1)
    stdin = stdin and bool(config.get("OpenStdin"))
    tty = bool(config.get("Tty"))
    if stdin and tty:
        require_terminal()
    condition = "next-exit" if start else "not-running"
    if shown["HostConfig"].get("AutoRemove"):
        condition = "removed"
    return run_attached(
        client,
        shown["Id"],
        tty=tty,
        streams=(stdin, True, True),
        keys=keys,
        keys_text=options.text("detach-keys"),
        condition=condition,
        start=start and not state["Running"],
        proxy=options.on("sig-proxy", True),
    )


# --- exec ---------------------------------------------------------------------------------


def run_exec(client: Client, options: Options) -> int:
    """cove exec"""
    from cove.cli.values import collect_env

    container, *command = options.args
    detach, tty, stdin = options.on("detach"), options.on("tty"), options.on("interactive")
    keys = terminal.parse_detach_keys(options.text("detach-keys"))
    if stdin and tty and not detach:
        require_terminal()
    body: dict[str, Any] = {
        "AttachStdin": stdin and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Tty": tty,
        "Cmd": command,
        "Env": collect_env(options.all("env"), options.all("env-file"), os.environ),
        "Privileged": options.on("privileged"),
        "User": options.text("user"),
        "WorkingDir": options.text("workdir"),
        "DetachKeys": options.text("detach-keys"),
    }
    size = list(terminal.window_size(1)) if tty and not detach else [0, 0]
    if size[0]:
        body["ConsoleSize"] = size
    made = str(client.post(f"/containers/{quote(container)}/exec", body)["Id"])
    begin: dict[str, Any] = {"Detach": detach, "Tty": tty}
    if size[0]:
        begin["ConsoleSize"] = size
    if detach:
        client.request("POST", f"/exec/{made}/start", begin).read()
        return 0
    attached = client.connect()
    from cove.model.wirejson import dumps

    headers = {**UPGRADE, "Content-Type": "application/json"}
    attached.send("POST", f"/exec/{made}/start", dumps(begin).encode(), headers)
    try:
        attached.receive().check()
    except ApiError as error:
        lowered = str(error).lower()
        found = "not found" in lowered or "no such file" in lowered
        status = 127 if found else 126 if "permission denied" in lowered else 1
        raise CliError(str(error), status) from None
    detached = converse(
        client,
        attached,
        tty=tty,
        stdin=stdin,
        keys=keys,
        proxy=False,
        resize=f"/exec/{made}/resize",
        kill="",
    )
    return 0 if detached else _exec_status(client, made)


def _exec_status(client: Client, made: str) -> int:
    """The exit status of an exec whose stream ended; a daemon may see the process's end a moment later."""
    import time

    pause_s = 0.001
    while True:
        shown = client.get(f"/exec/{made}/json")
        if not shown["Running"] and shown["ExitCode"] is not None:
            return int(shown["ExitCode"])
        time.sleep(pause_s)  # the API has no way to wait for an exec
        pause_s = min(pause_s * 2, 0.1)


_DETACH_KEYS = ("", "detach-keys", "str", "KEYS", "Leave it running by these keys (default: ctrl-p,ctrl-q)")
_SIG_PROXY = ("", "sig-proxy", "bool", "", "Pass signals on to the process (default: true)")

COMMANDS = {
    "run": Command(
        "run",
        run_run,
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create a container and start it; attached to it unless -d. The exit status is the process's.",
        flags=RUN_FLAGS,
        needed=1,
        most=-1,
        stops=True,
        example=(
            "cove run --rm -it debian bash\n"
            "cove run -d --name web -p 8080:80 -m 256m --cpus 0.5 debian sleep 600"
        ),
    ),
    "create": Command(
        "create",
        run_create,
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create a container without starting it, and print its id.",
        flags=CREATE_FLAGS,
        needed=1,
        most=-1,
        stops=True,
        example="cove create --name job debian sleep 60",
    ),
    "start": Command(
        "start",
        run_start,
        "[OPTIONS] CONTAINER...",
        "Start containers that were created or have ended.",
        flags=(
            ("a", "attach", "bool", "", "Attach to its output and wait for its end"),
            ("i", "interactive", "bool", "", "Attach to its input too"),
            _DETACH_KEYS,
            _SIG_PROXY,
        ),
        needed=1,
        most=-1,
        example="cove start web",
    ),
    "attach": Command(
        "attach",
        run_attach,
        "[OPTIONS] CONTAINER",
        "Connect this terminal to a running container's first process.",
        flags=(
            ("", "no-stdin", "bool", "", "Attach to its output only"),
            _DETACH_KEYS,
            _SIG_PROXY,
        ),
        needed=1,
        example="cove attach web",
    ),
    "exec": Command(
        "exec",
        run_exec,
        "[OPTIONS] CONTAINER COMMAND [ARG...]",
        "Run another process in a running container. The exit status is that process's.",
        flags=(
            ("d", "detach", "bool", "", "Run it in the background"),
            ("i", "interactive", "bool", "", "Keep standard input open"),
            ("t", "tty", "bool", "", "Give the process a terminal"),
            ("e", "env", "list", "NAME=VALUE", "Set an environment variable, e.g. -e A=b"),
            ("", "env-file", "list", "FILE", "Read environment variables from a file"),
            ("u", "user", "str", "USER[:GROUP]", "Run as a user, e.g. 1000:1000 (default: the container's)"),
            ("w", "workdir", "str", "DIR", "Start in DIR (default: the container's)"),
            ("", "privileged", "bool", "", "Give the process every capability"),
            _DETACH_KEYS,
        ),
        needed=2,
        most=-1,
        stops=True,
        example="cove exec -it web bash",
    ),
}
