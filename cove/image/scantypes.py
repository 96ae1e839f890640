"""The jobs of scanning, as the daemon gives them to a worker, and their answers. No I/O."""

from __future__ import annotations

import msgspec

from cove.scan.model import Subject


class ScanMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of these jobs and answers."""


class ScanLayers(ScanMessage, tag="scan-layers", frozen=True, kw_only=True):
    """Look through layers of `layers_dir`; each one's result goes to the data socket with its length in front."""

    layers_dir: str
    layers: tuple[str, ...]


class ScannedImage(ScanMessage, frozen=True, kw_only=True):
    """An image whose layers were looked through: `layers` lowest first, `scans` the files of their results."""

    layers_dir: str
    layers: tuple[str, ...]
    scans: tuple[str, ...]
    subject: Subject


class MakeBill(ScanMessage, tag="bill", frozen=True, kw_only=True):
    """Write an image's bill of materials to the data socket."""

    image: ScannedImage
    form: str
    epoch_s: int


class MakeScan(ScanMessage, tag="scan", frozen=True, kw_only=True):
    """Write the report of an image's vulnerabilities to the data socket; the rest of the fields say what is shown."""

    image: ScannedImage
    database: str  # "": vulnerabilities aren't asked for
    config: bytes  # the image's configuration
    form: str
    level: str = ""
    ignore: tuple[str, ...] = ()
    only_fixed: bool = False
    secrets: bool = True


class ImportVulnerabilities(ScanMessage, tag="import-vulnerabilities", frozen=True, kw_only=True):
    """Take in what the data socket brings, into the database in `staging`."""

    staging: str
    budget_bytes: int
    now: str


class TellVulnerabilities(ScanMessage, tag="tell-vulnerabilities", frozen=True, kw_only=True):
    """Write to the data socket what a database has."""

    database: str


class Imported(ScanMessage, tag="imported", frozen=True, kw_only=True):
    """What an import did, in entries."""

    read: int
    added: int
    changed: int
    unchanged: int
    removed: int


ScanJob = ScanLayers | MakeBill | MakeScan | ImportVulnerabilities | TellVulnerabilities
ScanAnswer = Imported
