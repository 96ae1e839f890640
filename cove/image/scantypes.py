"""The jobs of scanning, as the daemon gives them to a worker. No I/O."""

from __future__ import annotations

import msgspec

from cove.scan.model import Subject


class ScanMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of these jobs."""


class ScanLayers(ScanMessage, tag="scan-layers", frozen=True, kw_only=True):
    """Look through layers of `layers_dir`; each one's result goes to the data socket with its length in front."""

    layers_dir: str
    layers: tuple[str, ...]


class MakeBill(ScanMessage, tag="bill", frozen=True, kw_only=True):
    """Write an image's bill of materials to the data socket. `layers`: lowest first; `scans`: the files of their
    results."""

    layers_dir: str
    layers: tuple[str, ...]
    scans: tuple[str, ...]
    subject: Subject
    form: str
    epoch_s: int


ScanJob = ScanLayers | MakeBill
