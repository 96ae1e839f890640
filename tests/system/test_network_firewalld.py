"""Networks beside a real firewalld, on a bus and in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.container import PortBinding
from tests.nethelp import (
    PATIENCE_S,
    answering,
    clean_host,
    container,
    go,
    inside,
    networks,
    outside,
    reachable,
    run,
)

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        not all(shutil.which(program) for program in ("firewalld", "firewall-cmd", "dbus-daemon")),
        reason="firewalld or dbus-daemon isn't installed",
    ),
]
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}/bus</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy>
</busconfig>
"""


@pytest.fixture
def firewalld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with clean_host():
        (tmp_path / "bus.conf").write_text(BUS.format(path=tmp_path))
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
        bus = subprocess.Popen(
            ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--nopidfile"]
        )
        daemon = None
        try:
            eventually(lambda: (tmp_path / "bus").exists(), "the bus didn't start")
            with open(tmp_path / "firewalld.log", "wb") as log:
                daemon = subprocess.Popen(["firewalld", "--nofork", "--nopid"], stdout=log, stderr=log)
            eventually(
                lambda: "running" in run("firewall-cmd", "--state", check=False), "firewalld didn't start"
            )
            yield
        finally:
            for process in (daemon, bus):
                if process is not None:
                    process.terminate()
                    process.wait(PATIENCE_S)


def eventually(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_containers_get_out_and_firewalld_says_who_gets_in_also_after_a_reload(
    firewalld: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "web") as web:
                assert nets.firewall() == "host: inet firewalld filter_INPUT"
                with answering(machine.namespace, 9000, name="far"):
                    for number, opened in enumerate(
                        (False, True, False)
                    ):  # the reload forgets what was opened
                        if opened:
                            run("firewall-cmd", "--add-port=8080/tcp")
                        elif number:
                            run("firewall-cmd", "--reload")
                            await asyncio.to_thread(
                                eventually, lambda: "cvtest0" in trusted(), "not trusted again"
                            )
                        port = 81 + number
                        await nets.republish("web", [PortBinding(container_port=port, host_port=8080)])
                        with answering(web.namespace, port, name="web"):
                            ways = [
                                (machine.namespace, a, 8080) for a in (machine.host_ipv4, machine.host_ipv6)
                            ]
                            ways += [(web.namespace, a, 9000) for a in (machine.ipv4, machine.ipv6)]
                            found = await asyncio.gather(
                                *(
                                    asyncio.to_thread(inside, n, lambda a=a, p=p: reachable(a, p))
                                    for n, a, p in ways
                                )
                            )
                            assert found == [opened, opened, True, True]
                await nets.uninstall()
            assert "cvtest0" not in trusted()

    def trusted() -> str:
        return run("nft", "list", "chain", "inet", "firewalld", "filter_FORWARD_ZONES")

    assert os.environ["DBUS_SYSTEM_BUS_ADDRESS"].startswith(f"unix:path={tmp_path}")
    go(body)
