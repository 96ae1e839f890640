"""ADD of URLs and of repositories: what comes of servers that behave, and of those that don't."""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apikit import eventually
from tests.buildkit import build, output, saved
from tests.daemon import ROOT, Daemon
from tests.nanny import descendants

CONTENT = b"downloaded\n" * 100_000  # 1.1 MB
LATER = "Wed, 01 Jan 2020 00:00:00 GMT"


@pytest.fixture(autouse=True)
def cleared(daemon: Daemon) -> Iterator[None]:
    """No image, result, staging directory or process of a test stays."""
    yield
    for found in daemon.http("GET", "/images/json").json():
        if found["RepoTags"] != ["busybox:latest"]:
            daemon.http("DELETE", f"/images/{found['Id']}?force=1")
    daemon.http("POST", "/build/prune?all=1")
    eventually(lambda: os.listdir(daemon.data_root / "images" / "loading") == [])


class Handler(http.server.BaseHTTPRequestHandler):
    """/file, /old (dated), /moved, /circle, /missing, /busy (503 once), /broken (ends early, goes on by Range),
    /cut (ends early, always), /big (says 10 GB)."""

    protocol_version = "HTTP/1.1"
    seen: list[str] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        Handler.seen.append(f"{path} {self.headers.get('Range', '')}".strip())
        if path == "/moved":
            self._head(302, {"Location": "/file", "Content-Length": "0"})
        elif path == "/circle":
            self._head(302, {"Location": "/circle", "Content-Length": "0"})
        elif path == "/busy" and Handler.seen.count("/busy") == 1:
            self._head(503, {"Retry-After": "0", "Content-Length": "0"})
        elif path == "/big":
            self._head(200, {"Content-Length": str(10**15)})
            self.close_connection = True
        elif path == "/broken" and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            part = CONTENT[start:]
            self._head(
                206,
                {
                    "Content-Length": str(len(part)),
                    "ETag": '"1"',
                    "Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}",
                },
            )
            self.wfile.write(part)
        elif path in ("/broken", "/cut"):
            self._head(200, {"Content-Length": str(len(CONTENT)), "ETag": '"1"'} if path == "/broken" else
                       {"Content-Length": str(len(CONTENT))})  # fmt: skip
            self.wfile.write(CONTENT[:500_000])
            self.close_connection = True
        elif path in ("/file", "/busy", "/old", "/dir/"):
            dated = {"Last-Modified": LATER} if path == "/old" else {}
            self._head(200, {"Content-Length": str(len(CONTENT)), **dated})
            self.wfile.write(CONTENT)
        else:
            self._head(404, {"Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def added(daemon: Daemon, add: str, *after: str, **query: object) -> str:
    """What an ADD fails with, "" when it doesn't; the image is app:1."""
    text = "\n".join(["FROM busybox", f"ADD {add}", *after, ""])
    return build(daemon, {"Dockerfile": text}, t="app:1", **query).error


def test_a_url_is_added_as_roots_file(daemon: Daemon, web: str) -> None:
    assert added(daemon, f"{web}/old /x/") == ""
    _, layers = saved(daemon, "app:1")
    member = layers[-1]["x/old"]
    assert (member.mode, member.uid, member.size, member.mtime) == (0o600, 0, len(CONTENT), 1577836800)


@pytest.mark.parametrize("path", ["moved", "busy", "broken", "file?query=1"])
def test_a_url_is_followed_tried_again_and_gone_on_with(daemon: Daemon, web: str, path: str) -> None:
    Handler.seen.clear()
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert added(daemon, f"--chmod=644 --checksum=sha256:{digest} {web}/{path} /x") == ""
    assert output(daemon, "app:1", "wc -c </x").strip() == str(len(CONTENT))
    if path == "broken":
        assert Handler.seen == ["/broken", "/broken bytes=500000-"]


@pytest.mark.parametrize(
    ("add", "message"),
    [
        ("{web}/missing /x", "{web}/missing: not found"),
        ("{web}/circle /x", "redirects in a circle"),
        ("{web}/cut /x", "the connection ended early"),
        ("{web}/big /x", "it has 1000000000000000 bytes; the limit is"),
        ("--checksum=sha256:" + "0" * 64 + " {web}/file /x", "digest mismatch: sha256:"),
        ("http://user:secret@127.0.0.1:1/x?token=secret /x", "http://127.0.0.1:1/x: "),
        ("http://nowhere.invalid/x /x", "nowhere.invalid"),
    ],
)
def test_a_url_that_gives_nothing_says_why(daemon: Daemon, web: str, add: str, message: str) -> None:
    error = added(daemon, add.format(web=web))
    assert message.format(web=web) in error
    assert "secret" not in error


def test_the_same_content_is_found_in_the_cache(daemon: Daemon, web: str) -> None:
    text = f"FROM busybox\nADD {web}/file /x\nRUN echo done\n"
    build(daemon, {"Dockerfile": text})
    assert build(daemon, {"Dockerfile": text}).text.count("Using cache") == 2


# --- repositories ----------------------------------------------------------------------------


def git(directory: Path, *args: str, when: str = "2020-01-01T00:00:00Z") -> str:
    env = {
        "PATH": os.environ["PATH"], "HOME": str(directory), "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_DATE": when, "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_ALLOW_PROTOCOL": "file:git:http",
    }  # fmt: skip
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *args],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Repositories:
    """`app.git` with branches main and other, tag v1, a submodule; served by git daemon and as files by HTTP."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sub = self._new("sub", {"inside": "submodule\n"})
        self.first = self._new(
            "app", {"README": "one\n", "dir/deep/file": "deep\n", "run.sh": "#!/bin/sh\necho run\n"}
        )
        work = root / "app-work"
        (work / "run.sh").chmod(0o755)
        os.symlink("README", work / "link")
        (work / ".gitattributes").write_text("dir export-ignore\n")
        git(work, "add", "-A")
        git(work, "commit", "-qm", "two")
        git(work, "tag", "v1")
        git(work, "checkout", "-qb", "other")
        (work / "README").write_text("other\n")
        git(work, "commit", "-qam", "three")
        self.other = git(work, "rev-parse", "HEAD")
        git(work, "push", "-q", "origin", "main", "other", "v1")

    def _new(self, name: str, files: dict[str, str]) -> str:
        bare, work = self.root / f"{name}.git", self.root / f"{name}-work"
        git(self.root, "init", "-q", "--bare", "-b", "main", str(bare))
        git(self.root, "init", "-q", "-b", "main", str(work))
        for path, text in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        git(work, "add", "-A")
        git(work, "commit", "-qm", "one")
        git(work, "remote", "add", "origin", str(bare))
        git(work, "push", "-q", "origin", "main")
        return git(work, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    return Repositories(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="module")
def gits(repositories: Repositories) -> Iterator[str]:
    """The address of a git daemon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
           "GIT_CONFIG_VALUE_0": "*", "HOME": str(repositories.root)}  # fmt: skip
    program = subprocess.run(
        ["git", "--exec-path"], capture_output=True, text=True, check=True
    ).stdout.strip()
    server = subprocess.Popen(
        [f"{program}/git-daemon", "--reuseaddr", "--export-all", f"--base-path={repositories.root}",
         "--listen=127.0.0.1", f"--port={port}"],
        env=env, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    def sleeps() -> bool:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
        return not children and ") S " in Path(f"/proc/{server.pid}/stat").read_text()

    eventually(answers)
    eventually(sleeps)  # what looks for leaks knows processes by their state, too
    yield f"git://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGTERM)
    server.wait()


def test_a_repository_is_added_without_its_git_directory(daemon: Daemon, gits: str) -> None:
    assert added(daemon, f"{gits}/app.git /src") == ""
    _, layers = saved(daemon, "app:1")
    files = layers[-1]
    assert set(files) >= {"src/README", "src/dir/deep/file", "src/link", "src/run.sh", "src/.gitattributes"}
    assert not [name for name in files if ".git/" in name]
    assert (files["src/run.sh"].mode, files["src/README"].mode, files["src/README"].uid) == (0o755, 0o644, 0)
    assert files["src/README"].mtime == 1577836800, "the commit's time"
    assert output(daemon, "app:1", "cat /src/link /src/dir/deep/file; /src/run.sh") == "one\ndeep\nrun\n"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("#other", "other\n"),
        ("#v1", "one\n"),
        ("?branch=other", "other\n"),
        ("?tag=v1", "one\n"),
        ("#{other}", "other\n"),
        ("?checksum={other}&branch=other", "other\n"),
        ("#refs/heads/other", "other\n"),
    ],
)
def test_a_branch_a_tag_and_a_commit_are_found(
    daemon: Daemon, gits: str, repositories: Repositories, what: str, text: str
) -> None:
    assert added(daemon, f"{gits}/app.git{what.format(other=repositories.other)} /src") == ""
    assert output(daemon, "app:1", "cat /src/README") == text


