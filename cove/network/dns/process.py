"""The DNS server's life: `cove.network.dns.process DIRECTORY CHANNEL`.

    this process: the broker, root, knows no query
     └─ the server: nobody, sees an empty directory

Whichever of them ends takes the other along; the daemon starts both again. Order that must hold: the control socket, by
which later daemons find the server; fork; all of the server's imports; only then its walls.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys

from cove.network.dns import broker, confine

CONTROL = "control.sock"


def main() -> None:
    directory, daemon = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    confine.set_name("cove-dns")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    listener = listen(directory)
    requests, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        requests.close()
        serve(directory, listener, daemon, answers, parent, files)
        os._exit(0)
    for sock in (listener, daemon, answers):
        sock.close()
    confine.keep_capabilities((confine.CAP_NET_ADMIN, confine.CAP_SYS_ADMIN))
    with contextlib.suppress(OSError):
        broker.serve(requests)


def listen(directory: str) -> socket.socket:
    """The control socket; one that an earlier server left goes."""
    at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CONTROL, dir_fd=at)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{at}/{CONTROL}")  # a path may be longer than a socket's address
        finally:
            os.umask(mask)
        listener.listen(8)
        return listener
    finally:
        os.close(at)


def serve(
    directory: str,
    listener: socket.socket,
    daemon: socket.socket,
    answers: socket.socket,
    parent: int,
    files: int,
) -> None:
    """The child's part."""
    import asyncio
    import gc

    from cove.network.dns.server import DnsServer

    async def run() -> None:
        await DnsServer(listener, answers, files).run(daemon)

    with asyncio.Runner() as runner:
        runner.get_loop()
        confine.give_up_everything(directory, parent)
        gc.freeze()
        runner.run(run())


if __name__ == "__main__":
    main()
