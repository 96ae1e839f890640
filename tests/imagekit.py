"""Small image archives for tests, valid and hostile, built byte by byte with Python's own tarfile.

    make_layer([File("etc/motd", b"hi")])                      -> bytes, a plain tar
    make_docker_archive([[File("a")]], names=["app:1"])        -> bytes, as docker save wrote them for long
    make_oci_layout([[File("a")]], names=["app:1"])            -> bytes, a tar of an OCI layout
    busybox_archive("busybox:latest")                          -> bytes, an image that runs

A layer may be given as entries or as the bytes of a tar, so that a test can hand in a damaged one.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard


@dataclass
class Entry:
    """A member as tarfile has it; the helpers below make the usual ones."""

    name: str
    type: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    link: str = ""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, str] = field(default_factory=dict)


def File(name: str, data: bytes = b"", **more: object) -> Entry:
    return Entry(name, data=data, **more)


def Dir(name: str, mode: int = 0o755, **more: object) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE, mode=mode, **more)


def Symlink(name: str, target: str, **more: object) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, link=target, mode=0o777, **more)


def Hardlink(name: str, target: str, **more: object) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, link=target, **more)


def Device(name: str, major: int, minor: int, *, block: bool = False, **more: object) -> Entry:
    return Entry(name, type=tarfile.BLKTYPE if block else tarfile.CHRTYPE, major=major, minor=minor, **more)


def Fifo(name: str, **more: object) -> Entry:
    return Entry(name, type=tarfile.FIFOTYPE, **more)


def Whiteout(path: str) -> Entry:
    head, slash, name = path.rpartition("/")
    return Entry(f"{head}{slash}.wh.{name}")


def Opaque(directory: str) -> Entry:
    return Entry(f"{directory}/.wh..wh..opq")


Layer = Sequence[Entry] | bytes


def make_layer(entries: Layer, *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A plain tar of the entries."""
    if isinstance(entries, bytes):
        return entries
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.uid, info.gid = entry.type, entry.mode, entry.uid, entry.gid
            info.mtime, info.linkname = entry.mtime, entry.link  # type: ignore[assignment]
            info.devmajor, info.devminor, info.size = entry.major, entry.minor, len(entry.data)
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in entry.xattrs.items()}
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def make_config(diff_ids: Sequence[str], config: dict[str, object] | None = None, **more: object) -> bytes:
    """An image's configuration blob."""
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": config or {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": [
                {"created": "2024-01-02T03:04:05Z", "created_by": f"layer {d[7:19]}"} for d in diff_ids
            ],
            **more,
        }
    ).encode()


def make_tar(files: Sequence[tuple[str, bytes] | Entry]) -> bytes:
    """A tar of files by name and content."""
    return make_layer([f if isinstance(f, Entry) else File(f[0], f[1]) for f in files])


def make_docker_archive(
    layers: Sequence[Layer],
    *,
    config: dict[str, object] | None = None,
    names: Sequence[str] | None = ("app:latest",),
    diff_ids: Sequence[str] | None = None,
    compress: Callable[[bytes], bytes] = bytes,
    extra: Sequence[tuple[str, bytes] | Entry] = (),
) -> bytes:
    """A docker-archive: LAYER/layer.tar …, CONFIG.json, manifest.json last. `diff_ids`: say these instead."""
    tars = [make_layer(layer) for layer in layers]
    document = make_config(diff_ids or [digest_of(tar) for tar in tars], config)
    paths = [f"{number:064x}/layer.tar" for number, _ in enumerate(tars)]
    config_name = digest_of(document)[7:] + ".json"
    manifest = [{"Config": config_name, "RepoTags": list(names) if names else None, "Layers": paths}]
    return make_tar(
        [
            *((path, compress(tar)) for path, tar in zip(paths, tars, strict=True)),
            *extra,
            (config_name, document),
            ("manifest.json", json.dumps(manifest).encode()),
        ]
    )


def make_oci_layout(
    layers: Sequence[Layer],
    *,
    config: dict[str, object] | None = None,
    names: Sequence[str] = ("app:latest",),
    compress: Callable[[bytes], bytes] = bytes,
    nested: bool = False,
    platforms: Sequence[str] = ("amd64",),
    tamper: Callable[[dict[str, bytes]], None] = lambda blobs: None,
) -> bytes:
    """A tar of an OCI layout. `nested`: the manifests sit in an index of their own. `tamper` may change blobs."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes, kind: str, **more: object) -> dict[str, object]:
        digest = digest_of(data)
        blobs[f"blobs/sha256/{digest[7:]}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data), **more}

    manifests = []
    for platform in platforms:
        tars = [make_layer(layer) for layer in layers]
        document = make_config([digest_of(tar) for tar in tars], config, architecture=platform)
        manifest = {
            "schemaVersion": 2,
            "config": add(document, "config.v1+json"),
            "layers": [add(compress(tar), "layer.v1.tar") for tar in tars],
        }
        manifests.append(
            add(
                json.dumps(manifest).encode(),
                "manifest.v1+json",
                platform={"architecture": platform, "os": "linux"},
            )
        )
    if nested:
        manifests = [add(json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(), "index.v1+json")]
    named = [
        {**m, "annotations": {"io.containerd.image.name": name}} for m in manifests for name in names
    ] or manifests
    index = json.dumps({"schemaVersion": 2, "manifests": named}).encode()
    tamper(blobs)
    return make_tar(
        [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), *blobs.items(), ("index.json", index)]
    )


def busybox_layer() -> list[Entry]:
    """Debian's static busybox (package busybox-static) with the links that a shell needs."""
    applets = (
        "sh cat ls echo sleep true false id env ps kill mkdir touch rm stat mount wget nc head tail".split()
    )
    return [
        *(Dir(name) for name in ("bin", "dev", "etc", "proc", "root", "sys", "var")),
        Dir("tmp", 0o1777),
        File("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
        *(Symlink(f"bin/{applet}", "busybox") for applet in applets),
        File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"),
        File("etc/group", b"root:x:0:\nuser:x:1000:\n"),
    ]


def busybox_archive(name: str = "busybox:latest", config: dict[str, object] | None = None) -> bytes:
    """An image that runs, as a docker-archive."""
    return make_docker_archive([busybox_layer()], names=[name], config=config)


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    return {
        "plain": bytes,
        "gzip": gzip.compress,
        "zstd": zstandard.ZstdCompressor().compress,
        "xz": lzma.compress,
        "bzip2": bz2.compress,
    }


async def chunks_of(data: bytes, size: int = 64 << 10) -> AsyncIterator[bytes]:
    """The data as an HTTP body would bring it."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
