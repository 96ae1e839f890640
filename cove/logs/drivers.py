"""The registry of log drivers, and what their options mean. Pure.

Names, options and wording are Docker's (moby, daemon/logger). Every driver keeps lines in files here, the ones
that send lines elsewhere too: that is what `docker logs` reads and the shipper sends from. All are bounded
by default, json-file too, which Docker lets grow for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cove.logs import attributes
from cove.logs.destinations import (
    FLUENTD_OPTIONS,
    GELF_OPTIONS,
    SYSLOG_OPTIONS,
    Journald,
    Shipment,
    Syslog,
    parse_destination,
)
from cove.logs.model import LogSettings
from cove.logs.options import BINARY, DECIMAL, parse_size, parse_switch
from cove.model.container import Container, LogConfig
from cove.model.errors import Invalid

DEFAULT_DRIVER = "local"
DEFAULT_MAX_SIZE_BYTES = 20 * 1024 * 1024
DEFAULT_MAX_FILES = 5
MOST_FILES = 1_000  # a reader holds a descriptor of each

_FILE_OPTIONS = frozenset({"max-size", "max-file", "compress"})
_MODE_OPTIONS = frozenset({"mode", "max-buffer-size"})
_CACHE = "cache-"  # before the file options of the local copy
_CACHE_OPTIONS = frozenset(_CACHE + option for option in (*_FILE_OPTIONS, *attributes.OPTIONS, "disabled"))

# Drivers of Docker's that send to one maker's service, and what does the same.
_REFUSED = {
    "awslogs": "CloudWatch's own protocol isn't built in: use fluentd with a Fluent Bit that has its output "
    "cloudwatch_logs",
    "gcplogs": "Google Cloud's own protocol isn't built in: use fluentd with a Fluent Bit that has its output "
    "stackdriver",
    "splunk": "Splunk's own protocol isn't built in: use fluentd with a Fluent Bit that has its output splunk",
    "etwlogs": "it is Windows': use journald, or syslog",
}


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """A log driver: its options, and the file that its writer appends to ("" when it keeps none)."""

    name: str
    options: frozenset[str] | None  # None: any, and none means anything
    file_name: str
    ships: bool = False  # lines are sent on; the files are its local copy


DRIVERS: Mapping[str, Driver] = {
    driver.name: driver
    for driver in (
        Driver(name="local", options=_FILE_OPTIONS | attributes.OPTIONS, file_name="log"),
        Driver(name="json-file", options=_FILE_OPTIONS | attributes.OPTIONS, file_name="json.log"),
        Driver(name="none", options=None, file_name=""),
        Driver(name="syslog", options=SYSLOG_OPTIONS | attributes.OPTIONS, file_name="log", ships=True),
        Driver(name="gelf", options=GELF_OPTIONS | attributes.OPTIONS, file_name="log", ships=True),
        Driver(name="fluentd", options=FLUENTD_OPTIONS | attributes.OPTIONS, file_name="log", ships=True),
        Driver(name="journald", options=attributes.OPTIONS, file_name="log", ships=True),
    )
}


def driver_names() -> list[str]:
    """As `docker info` lists them."""
    return sorted(DRIVERS)


def merge_defaults(asked: LogConfig, default: LogConfig) -> LogConfig:
    """What a container logs with: the daemon's options count where it uses the daemon's driver, those of
    the local copy always, and the container's own win (moby, mergeAndVerifyLogConfig)."""
    driver = asked.driver or default.driver or DEFAULT_DRIVER
    inherited = {
        option: value
        for option, value in default.options.items()
        if driver == (default.driver or DEFAULT_DRIVER) or option in _CACHE_OPTIONS
    }
    return LogConfig(driver=driver, options=inherited | asked.options)


