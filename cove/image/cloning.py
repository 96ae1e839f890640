"""Clone a repository with the host's git, inside a worker: from an address to a pack and an index.

git, and what it starts, is a stranger's program as soon as a repository can make it one (CVE-2024-32002). It runs as
nobody, in namespaces of its own for mounts and processes; it sees the system's programs read-only, and one directory to
write. A first process of that namespace (`_Keeper`) runs the git commands one after the other and then sends the tree
as a tar through a pipe; when it or the worker ends, everything in the namespace does. The worker itself reads the
tar behind its own walls, as it reads any archive (tarindex.py).

Bounds: the number of files and their size are counted before a checkout (a few objects can stand for 10^9 files); the
disk is watched while git runs; a server that sends less than 1,000 bytes a second for 30 s is given up; an hour in all.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from cove.image import sandbox
from cove.image.buildjobs import encode_index
from cove.image.jobs import Cloned, CloneRepository
from cove.image.sandbox import CLONE_NEWPID, MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT
from cove.image.tarindex import MAX_ENTRIES, index_archive
from cove.model import errors
from cove.model.errors import CoveError, HostError, Invalid, NotFound, Unavailable

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
_FILES = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
    "/etc/ld.so.cache", "/etc/alternatives", "/etc/gai.conf", "/dev/null", "/dev/zero", "/dev/urandom",
)  # fmt: skip
_NOBODY = 65534
_HOUR_S = 3600
_LOOK_S = 0.2
_SAID = 500  # characters of git's own words in an error
_CONFIG = {
    "advice.detachedHead": "false",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "protocol.file.allow": "never",
    "protocol.ext.allow": "never",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
    "init.defaultBranch": "main",
    "safe.directory": "*",
    "submodule.recurse": "false",
    "credential.helper": "",
}


def clone(job: CloneRepository, close_walls: Callable[[], None]) -> Cloned:
    """Do the job. Raises NotFound (no such branch, directory), Unavailable, Invalid, HostError."""
    if shutil.which("git", path="/usr/bin:/bin:/usr/local/bin") is None:
        raise Unavailable(
            "git isn't installed on the daemon's host: install it, or add the files in another way"
        )
    staging = os.open(job.staging, os.O_RDONLY | os.O_DIRECTORY)
    sandbox.unshare_files()
    sandbox.unshare(CLONE_NEWPID)
    root = _make_root(job.staging)
    sandbox.pivot_into(root, bind=False)
    tree_end, tree = os.pipe()
    status_end, status = os.pipe()
    lifeline, _held = os.pipe()  # closed by the worker's end alone: it may not signal who is nobody
    if os.fork() == 0:
        os.close(tree_end)
        os.close(status_end)
        os.close(_held)
        _Keeper(job, tree, status, lifeline).run()
    os.close(tree)
    os.close(status)
    os.close(lifeline)
    close_walls()
    pack = os.open("pack", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=staging)
    failure: CoveError | None = None
    try:
        entries = index_archive(
            lambda: os.read(tree_end, 1 << 20), lambda data: os.write(pack, data), job.limits,
            budget_bytes=job.budget_bytes,
        )  # fmt: skip
    except CoveError as error:
        failure, entries = error, []
    said = json.loads(_read_all(status_end) or b"{}")
    if "error" in said:
        raise getattr(errors, said["error"], HostError)(said["sentence"])
    if failure is not None:
        raise failure
    if "commit" not in said:
        raise HostError("git was killed: it needs more memory or time than it may have")
    index = os.open("index", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=staging)
    with open(index, "wb") as file:
        file.write(encode_index(entries))
    return Cloned(commit=said["commit"])


def _read_all(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 4096):
        data += piece
    return data[:65536]


def _make_root(staging: str) -> str:
    """What git may see: programs and the resolver's files, read-only, and a directory to work in."""
    root = f"{staging}/root"
    os.mkdir(root)
    sandbox.mount(root, root, "", MS_BIND)  # before what is mounted below it, which the pivot takes along
    for directory in ("/etc", "/dev", "/proc", "/work"):
        os.mkdir(root + directory, 0o755)
    for name in _SYSTEM:
        if os.path.islink(name):
            os.symlink(os.readlink(name), root + name)
        elif os.path.isdir(name):
            os.mkdir(root + name)
            _bind(name, root + name)
    for name in _FILES:
        real = os.path.realpath(name)
        if os.path.isdir(real):
            os.makedirs(root + name, exist_ok=True)
            _bind(real, root + name)
        elif os.path.exists(real):
            with open(root + name, "xb"):
                pass
            _bind(real, root + name)
    with open(f"{root}/etc/passwd", "x") as passwd:
        passwd.write(f"root:x:0:0::/work:/bin/false\nnobody:x:{_NOBODY}:{_NOBODY}::/work:/bin/false\n")
    os.chown(f"{root}/work", *_owner())
    return root


