"""Text that ends up as a word of a line in a file of the container: hosts, resolv.conf. Pure.

A line break in it would be a line of its own, a space a word of its own; an escape sequence would reach the
terminal of whoever looks at the file.
"""

from __future__ import annotations

import ipaddress
import re

_WORD = re.compile(r"[!-~]{1,255}")
_SCOPE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")  # a link's name or number


def is_word(text: str) -> bool:
    """Whether `text` is one word: 1 to 255 printable ASCII characters and no space."""
    return _WORD.fullmatch(text) is not None


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IP address. Raises ValueError, also for a scope (fe80::1%eth0) that names no link: Python's own
    ipaddress takes anything behind the %."""
    address = ipaddress.ip_address(text)
    scope = getattr(address, "scope_id", None)
    if scope is not None and not _SCOPE.fullmatch(scope):
        raise ValueError("the scope isn't a link's name")
    return address
