"""Files that strangers share: a volume whose content is changed under a mount's feet."""

from __future__ import annotations

import stat
import subprocess
from typing import Any

from tests.daemon import Daemon


def create(daemon: Daemon, image: str, *args: str, **host: Any) -> str:
    body = {"Image": image, "Cmd": list(args), "HostConfig": {"NetworkMode": "none", **host}}
    made = daemon.http("POST", "/containers/create", body)
    assert made.status == 201, made.message
    return str(made.json()["Id"])


def run(daemon: Daemon, image: str, *args: str, **host: Any) -> None:
    container = create(daemon, image, *args, **host)
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert daemon.http("POST", f"/containers/{container}/wait").json()["StatusCode"] == 0
    assert daemon.http("DELETE", f"/containers/{container}").status == 204


def test_a_subpath_that_became_a_symlink_leads_nowhere_outside_its_volume(daemon: Daemon, image: str) -> None:
    """CVE-2023-2878: who writes to the volume swaps the directory for a link between create and start."""
    outside = daemon.base / "of-the-host"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    mount = {"Type": "volume", "Source": "shared", "Target": "/x", "VolumeOptions": {"Subpath": "sub"}}
    assert daemon.http("POST", "/volumes/create", {"Name": "shared"}).status == 201
    run(daemon, image, "sh", "-c", "mkdir /v/sub && touch /v/sub/mine", Binds=["shared:/v"])
    victim = create(daemon, image, "ls", "/x", Mounts=[mount])
    try:
        archive = f"/containers/{victim}/archive?path=/x/"
        assert daemon.http("GET", f"{archive}mine").status == 200
        run(daemon, image, "sh", "-c", f"rm -r /v/sub && busybox ln -s {outside} /v/sub", Binds=["shared:/v"])

        refused = daemon.http("POST", f"/containers/{victim}/start")
        assert refused.status == 500 and "No such file or directory" in refused.message
        assert daemon.http("GET", f"{archive}secret").status != 200

        # the same path within the volume is what the link names now
        run(
            daemon,
            image,
            "sh",
            "-c",
            f"mkdir -p /v{outside} && touch /v{outside}/inside",
            Binds=["shared:/v"],
        )
        assert daemon.http("POST", f"/containers/{victim}/start").status == 204
        assert daemon.http("POST", f"/containers/{victim}/wait").json()["StatusCode"] == 0
        said = daemon.http("GET", f"/containers/{victim}/logs?stdout=1").body
        assert b"inside" in said and b"secret" not in said
        assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    finally:
        daemon.http("DELETE", f"/containers/{victim}?force=1")
        assert daemon.http("DELETE", "/volumes/shared").status == 204


def test_no_other_user_of_the_host_reaches_what_containers_write(daemon: Daemon, image: str) -> None:
    """CVE-2021-41091: a setuid program that root made in a container is one of the host's root."""
    assert daemon.http("POST", "/volumes/create", {"Name": "with-setuid"}).status == 201
    make = "busybox cp /bin/busybox /v/run && busybox chmod 4755 /v/run"
    run(daemon, image, "sh", "-c", make, Binds=["with-setuid:/v"])
    path = daemon.data_root / "volumes/with-setuid/_data/run"
    try:
        assert path.stat().st_mode & stat.S_ISUID
        daemon.base.chmod(0o711)  # as /var/lib: only the data root itself is in the way
        stranger = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", '"$0" true')
        refused = subprocess.run([*stranger, str(path)], capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0 and "ermission denied" in refused.stderr
        control = [*(daemon.run_dir / "containers").iterdir(), daemon.run_dir / "containers"]
        assert all(stat.S_IMODE(each.stat().st_mode) == 0o700 for each in control)
        assert stat.S_IMODE(daemon.socket_path.stat().st_mode) == 0o660
    finally:
        assert daemon.http("DELETE", "/volumes/with-setuid").status == 204
