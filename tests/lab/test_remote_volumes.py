"""NFS and SMB volumes as far as a kernel that has these clients takes them: to a server that isn't there."""

from __future__ import annotations

import subprocess

import pytest

from tests.apikit import create, remove
from tests.daemon import Daemon


@pytest.mark.parametrize(
    ("kind", "device", "o", "reasons"),
    [
        ("nfs", ":/export", "addr=127.0.0.1,vers=4.2,soft,timeo=10,retrans=1", ("refused", "timed out")),
        ("nfs4", "localhost:/export", "vers=4.1,soft,timeo=10,retrans=1", ("refused", "timed out")),
        ("cifs", "//127.0.0.1/share", "username=me,password=hidden-word,vers=3.0", ("refused", "timed out")),
    ],
)
def test_the_kernel_takes_the_options_and_asks_the_server(
    daemon: Daemon, image: str, kind: str, device: str, o: str, reasons: tuple[str, ...]
) -> None:
    module = {"nfs4": "nfsv4"}.get(kind, kind)
    if subprocess.run(["modprobe", module], capture_output=True).returncode:
        pytest.skip(f"this kernel has no {kind}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    options = {"type": kind, "device": device, "o": o}
    made = daemon.http("POST", "/volumes/create", {"Name": "far", "DriverOpts": options})
    assert made.status == 201, made.body
    container = create(daemon, image, "true", Binds=["far:/far:nocopy"])
    answer = daemon.http("POST", f"/containers/{container}/start")
    told = answer.message
    remove(daemon, container)
    assert daemon.http("DELETE", "/volumes/far").status == 204
    assert answer.status == 500 and "error while mounting volume 'far'" in told
    assert any(reason in told.lower() for reason in reasons), told
    assert "hidden-word" not in told
