"""The DNS server's privileged half: opens sockets in containers' network namespaces, and does nothing else.

The server reads what strangers send and has no rights; it asks here for a socket, with one that is in the namespace
where it is to be (ioctl SIOCGSKNS). So it gets internet sockets alone, in namespaces that it was given a socket of.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

REQUEST = struct.Struct("=IBB")  # number, version of IP, datagrams?
REPLY = struct.Struct("=Ii")  # number, errno
_SIOCGSKNS = 0x894C
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def serve(requests: socket.socket) -> None:
    """Answer until the other side is gone. Blocks."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, REQUEST.size, 1)
        if not data:
            return
        try:
            number, version, datagrams = REQUEST.unpack(data)
            made = _open_beside(descriptors[0], home, version, bool(datagrams))
        except (OSError, IndexError, struct.error) as error:
            code = (error.errno if isinstance(error, OSError) else 0) or 22
            made, answer = None, REPLY.pack(number, code)
        else:
            answer = REPLY.pack(number, 0)
        finally:
            for fd in descriptors:
                os.close(fd)
        with made or contextlib.nullcontext():
            socket.send_fds(requests, [answer], [made.fileno()] if made is not None else [])


def _open_beside(neighbour: int, home: int, version: int, datagrams: bool) -> socket.socket:
    """A new socket in the network namespace that a socket belongs to. Raises OSError."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    namespace = fcntl.ioctl(neighbour, _SIOCGSKNS)
    try:
        _enter(namespace)
        try:
            return socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
        finally:
            _enter(home)
    finally:
        os.close(namespace)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
