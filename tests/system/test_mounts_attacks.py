"""Attacks on the mounts of a start: images whose places are something else, neighbours who exchange paths meanwhile.

CVE-2019-19921 (proc through a volume), CVE-2023-28642 (/proc as a symlink), CVE-2025-31133 (/dev/null that is something
else hides nothing), CVE-2025-52565 (/dev/console), CVE-2025-52881 (writes that land elsewhere than in procfs).
Each start holds its walls, or fails; the host is never touched.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cove.model.errors import CoveError
from cove.runtime import oci, steps
from cove.runtime.facts import Host
from cove.runtime.launch import StepFailed
from tests.system.bundles import DEV, PROC, PTS, SPACES, SYS, config_of, find, printed, start, terminal
from tests.system.native_support import Box, make_launcher, needs_root, run

pytestmark = needs_root
TARGETS = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/attr/current")
STARTS = 40

# behind each name that may be the container's /proc: what hides a file, and whether settings can be written
LOOK = """
for place in /proc /other /vol/a /vol/b; do
  cd $place 2>/dev/null && test -e self/stat || continue
  echo "proc hidden=$(stat -c %t:%T interrupts) $(echo x 2>/dev/null > sys/kernel/domainname && echo written)"
done
echo end
"""


@pytest.fixture(scope="module")
def host() -> Host:
    return find()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = make_launcher("native", tmp_path / "report")
    yield Box(tmp_path / "box", made)
    made.close()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture(autouse=True)
def untouched_host() -> Iterator[None]:
    """Nothing of the host that these attacks aim at changes."""

    def look() -> list[Any]:
        null, console = os.stat("/dev/null"), os.stat("/dev/ptmx")
        return [
            Path("/proc/sys/kernel/core_pattern").read_bytes(),
            Path("/proc/sys/kernel/domainname").read_bytes(),
            (null.st_rdev, null.st_mode, console.st_rdev),
            sorted(os.listdir("/")),
        ]

    before = look()
    yield
    assert look() == before


def bind(source: Path, destination: str, *options: str) -> oci.Mount:
    return oci.Mount(destination=destination, type="none", source=str(source), options=("rbind", *options))


def refused(box: Box, config: oci.Config, host: Host) -> int:
    """The errno that a start fails with."""
    with pytest.raises(StepFailed) as caught:
        run(start(box, config, host))
    return caught.value.errno


_EXCHANGE = """
import ctypes, sys
renameat2 = ctypes.CDLL(None).renameat2
a, b = (name.encode() for name in sys.argv[1:])
print(flush=True)
while True:
    renameat2(-100, a, -100, b, 2)
"""


@contextmanager
def exchanging(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """Somebody exchanges paths without a pause (renameat2(2), RENAME_EXCHANGE)."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _EXCHANGE, *map(str, pair)], stdout=subprocess.PIPE
        )
        for pair in pairs
    ]
    try:
        for racer in racers:
            assert racer.stdout and racer.stdout.readline()
        yield
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def starts(
    box: Box, config: oci.Config, host: Host, check: Callable[[str], object]
) -> tuple[int, list[CoveError]]:
    """Start it again and again; check what each one says. How many started, and the others' errors."""
    count, errors = 0, list[CoveError]()

    async def body() -> None:
        nonlocal count
        for _ in range(STARTS):
            before = len(box.output())
            try:
                task = await start(box, config, host)
            except CoveError as error:
                errors.append(error)
                continue
            await task.wait()
            count += 1
            check(box.output()[before:])

    run(body())
    return count, errors


def hidden_everywhere(said: str) -> None:
    for line in said.splitlines():
        if line.startswith("proc "):
            assert line.strip() == "proc hidden=1:3", said


# --- images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/tmp", "tmp", "/dev/fd", "../../../../tmp"])
def test_proc_and_sys_are_mounted_through_no_symlink(box: Box, host: Host, place: str, target: str) -> None:
    (box.lower / place).rmdir()
    (box.lower / place).symlink_to(target)
    assert refused(box, config_of(box.lower, "true", own=(PROC, DEV, PTS, SYS)), host) == errno.ELOOP


@pytest.mark.parametrize("target", ["/proc/sys", "proc/1/attr", "/proc/self/fd/../../../proc/sys/kernel"])
def test_nothing_is_mounted_on_procfs_through_a_symlink(box: Box, host: Host, target: str) -> None:
    (box.lower / "dev").rmdir()
    (box.lower / "dev").symlink_to(target)
    (box.lower / "vol").symlink_to(target)
    answers = {errno.EXDEV, errno.ELOOP, errno.ENOENT}  # ELOOP: it goes through a link that is no path
    assert refused(box, config_of(box.lower, "true"), host) in answers
    (box.lower / "dev").unlink()
    (box.lower / "dev").mkdir()
    for mount in (
        bind(box.shared, "/vol"),
        oci.Mount(destination="/vol", type="tmpfs", source="t"),
        oci.Mount(destination="/vol", type="tmpfs", source="t", options=("tmpcopyup",)),
    ):
        assert refused(box, config_of(box.lower, "true", [mount]), host) in answers


