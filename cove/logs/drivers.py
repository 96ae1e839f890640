"""The registry of log drivers, and what their options mean. Pure.

Names, options and wording are Docker's (moby, daemon/logger). Every driver that keeps files is bounded
by default, json-file too, which Docker lets grow for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cove.logs.model import LogSettings
from cove.model.container import LogConfig
from cove.model.errors import Invalid

DEFAULT_DRIVER = "local"
DEFAULT_MAX_SIZE_BYTES = 20 * 1024 * 1024
DEFAULT_MAX_FILES = 5
MOST_FILES = 1_000  # a reader holds a descriptor of each

_FILE_OPTIONS = frozenset({"max-size", "max-file", "compress"})
# Accepted as Docker does; they add attributes that only `logs --details` shows.
_ATTRIBUTE_OPTIONS = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """A log driver: its options, and the file that its writer appends to ("" when it keeps none)."""

    name: str
    options: frozenset[str] | None  # None: any, and none means anything
    file_name: str


DRIVERS: Mapping[str, Driver] = {
    driver.name: driver
    for driver in (
        Driver(name="local", options=_FILE_OPTIONS | _ATTRIBUTE_OPTIONS, file_name="log"),
        Driver(name="json-file", options=_FILE_OPTIONS | _ATTRIBUTE_OPTIONS, file_name="json.log"),
        Driver(name="none", options=None, file_name=""),
    )
}


def log_setup(config: LogConfig, directory: Path) -> LogSettings:
    """What the supervisor is told about a container's log; `directory` is where its files go.

    Raises Invalid for an unknown driver or option, or a value out of its range; `create` calls it to
    find that out.
    """
    driver = find_driver(config.driver)
    if driver.options is None:
        return LogSettings(driver=driver.name, directory=None, max_size_bytes=0, max_files=1)
    _check_mode(config.options)
    for option in config.options:
        if option not in driver.options and option not in ("mode", "max-buffer-size"):
            raise Invalid(f"unknown log opt '{option}' for {driver.name} log driver")
    max_size = config.options.get("max-size")
    max_files = _max_files(config.options.get("max-file"))
    _check_compress(config.options.get("compress"), max_files)
    return LogSettings(
        driver=driver.name,
        directory=directory,
        max_size_bytes=DEFAULT_MAX_SIZE_BYTES if max_size is None else _size("max-size", max_size, _UNITS),
        max_files=max_files,
    )


def find_driver(name: str) -> Driver:
    """The driver with this name, the default one for "". Raises Invalid."""
    driver = DRIVERS.get(name or DEFAULT_DRIVER)
    if driver is None:
        raise Invalid(f"logger: no log driver named '{name}' is registered")
    return driver


def _check_mode(options: Mapping[str, str]) -> None:
    """`non-blocking` permits a driver to drop lines when it can't keep up; one that never does complies."""
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise Invalid(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise Invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        _size("max-buffer-size", options["max-buffer-size"], _BINARY_UNITS)


def _max_files(text: str | None) -> int:
    if text is None:
        return DEFAULT_MAX_FILES
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MOST_FILES:
        raise Invalid(f"invalid value for max-file: {text}: expected a number from 1 to {MOST_FILES}, e.g. 5")
    return int(text)


def _check_compress(text: str | None, max_files: int) -> None:
    """Rotated files are kept as they are: `compress` is accepted where Docker accepts it."""
    if text is None or text in _FALSE:
        return
    if text not in _TRUE:
        raise Invalid(f"invalid boolean value for compress: {text}: expected true or false")
    if max_files == 1:
        raise Invalid("compress cannot be true when max-file is less than 2")


def _size(option: str, text: str, units: Mapping[str, int]) -> int:
    """Bytes of "10m", as go-units has it: decimal point, unit in any case, "b" or "ib" behind it."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text[len(number) :].lower()
    if len(unit) > 1:
        unit = unit.removesuffix("ib") if len(unit) == 3 else unit.removesuffix("b")
    number = number.removesuffix(" ")
    digits = number.replace(".", "", 1)
    if unit in units and digits.isascii() and digits.isdecimal() and len(number) <= 18:
        size = int(float(number) * units[unit])
        if 0 < size < 1 << 62:
            return size
    raise Invalid(f"invalid value for {option}: {text}: expected a positive size, e.g. 10m")
