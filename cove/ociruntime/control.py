"""The short verbs: start, state, kill, delete, pause, resume. They read state.json and little else."""

from __future__ import annotations

import fcntl
import os
import select
import struct

from cove.model import wirejson
from cove.model.errors import Conflict, HostError, Invalid, NotFound
from cove.ociruntime import cgroup, teardown
from cove.ociruntime.state import check_id, load, remove_directory
from cove.ociruntime.words import explain_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.ociruntime.main import Call
    from cove.ociruntime.state import Container

_SIGKILL, _SIGTERM = 9, 15


# --- state ------------------------------------------------------------------------------------------


def state_command(call: Call) -> int:
    print(pretty(describe(load(call.root, call.options.args[0]))))
    return 0


def describe(container: Container) -> dict[str, Any]:
    """What `state` and `list` print of a container, in runc's order."""
    data, status = container.data, container.status()
    shown = {
        "ociVersion": data["ociVersion"],
        "id": data["id"],
        "pid": 0 if status == "stopped" else container.pid,
        "status": status,
        "bundle": data["bundle"],
        "rootfs": data["rootfs"],
        "created": data["created"],
    }
    if data["annotations"]:
        shown["annotations"] = data["annotations"]
    return {**shown, "owner": ""}


def pretty(value: Any, level: int = 0) -> str:
    """JSON with two spaces a level, as runc prints it."""
    inner = "  " * (level + 1)
    if isinstance(value, dict) and value:
        rows = [f"{inner}{wirejson.dumps(key)}: {pretty(item, level + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * level + "}"
    return wirejson.dumps(value)


# --- start ------------------------------------------------------------------------------------------


def start_command(call: Call) -> int:
    container = load(call.root, call.options.args[0])
    status = container.status()
    if status == "stopped":
        raise Conflict("cannot start a container that has stopped")
    if status == "running":
        raise Conflict("cannot start an already running container")
    if status != "created":
        raise Conflict(f"cannot start a container in the {status} state")
    release(container)
    if container.data["poststart"]:
        from cove.ociruntime.create import run_poststart
        from cove.ociruntime.execute import read_config

        run_poststart(container, read_config(container))
    return 0


def release(container: Container) -> None:
    """Let the waiting process go, and wait for its exec. Raises HostError, with the reason, when it fails, Conflict
    when there is nobody waiting."""
    directory = container.directory
    try:
        status = os.open(f"{directory}/status", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Conflict("cannot start an already running container") from None
    try:
        try:
            fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
            go = os.open(f"{directory}/go", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (BlockingIOError, FileNotFoundError):
            raise Conflict("cannot start a container that another call starts") from None
        except OSError:
            raise Conflict("container not running: its process has ended before it was started") from None
        text = b""
        if any(kind == "hook" for kind, _ in container.data["after_hold"].values()):
            text = wirejson.dumps(container.public("created")).encode(errors="surrogateescape")
        os.write(go, struct.pack("<I", len(text)) + text)
        os.close(go)
        told = _read_status(container, status)
        for name in ("go", "status"):
            os.unlink(f"{directory}/{name}")
    finally:
        os.close(status)
    if told:
        # who shares the pid namespace and may trace can write here, too
        index, number = struct.unpack("<Ii", told.ljust(8, b"\0"))
        kind, what = container.data["after_hold"].get(str(index), ("", "start the process"))
        raise HostError(explain_failure(kind, what, number))


def _read_status(container: Container, status: int) -> bytes:
    """What the process writes before its exec, b"" at the exec. It may also end; waiting for that, too, is for
    containers whose neighbour keeps the FIFO open (whoever shares the pid namespace and may trace can)."""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    try:
        process = container.open_process()
    except Conflict:
        process = -1
    try:
        if process >= 0:
            poll.register(process, select.POLLIN)
            poll.poll()
        return os.read(status, 8)
    except BlockingIOError:
        raise Conflict("container not running: its process has ended while it was started") from None
    finally:
        if process >= 0:
            os.close(process)


# --- kill and delete --------------------------------------------------------------------------------


def kill_command(call: Call) -> int:
    name, *rest = call.options.args
    container = load(call.root, name)
    signo = parse_signal(rest[0] if rest else "SIGTERM")
    if call.options.on("all") or (signo == _SIGKILL and not container.data["own_pids"]):
        pids = cgroup.list_pids(container.data["cgroups"])
        if not pids and not call.options.on("all"):
            raise Conflict("container not running")
        if signo == _SIGKILL:  # again and again: who forks doesn't get away
            cgroup.kill_all(container.data["cgroups"], container.data["freezer"])
        else:
            for pid in pids:
                _send(pid, signo)
    else:
        _signal_first(container, signo)
    if signo == _SIGKILL:
        cgroup.thaw(container.data["freezer"])
    return 0


def _signal_first(container: Container, signo: int) -> None:
    from _signal import pidfd_send_signal  # type: ignore[import-not-found]

    pidfd = container.open_process()
    try:
        pidfd_send_signal(pidfd, signo)
    except ProcessLookupError:
        raise Conflict("container not running") from None
    except OSError as error:
        raise HostError(f"unable to signal init: {(error.strerror or '').lower()}") from None
    finally:
        os.close(pidfd)


def _send(pid: int, signo: int) -> None:
    try:
        os.kill(pid, signo)
    except ProcessLookupError:
        pass


def parse_signal(text: str) -> int:
    """A number, or a name with or without SIG. Raises Invalid."""
    if text.isascii() and text.isdecimal() and int(text) <= 64:
        return int(text)
    import signal

    name = text.upper()
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    if not isinstance(found, signal.Signals):
        raise Invalid(f"unknown signal {text!r}: give a number or a name, e.g. SIGTERM")
    return int(found)


def delete_command(call: Call) -> int:
    name, force = call.options.args[0], call.options.on("force")
    try:
        container = load(call.root, name)
    except NotFound:
        # killed before state.json was written: there is nothing but the directory
        remove_directory(f"{call.root}/{check_id(name)}")
        if force:
            return 0
        raise
    status = container.status()
    if status in ("created", "stopped") or force:
        container.end_maker()
        try:
            container = load(call.root, name)
        except NotFound:  # its maker had just given up
            return 0
        teardown.destroy(call, container)
        return 0
    raise Conflict(f"cannot delete container {name} that is not stopped: {status}")


# --- pause and resume -------------------------------------------------------------------------------


def pause_command(call: Call) -> int:
    from cove.runtime.cgroups import wait_here
    from cove.runtime.cgroups_detect import detect_cgroups

    container = load(call.root, call.options.args[0])
    status = container.status()
    if status not in ("running", "created"):
        raise Conflict(f"container not running: it is {status}")
    wait_here(detect_cgroups().freezing(container.cgroup))
    return 0


def resume_command(call: Call) -> int:
    from cove.runtime.cgroups import wait_here
    from cove.runtime.cgroups_detect import detect_cgroups

    container = load(call.root, call.options.args[0])
    if container.status() != "paused":
        raise Conflict("container not paused")
    wait_here(detect_cgroups().thawing(container.cgroup))
    return 0
