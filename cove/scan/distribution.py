"""Which distribution an image is of: os-release(5). Pure."""

from __future__ import annotations

import re

from cove.scan.model import Distribution, clean

_LINE = re.compile(r"""^([A-Z_]{1,40})=(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s"']*))\s*$""", re.M)


def parse_os_release(data: bytes) -> Distribution:
    """The fields that matter here; what is missing stays empty."""
    fields: dict[str, str] = {}
    for match in _LINE.finditer(data[: 64 << 10].decode("utf-8", "replace")):
        value = next((group for group in match.groups()[1:] if group is not None), "")
        fields[match[1]] = clean(re.sub(r"\\(.)", r"\1", value))
    return Distribution(
        id=fields.get("ID", "").lower(),
        version=fields.get("VERSION_ID", ""),
        name=fields.get("PRETTY_NAME", "") or fields.get("NAME", ""),
        like=tuple(fields.get("ID_LIKE", "").lower().split()[:8]),
        codename=fields.get("VERSION_CODENAME", ""),
        cpe=fields.get("CPE_NAME", ""),
    )
