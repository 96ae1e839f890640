"""What the lab's machine boots from: a Debian root, a kernel, the checkout and its virtual environment.

The root and the kernel are made once and kept in COVE_CACHE/lab (default: /var/cache/cove/lab), the image of
.venv in build/lab; a change of what they are made from makes them again, and each appears when it is whole.
The checkout's image is made for every run. All are erofs images without compression: quick to make, and a
guest whose processor is emulated has nothing to decompress.

    root      Debian of this host's suite, by mmdebstrap, with the packages of ROOT_PACKAGES
    kernel    vmlinuz, modules.erofs (lib/modules) and initrd from Debian's cloud kernel; `package` says which
    venv      .venv without the linters
    scratch   an empty ext4 file system, sparse; runs write to a copy that QEMU throws away
    checkout  the working tree as it is now, build/native, and /lab: the job and its surroundings
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import native_build

ROOT = Path(__file__).resolve().parents[3]
GUEST = Path(__file__).parent / "guest"
CACHE = Path(os.environ.get("COVE_CACHE", "/var/cache/cove")) / "lab"
BUILD = ROOT / "build" / "lab"

ROOT_PACKAGES = (
    "systemd systemd-sysv dbus dbus-user-session libpam-systemd apparmor kmod util-linux procps iproute2 "
    "nftables iptables python3 libnftables1 libseccomp2 libarchive13 runc busybox-static uidmap passt "
    "slirp4netns fuse-overlayfs ca-certificates strace"
).split()
# What the initrd loads before the root is there; dependencies are added.
INITRD_MODULES = "virtio_pci virtio_blk virtio_console erofs overlay".split()
# The guest runs no linter, and these are most of .venv.
VENV_LEFT_OUT = (
    r"bin/(ruff|mypy|dmypy|lint-imports)$|site-packages/(mypy|mypyc|ruff|grimp)(/|$)|.*__mypyc.*\.so$"
)
SCRATCH_BYTES = 8 << 30
KERNEL_PACKAGE = "linux-image-cloud-amd64"
# Part of the root's key: raise it when the recipe below changes.
_RECIPE = 2


class Missing(Exception):
    """The lab can't be made on this machine; the text says why."""


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel: the files that QEMU is given."""

    vmlinuz: Path
    initrd: Path
    modules: Path


def make_root() -> Path:
    """The root's image; takes a minute or two the first time."""
    suite = _find_suite()
    packages = [p + "t64" if p == "libarchive13" and suite != "bookworm" else p for p in ROOT_PACKAGES]
    key = _digest(repr((_RECIPE, suite, packages)).encode())
    target = CACHE / f"root-{suite}-{key}"
    with _made_once(target) as partial:
        if partial is not None:
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="root-") as work:
                archive, tree = Path(work, "root.tar"), Path(work, "root")
                options = [
                    f"--include={','.join(packages)}",
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-exclude=/usr/share/locale/*",
                    "--dpkgopt=path-exclude=/usr/share/man/*",
                    '--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*',
                    '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
                ]
                words = shlex.join([suite, str(archive), *options])
                _run(["sh", "-euc", f". scripts/debian.sh; bootstrap {words}"])
                tree.mkdir()
                _run(["tar", "-xpf", str(archive), "-C", str(tree)])
                (tree / "etc/machine-id").write_text("c07e" * 8 + "\n")
                (tree / "etc/hostname").write_text("lab\n")
                (tree / "etc/hosts").write_text("127.0.0.1 localhost lab\n::1 localhost\n")
                _make_erofs(tree, partial)
    return target


def make_kernel(source: str = "") -> Kernel:
    """Debian's cloud kernel of a suite (default: this host's), or the one in a directory.

    A directory, known by a slash in `source`, is an unpacked kernel package: boot/vmlinuz* and lib/modules.
    """
    if "/" in source:
        if not Path(source, "boot").is_dir():
            raise Missing(f"{source} holds no boot/vmlinuz*")
        name = "kernel-" + _digest(f"{Path(source).resolve()} {Path(source).stat().st_mtime_ns}".encode())
    else:
        source = source or _find_suite()
        name = f"kernel-{source}"
    name += "-" + _digest((GUEST / "init").read_bytes() + repr(INITRD_MODULES).encode())
    target = CACHE / name
    with _made_once(target) as partial:
        if partial is not None:
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="kernel-") as work:
                partial.mkdir()
                if "/" in source:
                    shutil.copytree(source, work, dirs_exist_ok=True, symlinks=True)
                else:
                    _download_kernel(source, Path(work), partial)
                _fill_kernel(Path(work), partial)
    return Kernel(target / "vmlinuz", target / "initrd", target / "modules.erofs")


def make_venv() -> Path:
    """The image of .venv."""
    stamp = ROOT / ".venv" / "cove-stamp"
    if not stamp.exists():
        raise Missing(".venv isn't there: scripts/setup.sh test makes it")
    site = next((ROOT / ".venv/lib").glob("python3*/site-packages"))
    key = _digest(f"{VENV_LEFT_OUT} {site.stat().st_mtime_ns} {stamp.read_text()}".encode())
    target = BUILD / f"venv-{key}"
    with _made_once(target) as partial:
        if partial is not None:
            _make_erofs(ROOT / ".venv", partial, f"--exclude-regex={VENV_LEFT_OUT}")
    return target


def make_scratch() -> Path:
    """The empty file system that runs write to."""
    target = CACHE / f"scratch-{SCRATCH_BYTES}"
    with _made_once(target) as partial:
        if partial is not None:
            with (
                tempfile.TemporaryDirectory(dir=CACHE, prefix="scratch-") as work,
                open(partial, "wb") as out,
            ):
                out.truncate(SCRATCH_BYTES)
                top = Path(work, "tmp")
                top.mkdir()
                top.chmod(0o1777)
                _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", "-d", work, str(partial)])
    return target


def make_checkout(directory: Path, job: str, token: str) -> Path:
    """The image of the working tree in `directory`; /lab/job in it is the shell text `job`."""
    native_build.build("native")
    tree = directory / "checkout"
    # Without the checks of .gitignore: compiled modules spare the guest the work.
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis")
    copy = Path(f"{tree}{ROOT}")
    shutil.copytree(
        ROOT,
        copy,
        ignore=lambda where, names: ignored(where, names) | ({"build"} if where == str(ROOT) else set()),
        symlinks=True,
        copy_function=_copy_if_there,
    )
    shutil.copytree(ROOT / "build/native", copy / "build/native", symlinks=True)
    compiler = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "-s",
        str(tree),
        str(copy / "cove"),
        str(copy / "tests"),
    ]
    subprocess.run(compiler, capture_output=True, check=False)  # what doesn't compile is a test's to tell
    lab = tree / "lab"
    shutil.copytree(GUEST, lab)
    (lab / "job").write_text(job)
    (lab / "token").write_text(token + "\n")
    (lab / "checkout").write_text(f"{ROOT}\n")
    units = tree / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(GUEST / "cove-lab.service", units)
    target = directory / "checkout.erofs"
    _make_erofs(tree, target)
    shutil.rmtree(tree)
    return target