def test_a_directory_of_a_repository_is_added_alone(daemon: Daemon, gits: str) -> None:
    assert added(daemon, f"{gits}/app.git#v1:dir/deep /src") == ""
    assert output(daemon, "app:1", "ls -A /src") == "file\n"


def test_the_git_directory_stays_where_it_is_asked_for(daemon: Daemon, gits: str) -> None:
    assert added(daemon, f"--keep-git-dir=true {gits}/app.git /src") == ""
    assert "HEAD" in output(daemon, "app:1", "ls /src/.git").split()


def test_submodules_come_along(daemon: Daemon, gits: str, repositories: Repositories, tmp_path: Path) -> None:
    work, bare = tmp_path / "work", repositories.root / "super.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(bare))
    git(tmp_path, "init", "-q", "-b", "main", str(work))
    git(work, "submodule", "add", "-q", f"{gits}/sub.git", "sub")
    git(work, "commit", "-qm", "one")
    git(work, "push", "-q", str(bare), "main")
    assert added(daemon, f"{gits}/super.git /src") == ""
    assert output(daemon, "app:1", "cat /src/sub/inside; ls -A /src") == "submodule\n.gitmodules\nsub\n"
    assert added(daemon, f"{gits}/super.git?submodules=false /src") == ""
    assert output(daemon, "app:1", "ls -A /src/sub") == ""


