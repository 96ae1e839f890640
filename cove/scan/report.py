"""From what the layers have to the bytes that are answered: one report of an image. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cove.scan import sbom
from cove.scan.inventory import Inventory, Provider, assemble
from cove.scan.model import LayerScan, Subject
from cove.scan.subject import packages_json

Render = Callable[[Subject, Inventory, int], dict[str, Any]]
_RENDERS: dict[str, Render] = {
    "cyclonedx": sbom.cyclonedx,
    "spdx": sbom.spdx,
    "json": lambda subject, inventory, _: packages_json(subject, inventory),
}


def make_bill(
    form: str, subject: Subject, scans: Sequence[LayerScan], provider: Provider, *, epoch_s: int
) -> bytes:
    """A bill of materials in one of `sbom.FORMATS`; `epoch_s` is when it is said to be made."""
    return sbom.render(_RENDERS[form](subject, assemble(scans, provider), epoch_s))