# --- parts --------------------------------------------------------------------------------


def _find_suite() -> str:
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        raise Missing(f"the lab needs Debian's cloud kernel, and this host is {release.get('ID')}")
    return release["VERSION_CODENAME"]


def _download_kernel(suite: str, work: Path, record: Path) -> None:
    """Fetch and unpack a suite's package from this host's mirror; apt checks it against the archive's signature."""
    mirror = _run(["sh", "-euc", f". scripts/debian.sh; find_mirror {_find_suite()}"]).strip()
    if not mirror:
        raise Missing("this host's apt has no Debian mirror")
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} {suite} main\n")
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    options = [
        f"Dir::Etc::sourcelist={work}/sources.list",
        "Dir::Etc::sourceparts=/dev/null",
        f"Dir::State::lists={work}/lists",
        f"Dir::Cache={work}/cache",
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
    ]
    settings = [word for option in options for word in ("-o", option)]
    _run(["apt-get", "-q", *settings, "update", "--error-on=any"])
    depends = re.search(
        r"Depends: (linux-image-\S+)", _run(["apt-cache", *settings, "depends", KERNEL_PACKAGE])
    )
    if depends is None:
        raise Missing(f"{suite} has no package {KERNEL_PACKAGE}")
    _run(["apt-get", "-q", *settings, "download", depends[1]], cwd=work)
    (archive,) = work.glob("*.deb")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (record / "package").write_text(f"{archive.name} sha256:{digest}\n")
    _run(["dpkg-deb", "-x", str(archive), str(work)])


