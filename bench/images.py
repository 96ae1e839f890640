"""The images that every engine loads: made here once, kept in the cache, no registry needed.

`bench/busybox`: Debian's busybox-static, some links and a file of log lines. `bench/large`: a
synthetic system of about 170 MB in 10,000 files and four layers, sized and compressible as a
Debian image is. `bench/debian`: the image of `make run`. `bench/small`: 20,000 files of about a kilobyte. All are
docker-archives, uncompressed as `docker save` writes them, and the same bytes on every machine (but for busybox
itself and Debian's packages).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

BUSYBOX = "bench/busybox:latest"
LARGE = "bench/large:latest"
DEBIAN = "bench/debian:latest"
SMALL = "bench/small:latest"
SMALL_FILES = 20_000
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
VERSION = 3  # of the recipes below: a changed one makes new files
APPLETS = ("cat", "head", "ls", "mount", "seq", "sh", "sleep", "true", "wc")
LINES_SIZE = 1 << 20
LARGE_LAYERS = ((7000, 118), (1600, 32), (1000, 15), (400, 5))  # files, MB


class ImageError(Exception):
    """An image can't be made here; the sentence says what is missing."""


def log_lines() -> bytes:
    """One MiB of lines of about 100 bytes: what the log rows write."""
    line = "2026-01-01 00:00:00 INFO request {:07d} GET /index.html 200 12345 bytes, 0.0042 s, 192.0.2.7\n"
    text = "".join(line.format(number) for number in range(LINES_SIZE // 90))
    return text.encode()[: LINES_SIZE - 1] + b"\n"


def busybox_root(directory: Path) -> Path:
    """The busybox image's content as a directory (for the floor and runc)."""
    if directory.exists():
        return directory
    busybox = shutil.which("busybox")
    if busybox is None:
        raise ImageError("busybox isn't installed: apt-get install busybox-static")
    made = directory.with_name(directory.name + ".new")
    shutil.rmtree(made, ignore_errors=True)
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (made / name).mkdir(parents=True)
    shutil.copy(busybox, made / "bin/busybox")
    for applet in APPLETS:
        (made / "bin" / applet).symlink_to("busybox")
    (made / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (made / "etc/group").write_text("root:x:0:\n")
    (made / "lines").write_bytes(log_lines())
    made.rename(directory)
    return directory


def busybox_archive(cache: Path) -> Path:
    """The archive of bench/busybox; made when it isn't in the cache."""

    def layers() -> Iterator[bytes]:
        root = busybox_root(cache / f"busybox-root-{VERSION}")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(root.rglob("*")):
                archive.add(path, str(path.relative_to(root)), recursive=False, filter=anonymous)
        yield buffer.getvalue()

    return archive_of(cache / f"busybox-{VERSION}.tar", BUSYBOX, layers)


def large_archive(cache: Path) -> Path:
    """The archive of bench/large; made when it isn't in the cache (some seconds)."""

    def layers() -> Iterator[bytes]:
        for number, (files, megabytes) in enumerate(LARGE_LAYERS):
            yield synthetic_layer(number, files, megabytes * 1_000_000)

    return archive_of(cache / f"large-{VERSION}.tar", LARGE, layers)


def debian_archive(cache: Path) -> Path:
    """The archive of bench/debian: the root of `make run`, bootstrapped where it isn't in the cache (half a minute)."""
    root = cache.parent / "debian.tar"
    if not root.exists():
        recipe = f'. "{SCRIPTS}/debian.sh"; bootstrap bookworm "{root}"'
        done = subprocess.run(
            ["sh", "-euc", recipe], capture_output=True, text=True, cwd=SCRIPTS, timeout=600
        )
        if done.returncode != 0:
            raise ImageError(f"Debian's root can't be made: {done.stderr.strip()[-300:]}")
    return archive_of(cache / f"debian-{VERSION}.tar", DEBIAN, lambda: iter([root.read_bytes()]))


def small_archive(cache: Path) -> Path:
    """The archive of bench/small; made when it isn't in the cache (some seconds)."""
    return archive_of(
        cache / f"small-{VERSION}.tar",
        SMALL,
        lambda: iter([synthetic_layer(9, SMALL_FILES, SMALL_FILES * 1_000)]),
    )


def small_tree(directory: Path) -> Path:
    """A build's context of 20,000 files in 400 directories, about a kilobyte each."""
    chance = random.Random(10)
    for index in range(SMALL_FILES):
        folder = directory / f"src/d{index // 50:03d}"
        if index % 50 == 0:
            folder.mkdir(parents=True)
        (folder / f"f{index:05d}").write_bytes(chance.randbytes(512).hex().encode())
    return directory


def synthetic_layer(number: int, files: int, size: int) -> bytes:
    """A layer's tar: directories of twenty files, few large ones, half of each random, half text."""
    chance = random.Random(number)
    weights = [chance.lognormvariate(0, 1.6) for _ in range(files)]
    scale = size / sum(weights)
    words = log_lines()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for index, weight in enumerate(weights):
            folder = f"usr/lib/layer{number}/d{index // 20:04d}"
            if index % 20 == 0:
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                archive.addfile(entry)
            length = max(1, int(weight * scale))
            start = chance.randrange(len(words))
            text = (words[start:] + words * (length // len(words) + 1))[: length - length // 2]
            entry = tarfile.TarInfo(f"{folder}/f{index:05d}")
            entry.size, entry.mode, entry.mtime = length, 0o644, 1_700_000_000
            archive.addfile(entry, io.BytesIO(chance.randbytes(length // 2) + text))
    return buffer.getvalue()


def archive_of(path: Path, name: str, layers: Callable[[], Iterator[bytes]]) -> Path:
    """A docker-archive with the given layers (tars), written beside and renamed."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with tarfile.open(made, mode="w", format=tarfile.GNU_FORMAT) as archive:
            digests = []
            for layer in layers():
                digests.append(hashlib.sha256(layer).hexdigest())
                add_file(archive, f"{digests[-1]}/layer.tar", layer)
            config = {
                "architecture": "amd64",
                "os": "linux",
                "created": "2026-01-01T00:00:00Z",
                "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
                "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "bench"} for _ in digests],
            }
            content = json.dumps(config).encode()
            config_name = hashlib.sha256(content).hexdigest() + ".json"
            add_file(archive, config_name, content)
            manifest = [
                {
                    "Config": config_name,
                    "RepoTags": [name],
                    "Layers": [f"{digest}/layer.tar" for digest in digests],
                }
            ]
            add_file(archive, "manifest.json", json.dumps(manifest).encode())
        made.rename(path)
    finally:
        made.unlink(missing_ok=True)
    return path


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(content), 1_700_000_000
    archive.addfile(entry, io.BytesIO(content))


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 1_700_000_000
    return entry
