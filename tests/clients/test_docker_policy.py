"""The docker command line is told why an image may not run."""

from __future__ import annotations

from tests.clients.dockercli import Docker
from tests.daemon import IMAGE
from tests.system.test_image_policy import TEAM, PolicyDaemon, sign, tag


def test_docker_run_of_an_unsigned_image_shows_the_reason() -> None:
    with PolicyDaemon() as daemon:
        daemon.load_image()
        docker = Docker(daemon.host)
        image = tag(daemon, IMAGE, f"{TEAM}/app")
        daemon.use({"default": "reject", "scopes": {TEAM: {"signed-by": [{"key-file": str(daemon.key)}]}}})
        refused = docker("run", "--rm", image, "echo", "hi", code=125)
        assert (
            f"docker: Error response from daemon: image {image} is refused: the image policy of {TEAM} isn't "
            "fulfilled: no signature of sha256:" in refused.err
        )
        assert docker("ps", "-aq").out == ""
        sign(daemon, image)
        assert docker("run", "--rm", image, "echo", "hi").out == "hi\n"
        assert docker("rmi", image).out == f"Untagged: {image}\n"
        rejected = docker("create", "busybox:latest", code=1)  # nobody signed it as that
        assert "busybox:latest is refused: the image policy by default rejects it" in rejected.err