def log_setup(config: LogConfig, directory: Path) -> LogSettings:
    """What the supervisor is told about a container's log; `directory` is where its files go.

    Raises Invalid for an unknown driver or option, or a value out of its range; `create` calls it to
    find that out.
    """
    driver = find_driver(config.driver)
    if driver.options is None:
        return LogSettings(driver=driver.name, directory=None, max_size_bytes=0, max_files=1)
    options = config.options
    _check_mode(options)
    for option in options:
        if option not in driver.options | _MODE_OPTIONS | _CACHE_OPTIONS:
            raise Invalid(f"unknown log opt '{option}' for {driver.name} log driver")
    parse_switch("cache-disabled", options.get("cache-disabled") or "false")
    attributes.check_attributes(options)
    if driver.ships:
        parse_destination(driver.name, options)
    prefix = _CACHE if driver.ships else ""
    max_size = options.get(f"{prefix}max-size")
    max_files = _max_files(f"{prefix}max-file", options.get(f"{prefix}max-file"))
    compress = _compress(f"{prefix}compress", options.get(f"{prefix}compress"), max_files)
    return LogSettings(
        driver="json-file" if driver.name == "json-file" else "local",
        directory=directory,
        max_size_bytes=DEFAULT_MAX_SIZE_BYTES
        if max_size is None
        else parse_size(f"{prefix}max-size", max_size, DECIMAL),
        max_files=max_files,
        compress=driver.name != "json-file" and max_files > 1 if compress is None else compress,
    )


def find_driver(name: str) -> Driver:
    """The driver with this name, the default one for "". Raises Invalid."""
    driver = DRIVERS.get(name or DEFAULT_DRIVER)
    if driver is None:
        why = f": {_REFUSED[name]}" if name in _REFUSED else ""
        raise Invalid(f"logger: no log driver named '{name}' is registered{why}")
    return driver


def is_readable(config: LogConfig) -> bool:
    """Whether `docker logs` has something to read."""
    driver = find_driver(config.driver)
    if not driver.file_name:
        return False
    return not (
        driver.ships and parse_switch("cache-disabled", config.options.get("cache-disabled") or "false")
    )


def plan_shipment(container: Container, host_name: str) -> Shipment | None:
    """What the shipper is told of a container; None for a driver that sends nothing. Raises Invalid."""
    if not find_driver(container.log.driver).ships:
        return None
    return Shipment(
        source=attributes.find_source(container, host_name),
        destination=parse_destination(container.log.driver, container.log.options),
    )


def needed_sockets(config: LogConfig, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Paths of which one has to be a socket of this host for lines to go anywhere; none where that isn't so."""
    if not find_driver(config.driver).ships:
        return ()
    match parse_destination(config.driver, config.options):
        case Journald():
            return (journal_socket(environment),)
        case Syslog(address=None):
            return LOCAL_SYSLOG
    return ()


LOCAL_SYSLOG = ("/dev/log", "/var/run/syslog", "/var/run/log")


def journal_socket(environment: Mapping[str, str]) -> str:
    """Where journald listens: systemd's path, or that of a journal namespace in COVE_JOURNAL_SOCKET."""
    return environment.get("COVE_JOURNAL_SOCKET") or "/run/systemd/journal/socket"


def _check_mode(options: Mapping[str, str]) -> None:
    """`non-blocking` permits a driver to drop lines when it can't keep up; one that never does complies."""
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise Invalid(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise Invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        parse_size("max-buffer-size", options["max-buffer-size"], BINARY)


def _max_files(option: str, text: str | None) -> int:
    if text is None:
        return DEFAULT_MAX_FILES
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MOST_FILES:
        raise Invalid(f"invalid value for {option}: {text}: expected a number from 1 to {MOST_FILES}, e.g. 5")
    return int(text)


def _compress(option: str, text: str | None, max_files: int) -> bool | None:
    if text is None:
        return None
    compress = parse_switch(option, text)
    if compress and max_files == 1:
        raise Invalid("compress cannot be true when max-file is less than 2")
    return compress
