"""The jobs of scanning, done in a worker: look through layers, make an image's report."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

import msgspec

from cove.image import sandbox, trees
from cove.image.jobs import OverlayPlace
from cove.image.scanlayers import Layers, close_walls, enter_layers, read_scans, scan_stream
from cove.image.scantypes import ScanJob, ScanLayers
from cove.model.errors import HostError
from cove.scan.model import FORMAT, LayerScan
from cove.scan.report import make_bill

# Python loads an encoding when it is first asked for, which is too late behind the walls; zipfile asks for cp437.
for _encoding in ("cp437", "latin-1", "ascii", "utf-8", "utf-16-le", "idna"):
    codecs.lookup(_encoding)

Send = Callable[[Iterable[bytes]], None]


def do(job: ScanJob, send: Send, calls: sandbox.FileCalls) -> None:
    """Do a job; what it makes is sent."""
    if isinstance(job, ScanLayers):
        enter_layers(job.layers_dir)
        close_walls(calls)
        send(scan_stream(job))
        return
    kept = read_scans(job.scans)
    layers = Layers(job.layers_dir, job.layers)
    trees.enter_overlay(OverlayPlace(lower=job.layers, layers_dir=job.layers_dir))
    layers.enter()
    close_walls(calls)
    scans = [decode_scan(data) for data in kept]
    send((make_bill(job.form, job.subject, scans, layers.provider, epoch_s=job.epoch_s),))


def decode_scan(data: bytes) -> LayerScan:
    """A layer's result as it was kept. HostError."""
    try:
        found = msgspec.json.decode(data, type=LayerScan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HostError(
            f"the image store is damaged: a layer's list of packages can't be read: {error}"
        ) from None
    assert found.format == FORMAT
    return found