@pytest.mark.parametrize(
    ("add", "message"),
    [
        ("{gits}/app.git#nothing /x", "git: fatal: couldn't find remote ref nothing"),
        ("{gits}/none.git /x", "{gits}/none.git: git: fatal: "),
        ("{gits}/app.git#v1:none /x", "the repository has no directory none"),
        ("{gits}/app.git#v1:link /x", "the repository has no directory link"),
        ("--checksum=0123456 {gits}/app.git /x", "the commit of HEAD is "),
        ("https://user:secret@127.0.0.1:1/x.git /x", "https://127.0.0.1:1/x.git"),
        ("git@127.0.0.1:x.git /x", "a clone by ssh needs your agent"),
        ("git://127.0.0.1:1/x.git#" + "0" * 40 + " /x", "git: fatal: unable to connect"),
    ],
)
def test_a_repository_that_gives_nothing_says_why(daemon: Daemon, gits: str, add: str, message: str) -> None:
    error = added(daemon, add.format(gits=gits))
    assert message.format(gits=gits) in error
    assert "secret" not in error


TOKEN = "hunter2"
BASIC = "basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()


@pytest.fixture
def files(repositories: Repositories) -> Iterator[str]:
    """The repositories as files by HTTP (git's oldest protocol); those below /private to who has the token."""
    git(repositories.root / "app.git", "update-server-info")

    class Files(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/private/"):
                if self.headers.get("Authorization") != BASIC:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="x"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.path = self.path.removeprefix("/private")
            super().do_GET()

        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, directory=str(repositories.root), **more)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_repository_of_files_by_http_is_cloned_whole(daemon: Daemon, files: str) -> None:
    assert added(daemon, f"{files}/app.git#other /src") == ""
    assert output(daemon, "app:1", "cat /src/README") == "other\n"


