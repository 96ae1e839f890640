"""Images that somebody has mounted on the host: `cove image mount`.

The daemon mounts nothing there (decisions/0004); who mounts an image names it in the mount's source, so that a removal
can be refused while it is in use. A mount in another mount namespace is seen by nobody: when the image goes, its files
do. proc(5), /proc/pid/mountinfo.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from cove.model.errors import Conflict

SOURCE = "cove-image:"


def mounted_images(text: str) -> dict[str, str]:
    """Image ids by what mountinfo says: where each is mounted."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        words, rest = front.split(" "), back.split(" ")
        if (
            len(words) > 4
            and len(rest) > 1
            and rest[0] in ("overlay", "erofs", "tmpfs")
            and rest[1].startswith(SOURCE)
        ):
            found[f"sha256:{rest[1].removeprefix(SOURCE)}"] = re.sub(
                r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4]
            )
    return found


def read_mounted() -> dict[str, str]:
    """Image ids that are mounted now, and where."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return mounted_images(file.read())


def refuse_mounted(images: Collection[str]) -> None:
    """Conflict when one of these images is mounted."""
    if not images:
        return
    mounted = read_mounted()
    for image in images:
        if image in mounted:
            raise Conflict(
                f"conflict: unable to delete {image[7:19]} (cannot be forced) - image is mounted on "
                f"{mounted[image]}: cove image unmount {mounted[image]}"
            )
