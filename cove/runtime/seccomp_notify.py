"""Hand a filter's listener to the agent that answers for it (config-linux.md, "The Container Process State").

The agent reads the state and the descriptor from one connection, and from then on decides about the calls that
SCMP_ACT_NOTIFY names (seccomp_unotify(2)). Order that must hold: this is done as soon as the filter is there. Until
then whoever makes such a call waits.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Mapping

import msgspec

from cove.model.errors import HostError
from cove.runtime.oci import VERSION

BOUND_S = 10.0


def process_state(pid: int, metadata: str, state: Mapping[str, object]) -> bytes:
    """The ContainerProcessState of a process with one descriptor, the listener; `state` is the container's
    (runtime.md, "State")."""
    return msgspec.json.encode(
        {
            "ociVersion": str(state.get("ociVersion", VERSION)),
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": metadata,
            "state": state,
        }
    )


def send_listener(path: str, listener: int, state: bytes) -> None:
    """Connect to the unix socket `path`, send both, and close. Raises HostError, after BOUND_S at the latest."""
    where = f"linux.seccomp.listenerPath {path}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(BOUND_S)
        sock.connect(path)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))
        sent = sock.sendmsg([state], [rights])
        sock.sendall(state[sent:])
    except TimeoutError:
        raise HostError(f"{where}: the agent took nothing for {BOUND_S:.0f} s") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise HostError(f"{where}: the agent can't be reached: {reason}") from None
    finally:
        sock.close()
