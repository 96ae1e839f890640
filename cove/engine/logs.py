"""The logs of a daemon's containers, from create to removal: driver and options, where lines go, reading them.

Order that must hold at a start: where the lines go is on disk before the supervisor begins to write them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from cove.engine.defaults import default_log
from cove.engine.host import host_name
from cove.engine.types import Settings
from cove.logs.attributes import shown_attributes
from cove.logs.drivers import find_driver, is_readable, log_setup, needed_sockets, plan_shipment
from cove.logs.model import LogLine, LogQuery, LogUnreadable
from cove.logs.packer import Packer
from cove.logs.reader import read_logs
from cove.logs.shipping.position import has_unsent
from cove.logs.shipping.shipper import Shipper, write_shipment
from cove.model.container import Container, LogConfig
from cove.runtime.launch import LogSetup


class ContainerLogs:
    """What the engine does with logs; `shipper` sends on those whose driver does that."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings  # a reload changes what is default
        self.shipper = Shipper(settings.unsent_dir, settings.run_dir / "shipper.lock")

        self.packer = Packer()

    async def close(self) -> None:
        await self.packer.close()
        await self.shipper.close()

    # --- create ---------------------------------------------------------------------------

    def choose(self, asked: LogConfig) -> LogConfig:
        """The driver a container will log with, its options checked. Raises Invalid."""
        config = default_log(asked, self.settings)
        log_setup(config, Path())
        return config

    def check(self, container: Container) -> list[str]:
        """Warnings about where a container's lines will go. Raises Invalid for what its labels and variables make."""
        plan_shipment(container, host_name())
        sockets = needed_sockets(container.log, os.environ)
        if not sockets or any(os.path.exists(path) for path in sockets):
            return []
        return [
            f"log driver {container.log.driver}: nothing listens at {' or '.join(sockets)} of this host; lines are "
            "kept, within the bounds of the local copy, until something does"
        ]

    # --- a run ----------------------------------------------------------------------------

    def begin(self, container: Container) -> LogSetup:
        """What the supervisor of the run that begins is told. Raises HostError."""
        log_dir = self.settings.log_dir(container.id)
        settings = log_setup(container.log, log_dir)
        shipment = plan_shipment(container, host_name())
        if shipment is not None:
            write_shipment(log_dir, shipment)
        return LogSetup(
            driver=settings.driver,  # type: ignore[arg-type]
            directory=settings.directory,
            max_size_bytes=settings.max_size_bytes,
            max_files=settings.max_files,
        )

    def follow(self, container: Container, *, running: bool) -> None:
        """A run has begun, or a daemon found it; not `running`: one that has ended may have left lines unsent."""
        if running:
            settings = log_setup(container.log, self.settings.log_dir(container.id))
            if settings.compress and settings.directory is not None:
                self.packer.watch(
                    container.id, settings.directory, find_driver(container.log.driver).file_name
                )
        if find_driver(container.log.driver).ships:
            log_dir = self.settings.log_dir(container.id)
            if running or has_unsent(log_dir):
                self.shipper.follow(container.id, log_dir, running=running)

    def ended(self, container_id: str) -> None:
        """The run has ended, and its log is complete."""
        self.packer.forget(container_id)
        self.shipper.ended(container_id)

    def keep_unsent(self, container_id: str) -> None:
        """The container's directory is about to go: what of its log is to be sent stays until it is."""
        self.shipper.keep(container_id, self.settings.log_dir(container_id))

    # --- reading --------------------------------------------------------------------------

    def read(
        self, container: Container, query: LogQuery, ended: asyncio.Event
    ) -> AsyncGenerator[LogLine, None]:
        """Raises LogUnreadable."""
        if not is_readable(container.log):
            raise LogUnreadable("configured logging driver does not support reading")
        driver = "json-file" if container.log.driver == "json-file" else "local"
        return read_logs(self.settings.log_dir(container.id), driver, query, ended=ended)

    def attributes(self, container: Container) -> dict[str, str]:
        """What `logs --details` shows with each line."""
        return shown_attributes(container, host_name())
