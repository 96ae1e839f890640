"""system dial-stdio: standard streams as a connection to the daemon, for ssh(1)."""

from __future__ import annotations

import _socket
import os
import select

from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client
    from cove.cli.options import Options

CHUNK = 1 << 18


def dial_stdio(client: Client, options: Options) -> int:
    """Copy both ways until the daemon has closed; the end of standard input closes that direction alone."""
    sock = client.connect().sock
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(sock.fileno(), select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == 0:
                data = os.read(0, CHUNK)
                if data:
                    sock.sendall(data)
                else:
                    poller.unregister(0)
                    sock.shutdown(_socket.SHUT_WR)
            else:
                data = sock.recv(CHUNK)
                if not data:
                    return 0
                view = memoryview(data)
                while view:
                    view = view[os.write(1, view) :]


COMMANDS = {
    "system dial-stdio": Command(
        "system dial-stdio",
        dial_stdio,
        "",
        "Connect standard streams to the daemon: what docker -H ssh:// and cove -H ssh:// run on the far side.",
        example="ssh server cove system dial-stdio",
    ),
}
