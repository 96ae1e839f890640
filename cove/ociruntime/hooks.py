"""Run the hooks of the host: prestart, createRuntime, poststart and poststop (config.md, "POSIX-platform Hooks").

A hook gets the container's state on its standard input. One that doesn't end with 0, or not within its time, fails;
what that means is the caller's matter.
"""

from __future__ import annotations

import os
import select
import time

from cove.model import wirejson
from cove.model.errors import HostError
from cove.ociruntime import caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from cove.runtime.oci import Hook

_SHOWN_BYTES = 4096
_POLL_S = 3600.0  # poll(2) takes milliseconds in 32 bits


def run_hooks(kind: str, hooks: Iterable[Hook], state: Mapping[str, Any]) -> None:
    """Run them one after the other. Raises HostError at the first that fails."""
    for index, hook in enumerate(hooks):
        reason = run_hook(hook, wirejson.dumps(state))
        if reason:
            raise HostError(f"error running {kind} hook #{index}: {hook.path}: {reason}")


def run_hook(hook: Hook, text: str) -> str:
    """Run one; "" or why it failed."""
    stdin = os.memfd_create("state")
    output = os.memfd_create("output")
    try:
        os.write(stdin, text.encode(errors="surrogateescape"))
        os.lseek(stdin, 0, os.SEEK_SET)
        environment = dict(item.partition("=")[::2] for item in hook.env) if hook.env else os.environ
        try:
            pid = caller.current.spawn_hook(hook.path, hook.args or (hook.path,), environment, stdin, output)
        except OSError as error:
            return (error.strerror or str(error)).lower()
        status = _wait(pid, hook.timeout)
        if status == 0:
            return ""
        os.lseek(output, 0, os.SEEK_SET)
        shown = os.read(output, _SHOWN_BYTES).decode(errors="replace").strip()
        if status is None:
            reason = f"did not end within {hook.timeout} s"
        elif status < 0:
            reason = f"killed by signal {-status}"
        else:
            reason = f"exit status {status}"
        return f"{reason}, output: {shown}" if shown else reason
    finally:
        os.close(stdin)
        os.close(output)


def _wait(pid: int, timeout_s: float | None) -> int | None:
    """Its exit status, negative for a signal; None when it had to be killed at the end of its time."""
    late = False
    if timeout_s is not None:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            deadline = time.monotonic() + timeout_s
            while not poll.poll(min(max(0.0, deadline - time.monotonic()), _POLL_S) * 1000):
                if time.monotonic() >= deadline:
                    late = True
                    os.kill(pid, 9)  # it isn't reaped yet: the pid is its own
                    break
        finally:
            os.close(pidfd)
    status = os.waitstatus_to_exitcode(caller.current.wait(pid))
    return None if late else status
