"""Containers at any cgroup path, with any linux.resources: what tests of cgroup v2 and of systemd's driver share."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec.structs

from cove.runtime import launch, oci
from cove.runtime.cgroups import Cgroups
from cove.runtime.host import find_host
from cove.runtime.launch import Task
from cove.runtime.plan import plan_exec, plan_start
from cove.runtime.spec import plan_exec_process, plan_facts, plan_spec
from tests.system.native_support import Box
from tests.system.test_plan_run import Runtime
from tests.unit.runtime_samples import container

ROOT = Path("/sys/fs/cgroup")


class Boxes(Runtime):
    """Starts containers as the OCI runtime does."""

    def __init__(self, path: Path, cgroups: Cgroups) -> None:
        super().__init__(path, cgroups)
        self.host = find_host(cgroups.layout)

    async def put(
        self,
        box: Box,
        cgroup: str,
        script: str,
        resources: oci.Resources,
        *,
        on_pause: Callable[[str, int], Awaitable[bytes]] | None = None,
        privileged: bool = False,
    ) -> Task:
        """Start `script` in a container whose cgroup is `cgroup`, which has been prepared; `on_pause` has systemd make
        it."""
        asked = container(args=("sh", "-c", script), network_mode="none", privileged=privileged)
        asked = msgspec.structs.replace(asked, id=os.urandom(32).hex())
        facts = self.start_facts(box, asked, cgroup_path=cgroup)
        config = plan_spec(asked, facts, self.host)
        linux = msgspec.structs.replace(config.linux, resources=resources)
        config = msgspec.structs.replace(config, linux=linux)
        more = plan_facts(asked, facts, network_ready=False)
        more = msgspec.structs.replace(more, all_cgroups=True, cgroup_pause=on_pause is not None)
        plan, slots = plan_start(config, more, self.host)
        with ExitStack() as stack:
            return await launch.launch(
                self.launcher,
                plan,
                state_dir=box.path / f"state-{asked.id[:6]}",
                slots=[self._open(slot, stack) for slot in slots],
                streams=box.streams(),
                resolve_user=self._resolver("", (), config.process.env),
                on_pause=on_pause,
            )

    async def put_exec(self, box: Box, cgroup: str, task: Task, script: str) -> Task:
        asked = container(network_mode="none")
        facts = self.start_facts(box, asked, cgroup_path=cgroup)
        config = plan_spec(asked, facts, self.host)
        process = plan_exec_process(asked, config, args=("sh", "-c", script), host=self.host)
        plan, slots = plan_exec(config, process, plan_facts(asked, facts, network_ready=False), self.host)
        with ExitStack() as stack:
            return await launch.launch(
                self.launcher,
                plan,
                state_dir=box.path / f"exec-{os.urandom(3).hex()}",
                slots=[self._open(slot, stack, process=task.pidfd) for slot in slots],
                streams=box.streams(),
                resolve_user=self._resolver("", (), process.env),
            )


def read(cgroup: str, file: str) -> str:
    return (ROOT / cgroup / file).read_text().strip()
