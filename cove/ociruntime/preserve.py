"""Descriptors of the caller that the container's process gets, too: --preserve-fds, and systemd's socket activation
(sd_listen_fds(3)), as runc passes them on: $LISTEN_FDS of them from 3 on, then those of the flag."""

from __future__ import annotations

import fcntl
import os

import msgspec

from cove.model.errors import Invalid
from cove.ociruntime import caller
from cove.runtime.executor import LOW
from cove.runtime.steps import Preserve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.ociruntime.options import Options
    from cove.runtime.oci import Process
    from cove.runtime.steps import Plan


def find_listening() -> int:
    """How many sockets this process was activated with."""
    count = os.environ.get("LISTEN_FDS", "")
    if not count.isdecimal():
        return 0
    caller.current.only_here()
    return int(count) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0


def with_listening(process: Process, count: int) -> Process:
    """The variables by which the process finds them; it has pid 1 as a rule."""
    if not count:
        return process
    return msgspec.structs.replace(process, env=(*process.env, f"LISTEN_FDS={count}", "LISTEN_PID=1"))


def find_preserved(options: Options, listening: int = 0) -> range:
    """The descriptors to pass on. Raises Invalid when one isn't open."""
    count = options.number("preserve-fds") or 0
    if count < 0:
        raise Invalid(f"--preserve-fds {count}: expected 0 or more, e.g. --preserve-fds 2")
    if count:
        caller.current.only_here()
    for number in range(3, 3 + listening + count):
        try:
            if os.get_inheritable(number):
                continue
        except OSError:
            pass
        raise Invalid(f"--preserve-fds {count}: descriptor {number} isn't open")
    return range(3, 3 + listening + count)


def pass_on(plan: Plan, slots: int, descriptors: range) -> Plan:
    """The plan that passes them on as the slots behind its own."""
    if not descriptors:
        return plan
    step = Preserve(first=slots, last=slots + len(descriptors) - 1)
    return msgspec.structs.replace(plan, child=(step, *plan.child))


def copy_descriptors(descriptors: range) -> Sequence[int]:
    """Copies for cove-init, to be closed."""
    return [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, LOW) for number in descriptors]