def _fill_kernel(source: Path, target: Path) -> None:
    """vmlinuz, modules.erofs and initrd from an unpacked package."""
    if (source / "usr/lib/modules").is_dir():  # Debian 13's packages
        (source / "usr/lib/modules").rename(source / "modules")
    elif (source / "lib/modules").is_dir():
        (source / "lib/modules").rename(source / "modules")
    else:
        raise Missing(f"{source} holds no lib/modules")
    tree = source / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (source / "modules").rename(tree / "usr/lib/modules")
    (tree / "lib").symlink_to("usr/lib")  # for depmod
    (version,) = (path.name for path in (tree / "usr/lib/modules").iterdir())
    _run(["depmod", "-b", str(tree), version])
    (tree / "lib").unlink()
    images = sorted((source / "boot").glob("vmlinuz*"))
    if len(images) != 1:
        raise Missing(f"{source}/boot holds {len(images)} files vmlinuz*, expected one")
    shutil.copy(images[0], target / "vmlinuz")
    (target / "initrd").write_bytes(_make_initrd(tree / "usr/lib/modules" / version))
    _make_erofs(tree, target / "modules.erofs")


def _make_initrd(modules: Path) -> bytes:
    """A cpio archive ("newc"): busybox, guest/init and the modules, with the order to load them in."""
    needed = _order_modules(modules)
    entries = [
        (name, 0o40755, b"") for name in "bin proc sys dev modules drives changes checkout root".split()
    ]
    entries.append(("bin/busybox", 0o100755, Path("/bin/busybox").read_bytes()))
    entries.append(("init", 0o100755, (GUEST / "init").read_bytes()))
    for path in needed:
        data = path.read_bytes()
        if path.suffix == ".xz":  # busybox's insmod leaves decompression to others
            data = lzma.decompress(data)
        entries.append((f"modules/{path.name}", 0o100644, data))
    order = "".join(f"{path.name}\n" for path in needed)
    entries.append(("modules/order", 0o100644, order.encode()))
    entries.append(("TRAILER!!!", 0, b""))
    archive = bytearray()
    for number, (name, mode, data) in enumerate(entries, start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + "".join(f"{value:08x}" for value in fields).encode() + name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4)
        archive += data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


def _order_modules(modules: Path) -> list[Path]:
    """INITRD_MODULES and what they need, dependencies first. What the kernel has built in is left out."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    named = {Path(path).name.split(".")[0]: path for path in needs}
    ordered: list[str] = []
    for name in INITRD_MODULES:
        if name in named:
            # modules.dep lists a module's needs so that each stands before what it needs itself.
            for path in [*reversed(needs[named[name]]), named[name]]:
                if path not in ordered:
                    ordered.append(path)
    return [modules / path for path in ordered]


def _copy_if_there(source: str, target: str) -> None:
    """Somebody may be working in the tree: an editor's temporary file vanishes while the tree is copied."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target, follow_symlinks=False)


def _make_erofs(tree: Path, target: Path, *options: str) -> None:
    # Extended inodes keep each file's own time, by which Python knows its compiled modules.
    _run(["mkfs.erofs", "--quiet", "-Eforce-inode-extended", *options, str(target), str(tree)])


@contextlib.contextmanager
def _made_once(target: Path) -> Iterator[Path | None]:
    """A path to make, renamed to `target` at the end; None where it exists. Others wait meanwhile.

    A name ends in a key of what it is made from: others with the same beginning are old, and are removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        yield None
        return
    with open(target.parent / f".{target.name.split('-')[0]}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        partial = target.with_name(target.name + ".partial")
        _remove(partial)
        try:
            yield partial
            partial.rename(target)
            for old in target.parent.glob(target.name.rpartition("-")[0] + "-*"):
                if old != target:
                    _remove(old)
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _run(command: list[str], cwd: Path = ROOT) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    except FileNotFoundError:
        raise Missing(f"{command[0]} isn't installed: scripts/setup.sh test installs it") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} wasn't done after 900 s") from None
    if done.returncode:
        raise Missing(f"{command[0]} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
