"""Process 1 of a room (see bench/room.py): starts what it is told, reaps, ends with its caller.

Reads one JSON object a line from standard input, {"argv": […], "env": {…}, "log": PATH}, starts
the program and answers {"pid": …} with its pid in the room. At the end of the input (its caller
left or died) it ends, and the kernel kills every process of the room with it.

Runs as a script, not as a module, so that nothing has to be importable inside the room.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def reap(_signal: int, _frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def start(argv: list[str], env: dict[str, str], log: str) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    try:
        return os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=[])
    finally:
        os.close(output)


def main() -> None:
    bring_loopback_up()
    signal.signal(signal.SIGCHLD, reap)
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer: dict[str, object] = {"pid": start(order["argv"], order["env"], order["log"])}
        except OSError as error:
            answer = {"error": f"{order['argv'][0]}: {error.strerror}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