def test_a_proc_of_the_host_is_bound_with_its_masks_and_nothing_else_is(
    box: Box, host: Host, tmp_path: Path
) -> None:
    spaces = tuple(space for space in SPACES if space.type != "pid")
    own = (oci.Mount(destination="/proc", type="bind", source="/proc", options=("rbind", "nosuid")), DEV, PTS)
    text = printed(box, config_of(box.lower, LOOK, own=own, namespaces=spaces), host)
    assert "proc hidden=1:3" in text
    hidden_everywhere(text)
    # though the plan's maker can be fooled about a source
    step = steps.Bind(source=str(tmp_path), target="/proc")
    with pytest.raises(StepFailed) as caught:
        run(start(box, config_of(box.lower, "true"), host, [step]))
    assert caught.value.errno == errno.EXDEV


@pytest.mark.parametrize("what", ["file", "fifo", "directory", "zero", *TARGETS])
def test_a_dev_null_that_is_something_else_hides_nothing(
    box: Box, host: Host, tmp_path: Path, what: str
) -> None:
    """CVE-2025-31133: both as the image's own /dev/null and in a /dev that a volume brings."""
    volume = tmp_path / "dev"
    volume.mkdir()
    for directory in (box.lower / "dev", volume):
        make(directory / "null", what)
    config = config_of(box.lower, LOOK, own=(PROC,))
    assert refused(box, config, host) == errno.EEXIST
    config = config_of(box.lower, LOOK, own=(PROC, bind(volume, "/dev")))
    assert refused(box, config, host) in (errno.ENODEV, errno.ELOOP)


def make(path: Path, what: str) -> None:
    if what == "file":
        path.write_text("x")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "zero":
        os.mknod(path, 0o020666, os.makedev(1, 5))
    else:
        path.symlink_to(what)


@pytest.mark.parametrize("target", TARGETS)
def test_a_console_is_shown_on_no_procfs(box: Box, host: Host, target: str) -> None:
    """CVE-2025-52565: the image's /dev/console leads to what would be written to."""
    (box.lower / "dev/pts").mkdir()
    (box.lower / "dev/console").symlink_to(target)
    config = terminal(config_of(box.lower, "true", own=(PROC, PTS)))
    # EEXIST: this kernel has no such file, and a link that leads to nothing isn't followed
    assert refused(box, config, host) in (errno.EXDEV, errno.EEXIST)


@pytest.mark.parametrize("what", ["file", "device", "none"])
def test_a_terminal_comes_from_a_devpts_only(box: Box, host: Host, tmp_path: Path, what: str) -> None:
    volume = tmp_path / "dev"
    (volume / "pts").mkdir(parents=True)
    os.mknod(volume / "null", 0o020666, os.makedev(1, 3))
    if what == "file":
        (volume / "pts/ptmx").write_text("")
    elif what == "device":
        os.mknod(volume / "pts/ptmx", 0o020666, os.makedev(5, 2))
    config = terminal(config_of(box.lower, "true", own=(PROC, bind(volume, "/dev"))))
    assert refused(box, config, host) in (errno.ENODEV, errno.ENOENT)


def test_settings_are_written_to_no_file_of_the_image(box: Box, host: Host) -> None:
    """CVE-2025-52881: an image brings what looks like /proc."""
    fake = box.lower / "proc/sys/net/ipv4"
    fake.mkdir(parents=True)
    (fake / "ip_forward").write_text("fake\n")
    config = config_of(box.lower, "cat /proc/sys/net/ipv4/ip_forward", sysctl={"net.ipv4.ip_forward": "1"})
    assert printed(box, config, host) == "1\n"
    assert (fake / "ip_forward").read_text() == "fake\n"


# --- races --------------------------------------------------------------------------------------------


def test_a_proc_that_is_exchanged_stays_hidden_where_it_is(box: Box, host: Host) -> None:
    """Somebody else has the root, too, and exchanges /proc with another directory."""
    other = box.lower / "other"
    (other / "sys/kernel").mkdir(parents=True)
    (other / "interrupts").write_text("fake")
    seen = []

    def check(said: str) -> None:
        hidden_everywhere(said)
        seen.append("proc hidden" in said)

    with exchanging((box.lower / "proc", other)):
        starts(box, config_of(box.lower, LOOK), host, check)
    assert any(seen)


def test_a_proc_in_a_volume_is_hidden_or_not_there(box: Box, host: Host) -> None:
    """CVE-2019-19921: /proc leads into a volume, whose owner exchanges the directories."""
    (box.lower / "proc").rmdir()
    (box.lower / "proc").symlink_to("/vol/a")
    for name in ("a", "b"):
        (box.shared / name).mkdir()
    with exchanging((box.shared / "a", box.shared / "b")):
        count, errors = starts(
            box,
            config_of(box.lower, LOOK, own=(bind(box.shared, "/vol"), PROC, DEV)),
            host,
            hidden_everywhere,
        )
    assert count == 0 and {error.errno for error in errors if isinstance(error, StepFailed)} == {errno.ELOOP}


