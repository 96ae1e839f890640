"""Check what an image's configuration asks of its containers. Pure.

An image is a stranger's: its settings become arguments, paths, ports and timers of the daemon, so each has a form
and a bound here, and an image that breaks one isn't loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cove.model.container import HealthCheck
from cove.model.errors import Invalid
from cove.model.objects import ImageConfig

MAX_VOLUMES = 1024
MAX_PORTS = 65535
_MILLISECOND_NS = 1_000_000
_LONGEST_NS = 2**63 - 1
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(?:tcp|udp|sctp))?", re.IGNORECASE)


def check_settings(config: ImageConfig, image: str) -> None:
    """Raises Invalid with the field, its value and what it may be."""
    health = config.healthcheck
    for field, texts in (
        ("User", (config.user,)),
        ("WorkingDir", (config.working_dir,)),
        ("StopSignal", (config.stop_signal,)),
        ("Env", config.env),
        ("Entrypoint", config.entrypoint),
        ("Cmd", config.command),
        ("Shell", config.shell),
        ("Volumes", config.volumes),
        ("Healthcheck.Test", health.test if health else ()),
    ):
        for text in texts:
            if "\0" in text:
                raise Invalid(f"image {image}: {field}: {_shown(text)} contains a NUL byte, remove it")
    _check_ports(config.exposed_ports, image)
    if len(config.volumes) > MAX_VOLUMES:
        raise Invalid(f"image {image}: Volumes: there are {len(config.volumes)}, the limit is {MAX_VOLUMES}")
    for path in config.volumes:
        if not path.startswith("/"):
            raise Invalid(f"image {image}: Volumes: {_shown(path)} isn't an absolute path such as /data")
    if health is not None:
        _check_health(health, image)


def _check_ports(exposed: Iterable[str], image: str) -> None:
    count = 0
    for text in exposed:
        match = _PORTS.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise Invalid(
                f"image {image}: ExposedPorts: {_shown(text)} isn't a port such as 80/tcp or 8000-8010/udp"
            )
        count += last - first + 1
    if count > MAX_PORTS:
        raise Invalid(f"image {image}: ExposedPorts: there are {count} ports, the limit is {MAX_PORTS}")


def _check_health(health: HealthCheck, image: str) -> None:
    for field, value in (
        ("Interval", health.interval_ns),
        ("Timeout", health.timeout_ns),
        ("StartPeriod", health.start_period_ns),
        ("StartInterval", health.start_interval_ns),
    ):
        if value and not _MILLISECOND_NS <= value <= _LONGEST_NS:
            raise Invalid(
                f"image {image}: Healthcheck.{field}: {value} ns is out of range: use 0 for the default, or "
                f"{_MILLISECOND_NS} (a millisecond) to {_LONGEST_NS}"
            )
    if health.retries < 0:
        raise Invalid(
            f"image {image}: Healthcheck.Retries: {health.retries} is negative: use 0 for the default"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:63] + "…")
