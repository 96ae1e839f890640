"""Run a command as root in a virtual machine with another kernel; see docs/lab.md.

    python -m tests.lab [--systemd] [--kernel SUITE|DIRECTORY] [--limit SECONDS] [--memory MIB] -- COMMAND...

One word is a shell command, more are a command with its arguments. Exits with the command's status; 124: time is
up, 125: the machine ended without a result, 77: there can be no machine here.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys

from tests.lab.support import machine
from tests.lab.support.images import Missing


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="Run a command as root in a virtual machine with Debian's cloud kernel and cgroup v2 alone.",
    )
    parser.add_argument(
        "--systemd", action="store_true", help="systemd as process 1 (default: a small script)"
    )
    parser.add_argument(
        "--kernel",
        default="",
        metavar="SUITE",
        help="Debian's suite, e.g. trixie, or a directory (with a slash) that is an unpacked kernel package, with "
        "boot/vmlinuz* and lib/modules (default: this host's suite)",
    )
    parser.add_argument(
        "--limit", type=float, default=300, metavar="SECONDS", help="give up after SECONDS (default: 300)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=machine.MEMORY_MIB,
        metavar="MIB",
        help="the machine's memory (default: 2048)",
    )
    parser.add_argument("command", nargs="+", help="a shell command, or a program with its arguments")
    chosen = parser.parse_args()
    words = chosen.command
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the machine is taken down

    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    try:
        return machine.run(
            words[0] if len(words) == 1 else shlex.join(words),
            write=write,
            systemd=chosen.systemd,
            kernel=chosen.kernel,
            limit_s=chosen.limit,
            memory_mib=chosen.memory,
        )
    except Missing as error:
        print(f"lab: {error}", file=sys.stderr)
        return 77


if __name__ == "__main__":
    sys.exit(main())
