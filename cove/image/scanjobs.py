"""The jobs of scanning, done in a worker: look through layers, make reports, take vulnerabilities in."""

from __future__ import annotations

import codecs
import os
import sqlite3
from collections.abc import Callable, Iterable

import msgspec

from cove.image import sandbox, trees
from cove.image.jobs import Answer, Done, OverlayPlace
from cove.image.sandbox import FILE_CAPABILITIES
from cove.image.scanlayers import CAPABILITIES, Layers, enter_layers, read_scans, scan_stream
from cove.image.scantypes import (
    Imported,
    ImportVulnerabilities,
    MakeBill,
    MakeScan,
    ScanJob,
    ScanLayers,
    ScannedImage,
    TellVulnerabilities,
)
from cove.model.errors import HostError, Invalid
from cove.scan.findings import Choice
from cove.scan.importing import Importer
from cove.scan.model import FORMAT, LayerScan, Malformed
from cove.scan.report import make_bill, make_scan
from cove.scan.vulndb import Reader, Writer

# Python loads an encoding when it is first asked for, which is too late behind the walls; zipfile asks for cp437.
for _encoding in ("cp437", "latin-1", "ascii", "utf-8", "utf-16-le", "idna"):
    codecs.lookup(_encoding)

DATABASE = "database.sqlite"  # in an import's directory
_PAGE_BYTES = 4096
Send = Callable[[Iterable[bytes]], None]
Receive = Callable[[], bytes]


def do(job: ScanJob, receive: Receive, send: Send, calls: sandbox.FileCalls) -> Answer:
    """Do a job; what it makes is sent."""
    if isinstance(job, ImportVulnerabilities):
        return _import(job, receive, calls)
    if isinstance(job, ScanLayers):
        enter_layers(job.layers_dir)
        close_walls(calls, CAPABILITIES)
        send(scan_stream(job))
    elif isinstance(job, TellVulnerabilities):
        reader = open_database(job.database)
        sandbox.unshare_all()
        sandbox.pivot_into(os.path.dirname(job.database))
        close_walls(calls, ())
        told = {"Sources": reader.sources(), "Ecosystems": reader.ecosystems()}
        send((msgspec.json.encode(told),))
    elif isinstance(job, MakeBill):
        scans, layers = _enter_image(job.image, calls)
        send((make_bill(job.form, job.image.subject, scans, layers.provider, epoch_s=job.epoch_s),))
    else:
        database = open_database(job.database) if job.database else None
        scans, layers = _enter_image(job.image, calls)
        send(
            (
                make_scan(
                    job.form,
                    job.image.subject,
                    scans,
                    layers.provider,
                    database=database,
                    config=job.config,
                    choice=_choice(job),
                ),
            )
        )
    return Done()


def close_walls(calls: sandbox.FileCalls, capabilities: tuple[int, ...]) -> None:
    sandbox.set_limits()
    sandbox.keep_capabilities(capabilities)
    calls.apply()


def _choice(job: MakeScan) -> Choice:
    return Choice(level=job.level, ignore=job.ignore, only_fixed=job.only_fixed, secrets=job.secrets)


def open_database(path: str) -> Reader:
    """A database that nobody changes any more; its file stays open. HostError."""
    try:
        return Reader(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True))
    except sqlite3.Error as error:
        raise HostError(f"the database of vulnerabilities can't be read: {error}; import it again") from None


def _enter_image(image: ScannedImage, calls: sandbox.FileCalls) -> tuple[list[LayerScan], Layers]:
    kept = read_scans(image.scans)
    layers = Layers(image.layers_dir, image.layers)
    trees.enter_overlay(OverlayPlace(lower=image.layers, layers_dir=image.layers_dir))
    layers.enter()
    close_walls(calls, CAPABILITIES)
    return [decode_scan(data) for data in kept], layers


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


def _import(job: ImportVulnerabilities, receive: Receive, calls: sandbox.FileCalls) -> Imported:
    sandbox.unshare_all()
    sandbox.pivot_into(job.staging)
    # The file is a copy that is thrown away when anything fails: a journal would guard nothing.
    connection = sqlite3.connect(f"/{DATABASE}")
    for setting in ("journal_mode=OFF", "synchronous=OFF", "temp_store=MEMORY", "locking_mode=EXCLUSIVE"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute(f"PRAGMA max_page_count={max(1, job.budget_bytes // _PAGE_BYTES)}")
    close_walls(calls, FILE_CAPABILITIES)
    try:
        with open("/scratch", "w+b") as scratch:
            writer = Writer(connection)
            Importer(writer, scratch).take(receive)
            counts = writer.commit(job.now)
        connection.close()
    except Malformed as error:
        raise Invalid(f"{error}; nothing was imported") from None
    except sqlite3.Error as error:
        full = "full" in str(error)
        what = "there is no space left on its disk" if full else f"it can't be written: {error}"
        raise HostError(f"the database of vulnerabilities: {what}; nothing was imported") from None
    file = os.open(f"/{DATABASE}", os.O_RDONLY)
    os.fsync(file)
    os.close(file)
    return Imported(
        read=counts.read,
        added=counts.added,
        changed=counts.changed,
        unchanged=counts.unchanged,
        removed=counts.removed,
    )
