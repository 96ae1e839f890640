"""Published ports of a rootless daemon: sockets bound outside, served inside.

A socket belongs to the network namespace in which it was made, whoever holds it. So the process that stays outside
binds the host's port and hands the socket in, and the daemon relays what arrives to the container. The port's
owner is the daemon: what it closes is free again, and the outside keeps no list.

One request is one message on a SOCK_SEQPACKET pair: `Wanted` as JSON; the answer an errno (4 bytes) and, when
that is 0, the descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

import msgspec

from cove.network.ports import bind_port

ENVIRONMENT = "COVE_ROOTLESS_PORTS"
_ANSWER_BOUND_S = 10.0
_errno = struct.Struct("=I")


class Wanted(msgspec.Struct, frozen=True):
    """A port to bind; `number` 0: one that is free."""

    protocol: str
    address: str
    number: int


class PortServer:
    """The outside's half: answers on the socket `ours`; `theirs` is for the daemon."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)

    def answer(self) -> bool:
        """Answer what has arrived; False when the daemon is gone."""
        while True:
            try:
                message = self.ours.recv(1024)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not message:
                return False
            self._answer(message)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()

    def _answer(self, message: bytes) -> None:
        descriptor, number = -1, 0
        try:
            wanted = msgspec.json.decode(message, type=Wanted)
            descriptor = bind_port(wanted.protocol, wanted.address, wanted.number)
        except msgspec.DecodeError:
            number = errno.EBADMSG
        except OSError as error:
            number = error.errno or errno.EINVAL
        try:
            if descriptor >= 0:
                socket.send_fds(self.ours, [_errno.pack(0)], [descriptor])
            else:
                self.ours.send(_errno.pack(number or errno.EPROTONOSUPPORT))
        except OSError:
            pass  # the daemon is gone
        finally:
            if descriptor >= 0:
                os.close(descriptor)


class OutsidePorts:
    """The daemon's half: `bind` is used wherever a host's port is to be held."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.settimeout(_ANSWER_BOUND_S)

    @classmethod
    def inherited(cls) -> OutsidePorts | None:
        """From the descriptor that the environment names; None when this isn't a rootless daemon."""
        text = os.environ.pop(ENVIRONMENT, "")
        if not text:
            return None
        os.set_inheritable(int(text), False)
        return cls(socket.socket(fileno=int(text)))

    def bind(self, protocol: str, host_ip: str, port: int) -> int:
        """A descriptor of the outside's port. Raises OSError as bind(2), EPROTONOSUPPORT for sctp. Microseconds."""
        self._control.send(msgspec.json.encode(Wanted(protocol, host_ip, port)))
        answer, descriptors, _, _ = socket.recv_fds(self._control, 64, 1, socket.MSG_CMSG_CLOEXEC)
        (number,) = _errno.unpack(answer or _errno.pack(errno.EPIPE))
        if number or not descriptors:
            number = number or errno.EMFILE
            raise OSError(number, os.strerror(number))
        return descriptors[0]
