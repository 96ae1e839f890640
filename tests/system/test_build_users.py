"""Builds where root isn't root: a rootless daemon, and one that gives containers a user namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.buildkit import build, output, saved
from tests.daemon import Daemon
from tests.imagekit import Dir, File
from tests.rootlesskit import RootlessDaemon
from tests.system.test_userns import RemapDaemon

FILES = [
    File(
        "Dockerfile",
        b"FROM busybox\n"
        b"RUN id -u && mkdir -p /d/e && echo 1 > /d/e/f && chown 7:8 /d/e/f && rm -r /var && mkdir /var\n"
        b"COPY --chown=3:4 sub /s\n"
        b"WORKDIR /w/x\n"
        b"RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t cp /s/a /c/ && rm /d/e/f && rm -r /d/e && "
        b"mkdir /d/e\n"
        b"COPY --from=0 /s /again\n",
    ),
    Dir("sub"),
    File("sub/a", b"a", mode=0o640),
]


@pytest.fixture(params=["rootless", "remapped"])
def other(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    if request.param == "remapped":
        with RemapDaemon() as daemon:
            daemon.load_image()
            yield daemon
    else:
        with RootlessDaemon(network="none") as daemon:
            daemon.load_image()
            yield daemon


def test_owners_are_those_that_a_container_sees(other: Daemon) -> None:
    files = [FILES[0], *FILES[1:]]
    files[0] = File("Dockerfile", FILES[0].data.replace(b"COPY --from=0 /s /again\n", b"COPY sub /again\n"))
    answer = build(other, files, t="app:1", networkmode="none")
    assert "\n0\n" in answer.text or answer.text.count("0\n"), answer.text
    _, layers = saved(other, answer.image)
    assert (layers[1]["d/e/f"].uid, layers[1]["d/e/f"].gid) == (7, 8)
    assert (layers[2]["s/a"].uid, layers[2]["s/a"].gid, layers[2]["s/a"].mode) == (3, 4, 0o640)
    assert "d/e/.wh..wh..opq" in layers[4] or "d/e/.wh.f" in layers[4]
    shown = output(other, "app:1", "stat -c '%u:%g' /s/a /w/x /again/a; ls /d/e | wc -l")
    assert shown.split() == ["3:4", "0:0", "0:0", "0"]
    assert build(other, files, networkmode="none").text.count("Using cache") == 5
    assert os.listdir(other.data_root / "containers") == []
