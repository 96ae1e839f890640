"""An image with a whole shell environment: every applet of Debian's static busybox, and what tools look for beside it.

act and the Dev Containers CLI want tail, tar, getent and friends, and a user database.
"""

from __future__ import annotations

import subprocess

from tests.clients.engines import Engine
from tests.imagekit import Dir, Entry, File, Symlink, busybox_layer, make_docker_archive

NAME = "cove-clients/shell:1"
# busybox has no getent; only the databases that are asked for: passwd and group, by name or number.
GETENT = b"""#!/bin/sh
[ $# = 2 ] || exec cat "/etc/$1"
while IFS= read -r line; do
  IFS=: read -r name _ number _ <<EOF
$line
EOF
  if [ "$name" = "$2" ] || [ "$number" = "$2" ]; then echo "$line"; exit 0; fi
done < "/etc/$1"
exit 2
"""
OS_RELEASE = b'ID=busybox\nNAME="BusyBox"\nVERSION_ID="1.35"\n'


def load_shell(engine: Engine) -> str:
    """Load it, and return its name."""
    listed = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    small = busybox_layer()
    have = {entry.name for entry in small}
    applets = [
        f"bin/{name}" for name in listed.stdout.split() if f"bin/{name}" not in have and name != "busybox"
    ]
    layer: list[Entry] = [
        *small,
        *(Symlink(name, "busybox") for name in applets),
        *(Dir(name) for name in ("usr", "usr/bin", "home", "home/user", "workspaces")),
        Symlink("usr/bin/env", "/bin/busybox"),
        File("usr/bin/getent", GETENT, mode=0o755),
        File("etc/os-release", OS_RELEASE),
        Dir("run"),
        Symlink("var/run", "/run"),
    ]
    engine.load(make_docker_archive([layer], names=[NAME]))
    return NAME