def test_a_null_device_that_is_exchanged_hides_or_fails(box: Box, host: Host, tmp_path: Path) -> None:
    """CVE-2025-31133, in a /dev that another container has, too."""
    volume = tmp_path / "dev"
    volume.mkdir()
    os.mknod(volume / "null", 0o020666, os.makedev(1, 3))
    (volume / "evil").symlink_to(TARGETS[0])
    config = config_of(box.lower, LOOK, own=(PROC, bind(volume, "/dev")))
    with exchanging((volume / "null", volume / "evil")):
        count, errors = starts(box, config, host, hidden_everywhere)
    assert count and errors  # both sides of the race were met


def test_a_console_that_is_exchanged_is_a_terminal_or_fails(box: Box, host: Host) -> None:
    dev = box.lower / "dev"
    for name in ("pts", "fake"):
        (dev / name).mkdir()
    (dev / "console").write_text("")
    (dev / "evil").symlink_to(TARGETS[0])
    (dev / "fake/ptmx").symlink_to("/proc/sys/kernel/core_pattern")
    script = "stat -c '%n %F' /proc/sys/kernel/core_pattern; stat -c '%n %t' /dev/console /dev/evil; echo end"

    def check(said: str) -> None:
        assert "core_pattern regular" in said and "end" in said
        shown = [line.split()[1] for line in said.splitlines() if line.startswith("/dev/")]
        assert set(shown) <= {
            "88",
            "0",
        }  # a pseudoterminal (136), or a file or link that nothing is mounted on

    config = terminal(config_of(box.lower, script, own=(PROC, PTS)))
    with exchanging((dev / "console", dev / "evil"), (dev / "pts", dev / "fake")):
        count, errors = starts(box, config, host, check)
    assert count + len(errors) == STARTS


@pytest.mark.parametrize("evil", ["/proc", "/proc/sys/kernel", "..", "../../../../../../etc", "/outside"])
def test_a_target_that_is_exchanged_stays_inside(box: Box, host: Host, tmp_path: Path, evil: str) -> None:
    """A mount below a volume, whose owner exchanges the way there with a link that leads out."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = str(outside) if evil == "/outside" else evil
    (box.shared / "a").mkdir()
    (box.shared / "b").symlink_to(link)
    gift = tmp_path / "gift"
    gift.mkdir()
    (gift / "marker").write_text("")
    etc = sorted(os.listdir("/etc"))

    def check(said: str) -> None:
        points = [line.split()[4] for line in said.splitlines() if " - " in line]
        assert not [point for point in points if point.startswith("/proc/") and "/deep" in point], said

    config = config_of(
        box.lower, "cat /proc/self/mountinfo", [bind(box.shared, "/vol"), bind(gift, "/vol/a/deep/er")]
    )
    with exchanging((box.shared / "a", box.shared / "b")):
        count, errors = starts(box, config, host, check)
    assert count, errors
    assert not os.listdir(outside) and sorted(os.listdir("/etc")) == etc


def test_a_copy_of_what_is_exchanged_stays_inside(box: Box, host: Host, tmp_path: Path) -> None:
    """tmpcopyup reads a volume while its owner puts links to the host's files in the way."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    for name in ("a", "data"):
        (box.shared / name).mkdir()
        (box.shared / name / "file").write_text("own")
    (box.shared / "b").symlink_to(secret)
    (box.shared / "f").symlink_to(secret / "file")
    (box.shared / "g").write_text("own")

    def check(said: str) -> None:
        assert "secret" not in said and said.endswith("end\n")

    copy = oci.Mount(destination="/vol", type="tmpfs", source="t", options=("tmpcopyup",))
    script = "cat /vol/a/file /vol/b/file /vol/f /vol/g 2>/dev/null; echo end"
    config = config_of(box.lower, script, [bind(box.shared, "/vol"), copy])
    with exchanging((box.shared / "a", box.shared / "b"), (box.shared / "f", box.shared / "g")):
        count, errors = starts(box, config, host, check)
    assert count
    assert {error.errno for error in errors if isinstance(error, StepFailed)} <= {
        errno.ELOOP, errno.ENOTDIR, errno.ESTALE, errno.EINVAL, errno.EEXIST,
    }  # fmt: skip


def test_a_copy_never_has_the_rights_of_another_file(box: Box, host: Host) -> None:
    """One file's set-user-ID with another's content would be a way to root."""
    for number, (text, mode) in enumerate((("good", 0o4755), ("evil", 0o755))):
        path = box.shared / f"f{number}"
        path.write_text(text)
        path.chmod(mode)
    for filler in range(50):
        (box.shared / f"a{filler}").write_text("")
    copy = oci.Mount(destination="/vol", type="tmpfs", source="t", options=("tmpcopyup",))
    script = "for f in /vol/f0 /vol/f1; do echo $(stat -c %a $f) $(cat $f); done"
    config = config_of(box.lower, script, [bind(box.shared, "/vol"), copy])

    def check(said: str) -> None:
        assert set(said.split("\n")) <= {"4755 good", "755 evil", ""}, said

    with exchanging((box.shared / "f0", box.shared / "f1")):
        count, _ = starts(box, config, host, check)
    assert count
