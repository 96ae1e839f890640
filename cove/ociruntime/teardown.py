"""Take a container down: processes, cgroup, state directory, and the poststop hooks. Idempotent.

Order that must hold: processes before their cgroup and mounts, the state directory last, for it is what a later
`delete` goes by.
"""

from __future__ import annotations

import os
import select

from cove.model.errors import Conflict, CoveError, HostError, Invalid
from cove.ociruntime import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.ociruntime.main import Call
    from cove.ociruntime.state import Container
    from cove.runtime.oci import Hook


_SIGKILL = 9
_KILL_BOUND_S = 10.0


def destroy(call: Call, container: Container, poststop: Sequence[Hook] | None = None) -> None:
    """Kill what is left and remove everything. `poststop`: the hooks, read from its config when None; what fails
    of them is a warning (runtime.md, "Lifecycle", step 12). Raises HostError when processes can't be killed."""
    directories = container.data["cgroups"]
    end(container)  # without cgroups nobody else would
    if container.pid:
        cgroup.kill_all(directories, container.data["freezer"])
    if poststop is None:
        poststop = read_poststop(container)
    if container.data["scope"]:
        from cove.ociruntime.systemd import stop

        stop(container.data["scope"])
    if container.pid:
        cgroup.remove(directories)
    else:
        cgroup.abandon(directories)
    if container.data["mount_at"]:
        from cove.runtime.trees import detach_mounts

        detach_mounts(container.data["mount_at"])
    container.remove()
    for hook in poststop:
        from cove.ociruntime.hooks import run_hooks

        try:
            run_hooks("poststop", (hook,), container.public("stopped"))
        except CoveError as error:
            call.log.warn(str(error))


def end(container: Container) -> None:
    """Kill the first process and wait for its end. Raises HostError when it stays."""
    from _signal import pidfd_send_signal  # type: ignore[import-not-found]

    try:
        pidfd = container.open_process()
    except Conflict:
        return
    try:
        pidfd_send_signal(pidfd, _SIGKILL)
        cgroup.thaw(container.data["freezer"])
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_KILL_BOUND_S * 1000):
            raise HostError("container init still running")
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def read_poststop(container: Container) -> Sequence[Hook]:
    """None when the config was still being written: then no hook has run."""
    if not container.data["poststop"]:
        return ()
    from cove.runtime.oci import parse_config

    try:
        with open(f"{container.directory}/config.json", "rb") as file:
            return parse_config(file.read()).hooks.poststop
    except (FileNotFoundError, Invalid):
        return ()
