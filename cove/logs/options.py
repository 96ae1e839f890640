"""The values of log options: sizes, switches, durations, numbers. Pure; all raise Invalid."""

from __future__ import annotations

import re

from cove.model.errors import Invalid

DECIMAL = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
BINARY = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|ms|s|m|h)", re.ASCII)


def parse_size(option: str, text: str, units: dict[str, int]) -> int:
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


def parse_switch(option: str, text: str) -> bool:
    """A boolean as Go's strconv.ParseBool reads it."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Invalid(f"invalid boolean value for {option}: {text}: expected true or false")


def parse_duration(option: str, text: str) -> float:
    """Seconds of "1m30s", as Go's time.ParseDuration reads it; not negative."""
    seconds, at = 0.0, 0
    while match := _DURATION_PART.match(text, at):
        seconds += float(match[1]) * _DURATION_UNITS[match[2]]
        at = match.end()
    if text != "0" and (not text or at != len(text)):
        raise Invalid(
            f"invalid value for {option}: {text}: value must be a duration that is non-negative, e.g. 500ms"
        )
    return seconds


def parse_count(option: str, text: str, least: int, most: int, example: int) -> int:
    """A decimal number within limits."""
    negative = text.startswith("-") and least < 0
    digits = text[1:] if negative else text
    if digits.isascii() and digits.isdecimal() and len(digits) <= 18:
        number = -int(digits) if negative else int(digits)
        if least <= number <= most:
            return number
    raise Invalid(
        f"invalid value for {option}: {text}: expected a number from {least} to {most}, e.g. {example}"
    )