def test_a_private_repository_is_opened_by_a_secret(daemon: Daemon, files: str, tmp_path: Path) -> None:
    refused = added(daemon, f"{files}/private/app.git /src")
    assert "the repository's server wants to know who asks: give --secret id=GIT_AUTH_TOKEN" in refused
    (tmp_path / "Dockerfile").write_text(f"FROM busybox\nADD {files}/private/app.git /src\n")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    done = subprocess.run(
        [str(ROOT / "bin" / "cove"), "build", "-t", "app:1", "--secret",
         f"id=GIT_AUTH_TOKEN.127.0.0.1,src={tmp_path / 'token'}", str(tmp_path)],
        env={**os.environ, "COVE_HOST": daemon.host, "COVE_RUN_DIR": str(daemon.run_dir)},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert output(daemon, "app:1", "cat /src/README") == "one\n"
    assert TOKEN not in done.stdout + done.stderr + daemon.log_path.read_text()


def test_a_tree_that_stands_for_a_million_files_is_refused(
    daemon: Daemon, gits: str, repositories: Repositories, tmp_path: Path
) -> None:
    bare = repositories.root / "bomb.git"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(bare))
    blob = tmp_path / "blob"
    blob.write_text("x")
    entry = f"100644 blob {git(bare, 'hash-object', '-w', str(blob))}"
    for _ in range(7):
        lines = "\n".join(f"{entry}\tf{number}" for number in range(10))
        listing = tmp_path / "listing"
        listing.write_text(lines + "\n")
        with open(listing) as stdin:
            tree = subprocess.run(
                ["git", "mktree"], cwd=bare, stdin=stdin, capture_output=True, text=True, check=True
            ).stdout.strip()
        entry = f"040000 tree {tree}"
    commit = git(bare, "commit-tree", "-m", "bomb", tree)
    git(bare, "update-ref", "refs/heads/main", commit)
    begun = time.monotonic()
    assert "the repository has more than 500000 files" in added(daemon, f"{gits}/bomb.git /x")
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("killed", [False, True])
def test_a_clone_ends_with_the_build_and_with_the_daemon(fresh_daemon: Daemon, killed: bool) -> None:
    """A server that says nothing: the client goes away, or the daemon is killed, and nothing of git is left."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(30)
        port = listening.getsockname()[1]
        text = f"FROM busybox\nADD git://127.0.0.1:{port}/x.git /x\n"
        client = threading.Thread(target=_build_briefly, args=(fresh_daemon, text))
        client.start()
        connection, _ = listening.accept()
        with connection:
            assert _gits()
            if killed:
                fresh_daemon.kill9()
            client.join()
            eventually(lambda: not _gits())
    if killed:
        fresh_daemon.start()
    eventually(lambda: os.listdir(fresh_daemon.data_root / "images" / "loading") == [])


def _build_briefly(daemon: Daemon, text: str) -> None:
    from tests.buildkit import context

    body = context({"Dockerfile": text})
    head = (
        f"POST /build HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: {len(body)}"
    )
    with daemon.connect(timeout_s=2) as client:
        client.sendall(f"{head}\r\n\r\n".encode() + body)
        try:
            while client.recv(65536):
                pass
        except (TimeoutError, ConnectionError):
            pass


def _gits() -> list[int]:
    """The processes of git that daemons of this run have started."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            if b"/work/tree" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found
