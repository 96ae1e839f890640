"""Check an image store without its daemon: `python -m cove.image.offline DATA_ROOT [--deep] [--format json]`.

It reads the records as they are committed and changes nothing. Beside a daemon that works it may see content whose
record is about to come; `GET /cove/v1/images/check` doesn't. Exit status: 0 all is well, 1 something is lost or left,
2 it can't be read.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import msgspec

from cove.image.checking import check_store, read_listing
from cove.image.checktypes import Problem, Records, Report
from cove.image.layercheck import check_layer
from cove.image.records import ImageRecord, LayerRecord
from cove.model.errors import HostError


def read_records(database: Path) -> Records:
    """The records as they are committed, beside the daemon or without one. sqlite3.Error, msgspec.MsgspecError."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10) as opened:
        rows = dict(
            opened.execute("SELECT key, value FROM kv WHERE key >= 'images/' AND key < 'images0'").fetchall()
        )
    opened.close()
    return Records(
        images=tuple(
            msgspec.json.decode(value, type=ImageRecord)
            for key, value in rows.items()
            if key.startswith("images/config/")
        ),
        layers=tuple(
            msgspec.json.decode(value, type=LayerRecord)
            for key, value in rows.items()
            if key.startswith("images/layer/")
        ),
        names={
            key.removeprefix("images/name/"): bytes(value).decode()
            for key, value in rows.items()
            if key.startswith("images/name/")
        },
    )


def check_data_root(data_root: Path, *, deep: bool = False) -> Report:
    """Check the store of a daemon's data root. HostError when it can't be read at all."""
    root = data_root / "images"
    try:
        # Content first: a record that comes meanwhile has its content already, what goes loses its record first.
        listing = read_listing(root)
        records = read_records(data_root / "state.db")
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise HostError(f"{data_root / 'state.db'}: {error}") from error
    try:

        def read_again(layer: LayerRecord) -> list[Problem]:
            return list(check_layer(directory, layer, lambda _: None))

        return check_store(root, records, listing, running=False, deep=read_again if deep else None)
    finally:
        os.close(directory)


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    flags = {word for word in arguments if word.startswith("-")}
    paths = [word for word in arguments if not word.startswith("-")]
    if len(paths) != 1 or flags - {"--deep", "--json"}:
        print("usage: python -m cove.image.offline DATA_ROOT [--deep] [--json]", file=sys.stderr)
        return 2
    try:
        report = check_data_root(Path(paths[0]), deep="--deep" in flags)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "--json" in flags:
        print(msgspec.json.encode(report).decode())
    else:
        for problem in report.problems:
            print(f"{problem.kind}: {problem.text}")
        print(
            f"{report.images} images, {report.layers} layers, {report.blobs} blobs: {len(report.problems)} problems"
        )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