def _owner() -> tuple[int, int]:
    """Who git runs as, where this user namespace has that user."""
    with open("/proc/self/uid_map") as file:
        mapped = any(
            int(first) <= _NOBODY < int(first) + int(count) for first, _, count in map(str.split, file)
        )
    return (_NOBODY, _NOBODY) if mapped else (0, 0)


def _bind(source: str, target: str) -> None:
    sandbox.mount(source, target, "", MS_BIND | MS_REC)
    if not source.startswith("/dev/"):
        sandbox.mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


class _Keeper:
    """The first process of the namespace: runs git, and ends everything with itself."""

    def __init__(self, job: CloneRepository, tree: int, status: int, lifeline: int) -> None:
        self._job, self._tree, self._status, self._lifeline = job, tree, status, lifeline
        self._full = threading.Event()
        self._git = "/work/tree"
        self._deadline_s = time.monotonic() + _HOUR_S

    def run(self) -> NoReturn:
        try:
            if os.getpid() != 1:  # what is killed here is everything in the namespace, so it must be one
                raise HostError("git has no namespace of processes")
            os.umask(0o022)
            sandbox.become(_NOBODY)
            sandbox.set_limits(memory_bytes=8 << 30, files=4096)
            sandbox.keep_capabilities(())
            sandbox.no_new_privileges()
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._job.budget_bytes, self._job.budget_bytes))
            resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))
            threading.Thread(target=self._watch, args=(os.statvfs("/work"),), daemon=True).start()
            commit = self._fetch()
            self._send(commit)
            self._say({"commit": commit})
        except CoveError as error:
            self._say({"error": type(error).__name__, "sentence": str(error)})
        except BrokenPipeError:
            self._say({})  # the worker has seen enough: it knows why
        except (OSError, ValueError) as error:
            self._say({"error": "HostError", "sentence": f"git: {getattr(error, 'strerror', '') or error}"})
        finally:
            os._exit(0)

    def _say(self, what: dict[str, str]) -> None:
        os.write(self._status, json.dumps(what).encode())

    def _watch(self, before: os.statvfs_result) -> None:
        """End all git processes when they have taken more of the disk than is left to them, and everything when the
        worker has ended."""
        while True:
            if select.select([self._lifeline], [], [], _LOOK_S)[0]:
                os._exit(1)
            now = os.statvfs("/work")
            taken = (before.f_bavail - now.f_bavail) * now.f_frsize
            files = before.f_favail - now.f_favail
            if (
                taken > self._job.budget_bytes
                or files > 3 * MAX_ENTRIES
                or time.monotonic() > self._deadline_s
            ):
                self._full.set()
                os.kill(-1, signal.SIGKILL)  # kill(2): all but the first process of the namespace

    # --- git ---

    def _run(self, *args: str, check: bool = True, directory: str = "") -> str:
        """A git command's output; its last words as an error."""
        done = subprocess.run(
            ["git", "-C", directory or self._git, *args],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if self._full.is_set():
            raise HostError(
                "the repository is larger than the disk has room for, or takes longer than an hour"
            )
        if done.returncode and check:
            raise self._explained(done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "replace").strip() if not done.returncode else ""

    def _environment(self) -> dict[str, str]:
        config = dict(_CONFIG)
        if self._job.header:
            scheme, _, rest = self._job.url.partition("://")
            host = rest.partition("/")[0].rpartition("@")[2]
            config[f"http.{scheme}://{host}/.extraHeader"] = f"Authorization: {self._job.header}"
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/work",
            "TMPDIR": "/work",
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_ALLOW_PROTOCOL": "https:http:git",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_CONFIG_COUNT": str(len(config)),
        }
        for number, (key, value) in enumerate(config.items()):
            env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
        return env

    def _explained(self, said: str) -> CoveError:
        """git's words as one of our errors; nothing of an address but what may be shown."""
        said = said.replace(self._job.url, self._job.shown)
        lines = [line for line in said.splitlines() if line.startswith(("fatal:", "error:", "remote:"))]
        sentence = " ".join((lines or said.splitlines())[-2:])[-_SAID:]
        sentence = (
            "".join(char if char.isprintable() else " " for char in sentence) or "it failed without a word"
        )
        if "couldn't find remote ref" in said or "not found" in said:
            return NotFound(f"git: {sentence}")
        if "could not read Username" in said or "Authentication failed" in said:
            return errors.Unauthorized(
                "git: the repository's server wants to know who asks: give --secret id=GIT_AUTH_TOKEN"
            )
        return Unavailable(f"git: {sentence}")

    def _fetch(self) -> str:
        """Fetch and check out; the commit."""
        job = self._job
        os.mkdir(self._git)
        self._run("init", "--quiet")
        self._run("remote", "add", "origin", job.url)
        wanted = job.ref or "HEAD"
        commit = ""
        try:
            self._run("fetch", "--quiet", "--no-tags", "--depth=1", "origin", wanted)
        except (NotFound, Unavailable) as error:
            # A server that gives no single commit, or speaks the oldest protocol: everything, then.
            if not _is_commit(wanted) and isinstance(error, NotFound):
                raise
            refs = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
            self._run("fetch", "--quiet", "origin", *(refs if _is_commit(wanted) else [wanted]))
            commit = self._run("rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}", check=False)
        commit = commit or self._run("rev-parse", "--verify", "FETCH_HEAD^{commit}")
        if job.checksum and not commit.startswith(job.checksum):
            raise Invalid(f"the commit of {wanted} is {commit}, expected {job.checksum}")
        self._count(commit)
        self._run("checkout", "--quiet", "--force", "--detach", commit)
        if job.submodules and os.path.lexists(f"{self._git}/.gitmodules"):
            self._run("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", "--force")
        return commit

    def _count(self, commit: str) -> None:
        """Refuse a tree of more files or bytes than there is room for, before it is on the disk."""
        files = size = 0
        with subprocess.Popen(
            ["git", "-C", self._git, "ls-tree", "-r", "-l", "-z", commit],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as listing:
            assert listing.stdout is not None
            rest = b""
            while piece := listing.stdout.read(1 << 16):
                *lines, rest = (rest + piece).split(b"\0")
                for line in lines:
                    files += 1
                    number = line.partition(b"\t")[0].split()[-1]
                    size += int(number) if number.isdigit() else 0
                if files > MAX_ENTRIES or size > self._job.budget_bytes or len(rest) > 1 << 20:
                    listing.kill()
                    raise Invalid(
                        f"the repository has more than {MAX_ENTRIES} files or {self._job.budget_bytes >> 20} MiB: "
                        "name a directory of it, or add it in another way"
                    )

    # --- the tree ---

    def _send(self, commit: str) -> None:
        """The files as a tar, without .git unless it is kept."""
        time_s = int(self._run("show", "--no-patch", "--format=%ct", commit) or "0")
        if self._job.keep_git:
            self._run("remote", "set-url", "origin", self._job.shown)
        top = _open_directory(self._git, self._job.subdirectory)

        def included(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            if ".git" in member.name.split("/") and not self._job.keep_git:
                return None
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = max(0, time_s)
            return member

        os.fchdir(top)
        with (
            open(self._tree, "wb") as pipe,
            tarfile.open(mode="w|", fileobj=pipe, format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in sorted(os.listdir(".")):
                tar.add(name, filter=included)


def _is_commit(text: str) -> bool:
    return len(text) in (40, 64) and not text.strip("0123456789abcdef")


def _open_directory(root: str, path: str) -> int:
    """A directory in the tree; no part of its path may be a link."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in filter(None, path.split("/")):
        try:
            directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        except OSError:
            raise NotFound(f"the repository has no directory {path}") from None
    return directory
