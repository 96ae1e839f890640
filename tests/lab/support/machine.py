"""Run a command in a virtual machine with another kernel: QEMU, started and ended here, nothing left behind.

    status = run("pytest -q tests/lab", write=sys.stdout.buffer.write)

The guest (support/guest) writes the command's output to a virtio port, and after it a line with a token of this
run and the exit status; then the machine is killed, since nothing in it is kept. Its console is a file, shown
when no status came. QEMU uses KVM where a proof has shown that it works (some hosts have a /dev/kvm in which a
kernel hangs), and emulates the processor otherwise.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.support import images
from tests.lab.support.images import Kernel, Missing

TIMED_OUT = 124  # as timeout(1)
NO_STATUS = 125
PROOF_LIMIT_S = 8.0
CPUS = 2
MEMORY_MIB = 2048
# KASLR, mitigations and self-tests cost an emulated processor seconds, and a test nothing.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t mitigations=off nokaslr cryptomgr.notests audit=0 "
    "rcupdate.rcu_expedited=1 apparmor=1 random.trust_cpu=on rdinit=/init"
)
SYSTEMD_OPTIONS = (
    "cove.init=/lib/systemd/systemd systemd.unit=cove-lab.service systemd.show_status=no "
    "systemd.unified_cgroup_hierarchy=1 systemd.mask=tmp.mount"
)
PLAIN_OPTIONS = "cove.init=/lab/boot"


def check_host(memory_mib: int) -> None:
    """Raise Missing where no machine of this size can run."""
    if platform.machine() != "x86_64":
        raise Missing(f"the lab is for x86_64, and this host is {platform.machine()}")
    if shutil.which("qemu-system-x86_64") is None:
        raise Missing("qemu-system-x86_64 isn't installed: scripts/setup.sh test installs it")
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found and int(found[1]) // 1024 < memory_mib + 512:
        raise Missing(f"{int(found[1]) // 1024} MiB of memory are free, and the lab needs {memory_mib + 512}")


def run(
    command: str,
    *,
    write: Callable[[bytes], object],
    systemd: bool = False,
    kernel: str = "",
    limit_s: float = 300.0,
    memory_mib: int = MEMORY_MIB,
) -> int:
    """The exit status of a shell command, run as root in the checkout of a fresh machine.

    `write` gets its output as it comes. TIMED_OUT after `limit_s`, and NO_STATUS when the machine ended before the
    command; then the console's last lines were written, too. Raises Missing where there can be no machine.
    """
    check_host(memory_mib)
    made = images.make_kernel(kernel)
    accelerator = _choose_accelerator()
    with _drives(command) as (drives, token, directory):
        console = directory / "console"
        options = f"{KERNEL_OPTIONS} {SYSTEMD_OPTIONS if systemd else PLAIN_OPTIONS}"
        with _qemu(accelerator, made, drives, options, memory_mib, console) as (process, port):
            status = _follow(process, port, token.encode(), write, limit_s)
        if status in (TIMED_OUT, NO_STATUS):
            what = f"no result after {limit_s:.0f} s" if status == TIMED_OUT else "it ended without a result"
            text = console.read_text(errors="replace")[-4000:]
            write(f"\nlab: {what}; the machine's console:\n{text}\n".encode())
    return status


@contextlib.contextmanager
def _drives(command: str) -> Iterator[tuple[dict[str, Path], str, Path]]:
    """The images by their serial numbers, the run's token and its directory."""
    token = secrets.token_hex(16)
    drives = {"root": images.make_root(), "venv": images.make_venv(), "scratch": images.make_scratch()}
    with tempfile.TemporaryDirectory(prefix="cove-lab-") as name:
        drives["checkout"] = images.make_checkout(Path(name), command + "\n", token)
        yield drives, token, Path(name)


@contextlib.contextmanager
def _qemu(
    accelerator: str, kernel: Kernel, drives: dict[str, Path], options: str, memory_mib: int, console: Path
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A running machine, and our end of its port. It is killed at the end, or when this process dies."""
    ours, theirs = socket.socketpair()
    arguments = [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        # Not microvm: it has no HPET, and a kernel waits for ever for its PIT's ticks where the host is busy.
        *(
            "-M",
            "q35,usb=off,vmport=off,smm=off",
            "-accel",
            accelerator,
            "-smp",
            str(CPUS),
            "-m",
            str(memory_mib),
        ),
        *("-cpu", "host" if accelerator == "kvm" else "max,la57=off"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-kernel", str(kernel.vmlinuz), "-initrd", str(kernel.initrd), "-append", options),
        *("-serial", f"file:{console}"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={theirs.fileno()}"),
        *("-device", "virtserialport,nr=1,chardev=port,name=cove.lab"),
    ]
    for name, path in {**drives, "modules": kernel.modules}.items():
        # Changes go to an unlinked temporary file of QEMU's.
        mode = "snapshot=on,cache=unsafe" if name == "scratch" else "readonly=on"
        arguments += ["-drive", f"if=none,id={name},format=raw,file={path},{mode}"]
        arguments += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    environment = {**os.environ, "TMPDIR": str(console.parent)}
    with (
        ours,
        open(console, "ab") as log,
        subprocess.Popen(
            arguments,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        ) as process,
    ):
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()


def _follow(
    process: subprocess.Popen[bytes],
    port: socket.socket,
    token: bytes,
    write: Callable[[bytes], object],
    limit_s: float,
) -> int:
    """Pass the output on until the line with the token; what may be its beginning is held back."""
    mark = re.compile(rb"\n" + token + rb" (\d+)\n")
    longest = len(token) + 6
    held = b""
    deadline = time.monotonic() + limit_s
    while True:
        readable, _, _ = select.select([port], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            write(held)
            return TIMED_OUT
        try:
            data = port.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            write(held)
            return NO_STATUS
        held += data
        if found := mark.search(held):
            write(held[: found.start()])
            return int(found[1])
        start = held.rfind(b"\n", max(0, len(held) - longest))
        if start < 0 or not (b"\n" + token).startswith(held[start : start + len(token) + 1]):
            start = len(held)
        write(held[:start])
        held = held[start:]


def _choose_accelerator() -> str:
    """kvm or tcg. The proof, a boot that gets to the initrd, is made once and remembered for this kernel."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    images.CACHE.mkdir(parents=True, exist_ok=True)
    known = images.CACHE / f"accelerator-{platform.release()}"
    if not known.exists():
        known.write_text("kvm" if _prove("kvm") else "tcg")
    return known.read_text()


def _prove(accelerator: str) -> bool:
    """Whether a kernel boots."""
    kernel = images.make_kernel()
    with tempfile.TemporaryDirectory(prefix="cove-lab-") as name:
        console = Path(name, "console")
        # Without drives the initrd's end is the kernel's panic, and QEMU's exit (-no-reboot).
        with (
            _qemu(accelerator, kernel, {}, KERNEL_OPTIONS, 256, console) as (process, _),
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            process.wait(PROOF_LIMIT_S)
        return "Attempted to kill init" in console.read_text(errors="replace")
