"""Open the descriptors that a plan asks for."""

from __future__ import annotations

import os

from cove.model.errors import HostError, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.runtime.plan_inputs import Slot


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
                return os.open(slot.path, os.O_RDONLY | os.O_CLOEXEC)
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
