"""`cove systemd`: the unit file of what inspect shows."""

from __future__ import annotations

from typing import Any

import pytest

from cove.cli.fail import CliError
from cove.cli.systemdunit import unit_text


def shown(name: str = "web", **changes: Any) -> dict[str, Any]:
    config = {"Image": changes.get("image", "debian:latest")}
    if "stop" in changes:
        config["StopTimeout"] = changes["stop"]
    host = {
        "RestartPolicy": {"Name": changes.get("policy", "no")},
        "AutoRemove": changes.get("remove", False),
    }
    return {"Name": "/" + name, "Config": config, "HostConfig": host}


def unit(container: dict[str, Any], **changes: Any) -> str:
    asked = {
        "program": "/usr/bin/cove",
        "host": "unix:///run/cove/docker.sock",
        "policy": "on-failure",
        "after": (),
        "wanted_by": "multi-user.target",
    }
    return unit_text(container, **{**asked, **changes})


def test_the_whole_unit() -> None:
    assert unit(shown(stop=30), after=["cove-db.service"]) == (
        "# cove-web.service: written by `cove systemd web`\n"
        "[Unit]\n"
        "Description=Container web of debian:latest\n"
        "After=network-online.target cove.service cove-db.service\n"
        "Wants=network-online.target\n"
        "Requires=cove-db.service\n"
        "\n"
        "[Service]\n"
        "Environment=COVE_HOST=unix:///run/cove/docker.sock\n"
        "ExecStart=/usr/bin/cove start --attach web\n"
        "ExecStop=/usr/bin/cove stop web\n"
        "Restart=on-failure\n"
        "# SIGTERM's exit code, of a container that was stopped\n"
        "SuccessExitStatus=143\n"
        "TimeoutStopSec=40\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def test_what_systemd_would_read_otherwise_is_escaped() -> None:
    text = unit(shown(image="a%n\nExecStart=/bin/evil"), program="/opt/my cove/$x")
    assert "\nExecStart=/bin/evil" not in text
    assert "Description=Container web of a%%n?ExecStart" in text
    assert 'ExecStart="/opt/my cove/$$x" start --attach web\n' in text


@pytest.mark.parametrize(("stop", "seconds"), [(None, "20"), (0, "10"), (-1, "infinity")])
def test_systemd_waits_longer_than_the_container_may_take(stop: int | None, seconds: str) -> None:
    assert f"TimeoutStopSec={seconds}\n" in unit(shown(stop=stop))


def test_two_who_would_start_it_are_refused() -> None:
    with pytest.raises(CliError, match="cove update --restart no web"):
        unit(shown(policy="always"))
    assert "Restart=no\n" in unit(shown(policy="always"), policy="no")
    with pytest.raises(CliError, match="removed when it ends"):
        unit(shown(remove=True))
