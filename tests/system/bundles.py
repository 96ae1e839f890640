"""Bundles for tests: a directory as the root, a config with the mounts in question, run by cove-init."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec.structs

from cove.runtime import oci
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.facts import Host
from cove.runtime.host import find_host
from cove.runtime.launch import Task, launch
from cove.runtime.plan import plan_start
from cove.runtime.plan_inputs import PlanFacts
from cove.runtime.steps import PivotRoot, Step
from cove.runtime.trees import open_slot
from cove.runtime.usermaps import write_maps
from tests.system.native_support import PATH, Box, run

PROC = oci.Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev"))
DEV = oci.Mount(destination="/dev", type="tmpfs", source="tmpfs", options=("nosuid", "mode=755", "size=64k"))
PTS = oci.Mount(
    destination="/dev/pts", type="devpts", source="devpts",
    options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
)  # fmt: skip
SYS = oci.Mount(destination="/sys", type="sysfs", source="sysfs", options=("nosuid", "noexec", "nodev", "ro"))
SPACES = tuple(oci.Namespace(type=kind) for kind in ("mount", "pid", "ipc", "uts", "network"))
MASKED = ("/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/scsi", "/sys/firmware")
READONLY = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/sysrq-trigger")


def find() -> Host:
    return find_host(detect_cgroups().layout)


def config_of(
    root: Path,
    script: str,
    mounts: Sequence[oci.Mount] = (),
    *,
    own: Sequence[oci.Mount] = (PROC, DEV, PTS),
    **linux: Any,
) -> oci.Config:
    """A config that runs a script in `root`, with `own` mounts and then `mounts`."""
    capabilities = ("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID")
    more: dict[str, Any] = {"masked_paths": MASKED, "readonly_paths": READONLY, "namespaces": SPACES}
    return oci.Config(
        root=oci.Root(path=str(root)),
        process=oci.Process(
            args=("/bin/sh", "-c", script),
            env=(PATH,),
            cwd="/",
            capabilities=oci.Capabilities(
                bounding=capabilities, effective=capabilities, permitted=capabilities
            ),
        ),
        mounts=(*own, *mounts),
        linux=oci.Linux(**(more | linux)),
    )


async def start(box: Box, config: oci.Config, host: Host, more: Sequence[Step] = ()) -> Task:
    """Start a config's container, with `more` steps before the pivot."""
    plan, slots = plan_start(config, PlanFacts(id=os.urandom(8).hex(), keyring=False), host)
    at = plan.child.index(PivotRoot())
    plan = msgspec.structs.replace(plan, child=(*plan.child[:at], *more, *plan.child[at:]))

    async def pause(name: str, pid: int) -> bytes:
        assert name == "user"
        write_maps(pid, config.linux.uid_mappings, config.linux.gid_mappings)
        return b""

    with ExitStack() as stack:
        opened = []
        for slot in slots:
            opened.append(open_slot(slot))
            stack.callback(os.close, opened[-1])
        streams = box.streams(terminal=config.process.terminal)
        state = box.path / f"state-{os.urandom(4).hex()}"
        return await launch(
            box.launcher, plan, state_dir=state, slots=opened, streams=streams, on_pause=pause
        )


def printed(box: Box, config: oci.Config, host: Host) -> str:
    """What the script says, of which it must be the first; it ends with 0."""

    async def body() -> str:
        status = await (await start(box, config, host)).wait()
        assert status.exit_code == 0, box.output()
        return box.output()

    return run(body())


def mounted(text: str) -> dict[str, tuple[set[str], set[str], str]]:
    """Of a mountinfo: mount point -> its options with the optional fields' names, the superblock's options, type."""
    found = {}
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        if separator:
            fields, (kind, _, own) = head.split(), tail.split(" ", 2)
            optional = {field.partition(":")[0] for field in fields[6:]}
            found[fields[4]] = (set(fields[5].split(",")) | optional, set(own.split(",")), kind)
    return found


def owned(box: Box, mapping: oci.IdMapping, *places: str) -> None:
    """Make the box's root and `places` in it a user namespace's own."""
    for place in places:
        (box.lower / place).mkdir(parents=True, exist_ok=True)
    for path in (box.lower, *box.lower.rglob("*")):
        os.chown(path, mapping.host_id, mapping.host_id, follow_symlinks=False)


def terminal(config: oci.Config) -> oci.Config:
    process = msgspec.structs.replace(config.process, terminal=True)
    return msgspec.structs.replace(config, process=process)
