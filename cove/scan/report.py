"""From what the layers have to the bytes that are answered: one report of an image. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cove.scan import sbom
from cove.scan.findings import Choice, choose, choose_secrets, image_secrets, scan_json
from cove.scan.inventory import Inventory, Provider, assemble
from cove.scan.match import Matched, count_levels, match
from cove.scan.model import LayerScan, Subject
from cove.scan.sarif import sarif
from cove.scan.secrets import find_in_config
from cove.scan.subject import packages_json
from cove.scan.vulndb import Reader

Render = Callable[[Subject, Inventory, int], dict[str, Any]]
_RENDERS: dict[str, Render] = {
    "cyclonedx": sbom.cyclonedx,
    "spdx": sbom.spdx,
    "json": lambda subject, inventory, _: packages_json(subject, inventory),
}
SCAN_FORMATS = ("json", "sarif", "summary")


def make_bill(
    form: str, subject: Subject, scans: Sequence[LayerScan], provider: Provider, *, epoch_s: int
) -> bytes:
    """A bill of materials in one of `sbom.FORMATS`; `epoch_s` is when it is said to be made."""
    return sbom.render(_RENDERS[form](subject, assemble(scans, provider), epoch_s))


def make_scan(
    form: str,
    subject: Subject,
    scans: Sequence[LayerScan],
    provider: Provider,
    *,
    database: Reader | None,
    config: bytes,
    choice: Choice,
) -> bytes:
    """The report of an image's vulnerabilities and secrets in one of SCAN_FORMATS; `summary`: how many there are of
    each level. Without a database vulnerabilities aren't looked for. `config`: the image's configuration."""
    inventory = assemble(scans, provider)
    matched = match(inventory, database) if database is not None else Matched()
    if form == "summary":
        return msgspec.json.encode(count_levels(matched.findings))
    secrets: list[dict[str, Any]] = []
    if choice.secrets:
        secrets = image_secrets(subject, scans, provider, find_in_config(config))
    report = scan_json(
        subject,
        inventory,
        matched,
        choose(matched, inventory, choice),
        database.sources() if database is not None else (),
        choose_secrets(secrets, choice),
    )
    return sbom.render(sarif(report) if form == "sarif" else report)
