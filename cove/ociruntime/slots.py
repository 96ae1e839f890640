"""Open the descriptors that a plan asks for."""

from __future__ import annotations

import errno
import fcntl
import os

from cove.model.errors import HostError, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.runtime.plan_inputs import Slot

_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2), Linux 4.11


def open_slots(slots: Sequence[Slot], directory: str = "", process: int = -1) -> list[int]:
    """One descriptor for each slot, in order; `close_all` closes them. `directory` has the FIFOs of a Hold,
    `process` is a pidfd that stays the caller's. Raises Invalid for a namespace or tree that can't be opened."""
    opened: list[int] = []
    try:
        for slot in slots:
            opened.append(_open(slot, directory, process))
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _open(slot: Slot, directory: str, process: int) -> int:
    try:
        match slot.kind:
            case "namespace":
                return _open_namespace(slot)
            case "process":
                return os.dup(process)
            case "go" | "status":
                return os.open(f"{directory}/{slot.kind}", os.O_RDWR | os.O_CLOEXEC)
            case "tree":
                from cove.runtime.trees import open_slot

                return open_slot(slot)
    except OSError as error:
        raise Invalid(f"{slot.path}: {(error.strerror or str(error)).lower()}") from None
    raise HostError(f"a plan asked for a descriptor of kind {slot.kind}, which only the daemon has")


def _open_namespace(slot: Slot) -> int:
    """Raises Invalid where the file isn't a namespace of the slot's type (config-linux.md, "Namespaces")."""
    from cove.runtime.plan_namespaces import CLONE_FLAGS

    descriptor = os.open(slot.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would block
    try:
        found = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError as error:
        found = -1 if error.errno == errno.ENOTTY else CLONE_FLAGS[slot.namespace]  # setns(2) will say more
    if found != CLONE_FLAGS[slot.namespace]:
        os.close(descriptor)
        kind = next(
            (f"a {name} namespace" for name, flag in CLONE_FLAGS.items() if flag == found), "no namespace"
        )
        raise Invalid(
            f"linux.namespaces: {slot.path} is {kind}: give the path of a {slot.namespace} namespace"
        )
    return descriptor
