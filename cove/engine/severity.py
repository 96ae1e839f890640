"""A policy's check `severity`: no image with a known vulnerability of this level or a worse one runs."""

from __future__ import annotations

from typing import Any

from cove.engine.admission import Check
from cove.image.scanning import Scanning
from cove.model.objects import Image
from cove.scan.severity import LEVELS, rank

_TAKEN = LEVELS[1:]  # what nobody has rated is no level to ask for


def check_options(options: Any) -> str:
    """Why a policy's options are wrong, or ""."""
    if options in _TAKEN:
        return ""
    return f"expected one of {', '.join(_TAKEN)}, got {str(options)[:60]!r}"


def severity_check(scanning: Scanning) -> Check:
    """The check; what is known of an image is kept by `Scanning.summary`, by image and database."""

    async def holds(image: Image, options: Any) -> str:
        counts = await scanning.summary(image.id)
        bad = {
            level: n for level, n in counts.items() if n and level in LEVELS and rank(level) >= rank(options)
        }
        if not bad:
            return ""
        shown = ", ".join(f"{n} {level}" for level, n in sorted(bad.items(), key=lambda p: -rank(p[0])))
        return f"it has known vulnerabilities of the level {options} or worse: {shown}"

    return Check(options=check_options, holds=holds, stamp=lambda: scanning.vulnerabilities.version)
