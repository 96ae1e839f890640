"""The distribution specification's own conformance program finds nothing wrong with `cove registry serve`.

go.mod of programs/registry pins it. It runs twice: against what 1.1 demands, and with everything that the program
knows switched on (version `dev`: cancelled uploads, tags in a push by digest, digests in every answer). What isn't run
is written down here with its reason.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.toolbox import require
from tests.registryserver import serving

# "Sparse manifests" are images whose blobs aren't there: a registry may refuse them, and this one does.
SWITCHED_OFF = {"Sparse Manifests"}
NOT_IN_1_1 = {"Blob upload cancel", "Manifest put with tag params", "Tag Param", "Tag Param sha512"}


@pytest.mark.parametrize(
    ("version", "at_least", "off", "guarded"),
    [
        ("1.1", 860, SWITCHED_OFF | NOT_IN_1_1, False),
        ("dev", 980, SWITCHED_OFF, False),
        ("dev", 980, SWITCHED_OFF, True),
    ],
    ids=["1.1", "dev", "dev, by TLS and tokens"],
)
def test_the_specification_s_own_program_finds_nothing(
    tmp_path: Path, version: str, at_least: int, off: set[str], guarded: bool
) -> None:
    program = require("registry") / "conformance"
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "password").write_text("secret")
    options = ["--tls=self", "--tokens", f"--user=someone:{tmp_path}/password"] if guarded else []
    environment = {"OCI_USERNAME": "someone", "OCI_PASSWORD": "secret"} if guarded else {}
    with serving(tmp_path / "root", *options) as registry:
        done = subprocess.run(
            [program],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "OCI_REGISTRY": registry.address,
                "OCI_TLS": "enabled" if guarded else "disabled",
                "OCI_VERSION": version,
                "OCI_RESULTS_DIR": str(results),
                "SSL_CERT_FILE": str(registry.root / "tls/ca.pem"),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=110,
        )
    counts = {name: int(number) for name, number in re.findall(r"(\w+)\.{3,}: +(\d+)\n", done.stdout)}
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert counts["FAIL"] == counts["Error"] == counts["Skip"] == 0, counts
    assert counts["Pass"] == counts["Total"] - counts["Disabled"] >= at_least, counts
    switched_off = set(re.findall(r"^ +([\w -]+?)\.*: +Disabled$", done.stdout, re.M)) - {"Disabled"}
    assert switched_off == off
    print(f"{version}: {counts['Pass']} of {counts['Total']} held; switched off: {', '.join(sorted(off))}")
