"""The way out of a rootless daemon's network namespace: pasta(1) or slirp4netns(1), whichever is there.

Both run outside, as the user, and answer what comes through a tap device in the namespace with sockets of their own.
Published ports don't go through them (ports.py).
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cove.model.errors import Invalid, Unavailable
from cove.rootless.holder import Holder, Process

READY_BOUND_S = 10.0
AUTO, NONE = "auto", "none"


def choose_programs(wanted: str) -> tuple[str, ...]:
    """What to try, in this order: `wanted`, or with "auto" whatever is installed. Raises Invalid, Unavailable."""
    if wanted not in (AUTO, NONE, *_STARTERS):
        raise Invalid(f"--rootless-network {wanted}: use auto, {', '.join(_STARTERS)} or none")
    if wanted == AUTO:
        return (AUTO, *(name for name in _STARTERS if shutil.which(name)))
    if wanted != NONE and not shutil.which(wanted):
        raise Unavailable(f"--rootless-network {wanted}: it isn't installed; install it, or use none")
    return () if wanted == NONE else (wanted,)


def connect(programs: Sequence[str], holder: Holder, log_path: Path) -> Process | None:
    """Give the holder's network namespace a way out; returns once it works. Raises Unavailable with the program's
    own words; with AUTO among the programs that is a warning: without a way out containers reach each other."""
    trouble: Unavailable | None = None
    for name in programs:
        if name == AUTO:
            trouble = Unavailable("install pasta (Debian: passt) or slirp4netns")
            continue
        try:
            return _STARTERS[name](holder.process.pid, log_path)
        except Unavailable as error:
            trouble = error
    if trouble is None:
        return None
    if AUTO not in programs:
        raise trouble
    print(f"cove daemon: warning: containers have no way out: {trouble}", file=sys.stderr)
    return None


def _start_pasta(pid: int, log_path: Path) -> Process:
    # ports, both ways, are none of its business; what the containers send to the gateway isn't for this host's loopback
    words = "pasta --config-net --foreground --no-map-gw -t none -u none -T none -U none".split()
    child = _spawn([*words, str(pid)], log_path)
    _wait(child, "pasta", lambda: _has_default_route(pid), log_path)
    return _known(child, "pasta", log_path)


def _start_slirp4netns(pid: int, log_path: Path) -> Process:
    ready, theirs = os.pipe2(os.O_CLOEXEC)
    words = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", f"--ready-fd={theirs}"]
    try:
        child = _spawn([*words, str(pid), "tap0"], log_path, pass_fds=(theirs,))
    finally:
        os.close(theirs)
    try:
        _wait(
            child,
            "slirp4netns",
            lambda: bool(select.select([ready], [], [], 0)[0] and os.read(ready, 1)),
            log_path,
        )
    finally:
        os.close(ready)
    return _known(child, "slirp4netns", log_path)


_STARTERS: dict[str, Callable[[int, Path], Process]] = {
    "pasta": _start_pasta,
    "slirp4netns": _start_slirp4netns,
}


def _spawn(words: list[str], log_path: Path, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    with open(log_path, "wb") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            pass_fds=pass_fds,
        )


def _wait(child: subprocess.Popen[bytes], name: str, ready: Callable[[], bool], log_path: Path) -> None:
    """Until it works; Unavailable when it ended or took too long. Neither program tells in a way that both share."""
    pidfd = os.pidfd_open(child.pid)
    try:
        for _ in range(int(READY_BOUND_S / 0.02)):
            if ready():
                return
            if select.select([pidfd], [], [], 0.02)[0]:
                break
    finally:
        os.close(pidfd)
    child.kill()
    child.wait()
    raise Unavailable(
        f"{name} can't connect the daemon's network: {_last_words(log_path)}; "
        "check that /dev/net/tun may be opened by this user, or use --rootless-network none"
    )


def _known(child: subprocess.Popen[bytes], name: str, log_path: Path) -> Process:
    process = Process.of(child.pid)
    if process is None:
        raise Unavailable(f"{name} ended: {_last_words(log_path)}")
    child.returncode = 0  # it stays when we go: nobody is to wait for it
    return process


def _has_default_route(pid: int) -> bool:
    """Whether the namespace of a process has an IPv4 or IPv6 default route that is up."""
    try:
        four = Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]
        six = Path(f"/proc/{pid}/net/ipv6_route").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[1] == "00000000" for line in four) or any(
        line.split()[1] == "00" and line.split()[-1] != "lo" for line in six
    )


def _last_words(log_path: Path) -> str:
    text = log_path.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "to syslog" not in line]
    return lines[-1] if lines else "it said nothing"
