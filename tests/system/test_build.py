"""POST /build: what the classic builder's clients see, what is cached, and what an image has in it."""

from __future__ import annotations

import gzip
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.apikit import eventually
from tests.buildkit import build, context, output, saved
from tests.daemon import Daemon
from tests.imagekit import Dir, File, Hardlink, Symlink, make_layer


@pytest.fixture(autouse=True)
def cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    """No image and no result of a test stays."""
    name = "fresh_daemon" if "fresh_daemon" in request.fixturenames else "daemon"
    daemon: Daemon = request.getfixturevalue(name)
    yield
    assert daemon.http("GET", "/containers/json?all=1").json() == [], "a build left a container"
    for found in daemon.http("GET", "/images/json").json():
        if found["RepoTags"] != ["busybox:latest"]:
            daemon.http("DELETE", f"/images/{found['Id']}?force=1")
    daemon.http("POST", "/build/prune?all=1")
    eventually(lambda: os.listdir(daemon.data_root / "images" / "loading") == [])
    eventually(lambda: os.listdir(daemon.data_root / "containers") == [])
    check = daemon.http("GET", "/cove/v1/images/check?deep=1").json()
    assert not check.get("Problems"), check


SIMPLE = {
    "Dockerfile": "FROM busybox\nCOPY a.txt /a.txt\nRUN echo built > /b; cat /a.txt\n",
    "a.txt": "hello\n",
}


def test_a_build_tells_what_dockers_builder_tells(daemon: Daemon, image: str) -> None:
    first = build(daemon, SIMPLE, t=["app:1", "app:two"])
    lines = first.text.splitlines()
    base = daemon.http("GET", f"/images/{image}/json").json()["Id"][7:19]
    assert lines[0:2] == ["Step 1/3 : FROM busybox", f" ---> {base}"]
    assert lines[2] == "Step 2/3 : COPY a.txt /a.txt" and lines[3].startswith(" ---> ")
    assert lines[4] == "Step 3/3 : RUN echo built > /b; cat /a.txt"
    assert lines[5].startswith(" ---> Running in ") and lines[6] == "hello"
    assert lines[7].startswith("Removing intermediate container ")
    assert lines[-3:] == [
        f"Successfully built {first.image[7:19]}",
        "Successfully tagged app:1",
        "Successfully tagged app:two",
    ]
    assert output(daemon, "app:1", "cat /a.txt /b") == "hello\nbuilt\n"
    again = build(daemon, SIMPLE, t="app:1")
    assert again.image == first.image
    assert again.text.count(" ---> Using cache\n") == 2
    anew = build(daemon, SIMPLE, nocache=1)
    assert "Using cache" not in anew.text and anew.image != first.image


def test_only_what_changed_is_built_again(daemon: Daemon) -> None:
    files = {"Dockerfile": "FROM busybox\nCOPY a /a\nCOPY b /b\nRUN cat /a /b\n", "a": "1", "b": "2"}
    build(daemon, files)
    changed = build(daemon, {**files, "b": "3"})
    assert changed.text.count("Using cache") == 1 and "13" in changed.text
    touched = [
        File("Dockerfile", files["Dockerfile"].encode()),
        File("a", b"1", mtime=5, uid=9),
        File("b", b"3"),
    ]
    assert build(daemon, touched).text.count("Using cache") == 3, "times and owners don't count"


def test_quiet_tells_the_id_alone_and_what_failed(daemon: Daemon) -> None:
    quiet = build(daemon, SIMPLE, q=1)
    assert [list(line) for line in quiet.lines] == [["stream"]]
    assert quiet.lines[0]["stream"] == daemon.http("GET", "/images/json").json()[0]["Id"] + "\n"
    failed = build(daemon, {"Dockerfile": "FROM busybox\nRUN echo seen; exit 4\n"}, q=1)
    assert "seen" in failed.text and failed.code == 4


def test_the_previous_image_loses_its_name(daemon: Daemon) -> None:
    first = build(daemon, SIMPLE, t="app:1").image
    second = build(daemon, {**SIMPLE, "a.txt": "other\n"}, t="app:1").image
    images = {one["Id"]: one["RepoTags"] for one in daemon.http("GET", "/images/json").json()}
    assert images[first] == [] and images[second] == ["app:1"]


@pytest.mark.parametrize(
    ("dockerfile", "message", "code"),
    [
        (
            "FROM busybox\nRUN echo no; exit 3\n",
            "The command '/bin/sh -c echo no; exit 3' returned a non-zero code: 3",
            3,
        ),
        ('FROM busybox\nRUN ["nothing"]\n', "The command 'nothing' returned a non-zero code: 127", 127),
        (
            "FROM busybox\nCOPY missing /x\n",
            "COPY failed: file not found in build context or excluded by .dockerignore: "
            "stat missing: file does not exist",
            None,
        ),
        (
            "FROM busybox\nCOPY *.none /x\n",
            "COPY failed: no source files were specified: nothing matches",
            None,
        ),
        ("FROM busybox\nCOPY --chown=ghost a.txt /x\n", "COPY failed: unable to find user ghost", None),
        ("FROM busybox\nRUN mkdir /d\nCOPY a.txt /d/e/\nCOPY a.txt /d/e\n", "", None),
        ("FROM busybox\nCOPY a.txt Dockerfile /x\n", "must be a directory and end with a /", None),
        ("FROM busybox\nCOPY a.txt /bin/busybox/x\n", "no directory", None),
    ],
)
def test_a_step_that_fails_says_which_and_why(
    daemon: Daemon, dockerfile: str, message: str, code: int | None
) -> None:
    answer = build(daemon, {"Dockerfile": dockerfile, "a.txt": "x"})
    assert message in answer.error and answer.code == code
    assert bool(answer.error) == bool(message)


@pytest.mark.parametrize(
    ("files", "query", "message"),
    [
        ({"Dockerfile": "FORM busybox\n"}, {}, "did you mean FROM?"),
        ({"a": "b"}, {}, "Cannot locate specified Dockerfile: Dockerfile"),
        ({"Dockerfile": ""}, {}, "no instructions"),
        ({"Dockerfile": "FROM nothing.example/here\n"}, {}, "nothing.example"),
        ({"Dockerfile": "FROM busybox\n"}, {"target": "x"}, "x"),
        ({"Dockerfile": "FROM busybox\n"}, {"t": "UPPER"}, "must be lowercase"),
        ({"Dockerfile": "FROM busybox\n"}, {"memory": "5"}, "6MB"),
        ({"Dockerfile": "FROM busybox\n"}, {"buildargs": "nonsense"}, "buildargs"),
        ({"Dockerfile": "FROM busybox\n"}, {"version": 2}, "DOCKER_BUILDKIT=0"),
        (b"x" * 3000, {}, "isn't a tar archive"),
        (make_layer([File("../../x", b"")]), {}, "leads outside"),
    ],
)
def test_a_request_that_cannot_be_built_has_a_status_of_its_own(
    daemon: Daemon, files: dict[str, str] | bytes, query: dict[str, object], message: str
) -> None:
    answer = build(daemon, files, **query)
    assert answer.status >= 400 and message in answer.error


def test_stages_that_nobody_needs_are_not_built(daemon: Daemon) -> None:
    dockerfile = """
FROM busybox AS one
RUN echo made > /one
FROM busybox AS unneeded
RUN exit 1
FROM busybox AS last
COPY --from=one /one /from-one
FROM one AS other
RUN echo other
"""
    answer = build(daemon, {"Dockerfile": dockerfile}, target="last", t="app:1")
    assert output(daemon, answer.image, "cat /from-one") == "made\n"
    assert "exit 1" not in answer.text and "other" not in answer.text


def test_independent_stages_run_side_by_side(daemon: Daemon) -> None:
    """One waits for a file that the other makes: alone it would wait for ever."""
    dockerfile = """
FROM busybox AS one
RUN --mount=type=cache,target=/c while [ ! -e /c/go ]; do sleep 0.05; done; echo 1 > /1
FROM busybox AS two
RUN --mount=type=cache,target=/c touch /c/go; echo 2 > /2
FROM busybox
COPY --from=one /1 /
COPY --from=two /2 /
"""
    answer = build(daemon, {"Dockerfile": dockerfile})
    assert output(daemon, answer.image, "cat /1 /2") == "1\n2\n"


def test_two_builds_at_once_run_a_step_once(daemon: Daemon) -> None:
    dockerfile = "FROM busybox\nRUN --mount=type=cache,target=/c sleep 0.5; echo x >> /c/runs; cat /c/runs\n"
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(build(daemon, {"Dockerfile": dockerfile})))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.image for answer in answers}) == 1
    assert all(answer.text.count("\nx\n") == 1 for answer in answers), (
        "everybody sees its output, from one run"
    )


def test_a_layer_has_what_the_step_changed(daemon: Daemon) -> None:
    dockerfile = """
FROM busybox
RUN mkdir -p /app/old && echo 1 > /app/old/a && echo 2 > /app/b && echo 3 > /app/c && mkfifo /app/p
RUN rm /app/b; rm -r /app/old; mkdir /app/old; echo new > /app/old/n; ln /app/c /app/d; chmod 4711 /app/c
RUN --mount=type=cache,target=/root/.cache --mount=type=tmpfs,target=/t touch /root/.cache/x /t/y; touch /z
"""
    _, layers = saved(daemon, build(daemon, {"Dockerfile": dockerfile}).image)
    assert set(layers[1]) == {"app", "app/old", "app/old/a", "app/b", "app/c", "app/p"}
    assert set(layers[2]) == {
        "app",
        "app/.wh.b",
        "app/old",
        "app/old/.wh..wh..opq",
        "app/old/n",
        "app/c",
        "app/d",
    }
    assert layers[2]["app/d"].islnk() and layers[2]["app/c"].mode == 0o4711
    assert set(layers[3]) == {"z"}, "what was mounted, and the directories for it, are no part of it"


def test_a_copy_keeps_what_files_are(daemon: Daemon) -> None:
    files = [
        File(
            "Dockerfile", b"FROM busybox\nCOPY . /app/\nADD --chown=3:4 --chmod=640 x.txt /x\nCOPY sub /new\n"
        ),
        Dir("sub", mode=0o750),
        File("sub/run", b"#!/bin/sh", mode=0o755, mtime=1_600_000_000),
        File("x.txt", b"x", mode=0o600, uid=1000, gid=1000),
        Symlink("link", "sub/run"),
        Symlink("absolute", "/etc/passwd"),
        Hardlink("hard", "x.txt"),
        File("suid", b"", mode=0o4755),
    ]
    _, layers = saved(daemon, build(daemon, files).image)
    app = layers[1]
    assert app["app/sub"].mode == 0o750 and app["app/sub/run"].mode == 0o755
    assert app["app/sub/run"].mtime == 1_600_000_000
    assert (app["app/x.txt"].uid, app["app/x.txt"].gid, app["app/x.txt"].mode & 0o777) == (0, 0, 0o600)
    assert app["app/link"].linkname == "sub/run" and app["app/absolute"].linkname == "/etc/passwd"
    assert {app["app/x.txt"].islnk(), app["app/hard"].islnk()} == {True, False}
    assert app["app/suid"].mode == 0o4755
    assert (layers[2]["x"].uid, layers[2]["x"].gid, layers[2]["x"].mode) == (3, 4, 0o640)
    assert layers[3]["new"].mode == 0o755 and "new/run" in layers[3]


def test_an_archive_that_is_added_is_unpacked(daemon: Daemon) -> None:
    inner = make_layer([File("d/f", b"inside", uid=7, gid=8, mode=0o640)])
    files = [
        File("Dockerfile", b"FROM busybox\nADD in.tar /to/\nCOPY in.tar /copied/\n"),
        File("in.tar", inner),
    ]
    _, layers = saved(daemon, build(daemon, files).image)
    assert (layers[1]["to/d/f"].uid, layers[1]["to/d/f"].mode) == (7, 0o640)
    assert "copied/in.tar" in layers[2]


class _Pages(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        if self.path in self.files:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.files[self.path])))
        else:
            self.send_response(404)
        self.end_headers()
        if self.path in self.files:
            self.wfile.write(self.files[self.path])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_context_is_fetched(daemon: Daemon, site: str) -> None:
    tree = {
        "Dockerfile": "FROM busybox\nCOPY . /app\nRUN ls /app\n",
        "a": "1",
        "secret": "2",
        ".dockerignore": "secret\n",
    }
    _Pages.files = {
        "/app.tar.gz": gzip.compress(context(tree)),
        "/Dockerfile": b"FROM busybox\nRUN echo alone\n",
    }
    answer = build(daemon, b"", remote=f"{site}/app.tar.gz")
    assert "\na\n" in answer.text and "secret" not in answer.text
    assert "alone" in build(daemon, b"", remote=f"{site}/Dockerfile").text
    for remote, sentence in (
        (f"{site}/none.tar", "/none.tar"),
        ("file:///etc/passwd", "expected the URL of"),
    ):
        assert sentence in build(daemon, b"", remote=remote).error


# --- hostile ------------------------------------------------------------------------------


def test_no_link_of_an_image_or_a_context_leads_outside(daemon: Daemon) -> None:
    secret = daemon.base / "secret"
    secret.write_text("host")
    target = daemon.base / "target"
    target.mkdir()
    dockerfile = f"""
FROM busybox AS evil
RUN ln -s {target} /out && ln -s ../../../../../..{target} /up && ln -s {secret} /steal && ln -s /proc/1/root /p
FROM evil
COPY a /out/a
COPY a /up/b
COPY a /steal
COPY --from=evil /steal* /got/
"""
    answer = build(daemon, {"Dockerfile": dockerfile, "a": "evil"})
    assert os.listdir(target) == [] and secret.read_text() == "host"
    assert "host" not in answer.text
    if not answer.error:
        assert output(daemon, answer.image, f"cat {target}/a") == "evil", "within the tree the link leads on"
    through = [File("Dockerfile", b"FROM busybox\nCOPY link/x /x\n"), Symlink("link", str(daemon.base))]
    assert "file not found in build context" in build(daemon, through).error
    fifo = "FROM busybox\nRUN rm -f /etc/passwd && mkfifo /etc/passwd\nCOPY --chown=web a /a\n"
    assert "--chown=web: /etc/passwd or /etc/group" in build(daemon, {"Dockerfile": fifo, "a": ""}).error


def test_a_context_with_too_many_members_is_refused(daemon: Daemon) -> None:
    header = make_layer([File("f", b"")])[:512]

    def endless() -> Iterator[bytes]:
        for _ in range(1100):
            yield header * 500

    answer = daemon.http("POST", "/build", endless(), headers={"Content-Type": "application/x-tar"})
    assert answer.status == 400 and "more than 500000 members" in answer.message


def test_a_bomb_is_refused(daemon: Daemon) -> None:
    import zstandard

    plain = make_layer([File("f", bytes(400 << 20))])
    answer = build(daemon, zstandard.ZstdCompressor().compress(plain))
    assert answer.status == 400 and "bomb" in answer.error


# --- reproducible -------------------------------------------------------------------------


def test_two_builds_with_a_date_give_one_image(daemon: Daemon) -> None:
    def once(mtime: int) -> str:
        files = [
            File(
                "Dockerfile",
                b"FROM busybox\nCOPY a /x/a\nRUN mkdir /d && date > /dev/null && echo 1 > /d/f\n"
                b"WORKDIR /w/x\nENV A=1\n",
            ),
            File("a", b"1", mtime=mtime),
        ]
        return build(daemon, files, nocache=1, buildargs={"SOURCE_DATE_EPOCH": "1500000000"}).image

    first = once(1_700_000_000)
    time.sleep(1.1)
    assert once(1_710_000_000) == first
    config, layers = saved(daemon, first)
    assert config["created"] == "2017-07-14T02:40:00Z"
    assert all(member.mtime <= 1_500_000_000 for layer in layers[1:] for member in layer.values())
    assert {line["created"] for line in config["history"][1:]} == {"2017-07-14T02:40:00Z"}


# --- the cache ----------------------------------------------------------------------------


def test_the_cache_is_shown_and_pruned(daemon: Daemon) -> None:
    build(daemon, SIMPLE)
    cache = daemon.http("GET", "/system/df").json()["BuildCache"]
    assert {entry["Description"] for entry in cache} == {
        "COPY a.txt /a.txt",
        "RUN echo built > /b; cat /a.txt",
    }
    assert daemon.http("POST", '/build/prune?filters={"until":["24h"]}').json()["CachesDeleted"] is None
    assert daemon.http("POST", "/build/prune").json()["CachesDeleted"]
    assert daemon.http("GET", "/system/df").json()["BuildCache"] == []
    assert "Using cache" not in build(daemon, SIMPLE).text


def test_a_prune_goes_by_its_filters(daemon: Daemon) -> None:
    """Cache mounts are things of their own."""
    dockerfile = "FROM busybox\nRUN --mount=type=cache,target=/c,id=kept head -c 100000 /dev/urandom > /c/f\n"
    build(daemon, {"Dockerfile": dockerfile})
    kinds = [entry["Type"] for entry in daemon.http("GET", "/system/df").json()["BuildCache"]]
    assert sorted(kinds) == ["exec.cachemount", "regular"]
    mounts = daemon.data_root / "builds" / "mounts"
    for query, left in (
        ("keep-storage=10000000", 1),
        ('filters={"until":["24h"]}', 1),
        ('filters={"type":["regular"]}', 1),
        ('filters={"id":["nothing"]}', 1),
        ('filters={"type":["exec.cachemount"]}', 0),
    ):
        answer = daemon.http("POST", f"/build/prune?{query}")
        assert answer.status == 200 and len(os.listdir(mounts)) == left, query
    for filters in ('{"parent":["x"]}', '{"type":["odd"]}'):
        assert daemon.http("POST", f"/build/prune?filters={filters}").status == 400


def test_what_was_built_outlives_its_image_and_the_daemon(fresh_daemon: Daemon) -> None:
    first = build(fresh_daemon, SIMPLE, t="app:1")
    assert fresh_daemon.http("DELETE", "/images/app:1").status == 200
    fresh_daemon.kill9()
    fresh_daemon.start()
    again = build(fresh_daemon, SIMPLE, t="app:1")
    assert again.text.count("Using cache") == 2 and again.image == first.image


def test_the_cache_keeps_to_its_size(tmp_path: Path) -> None:
    config = tmp_path / "daemon.json"
    config.write_text('{"builder": {"gc": {"defaultKeepStorage": "3MB"}}}')
    with Daemon("--config-file", str(config)) as daemon:
        daemon.load_image()
        for number in range(3):
            dockerfile = f"FROM busybox\nRUN head -c 2000000 /dev/urandom > /{number}\n"
            build(daemon, {"Dockerfile": dockerfile}, t="app:1")
        left = daemon.http("GET", "/system/df").json()["BuildCache"]
        assert sum(entry["Size"] for entry in left if not entry["Shared"]) <= 3 << 20
        assert any("/2" in entry["Description"] for entry in left), "what was used last stays"


# --- ends ---------------------------------------------------------------------------------


def _runs(daemon: Daemon) -> list[int]:
    """The processes of builds: sleeps with a time of their own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if Path("/proc", entry, "cmdline").read_bytes() == b"sleep\x00731\x00":
                    found.append(int(entry))
            except OSError:
                continue
    return found


def test_a_client_that_leaves_ends_its_build(daemon: Daemon) -> None:
    from tests.daemon import _UnixConnection

    connection = _UnixConnection(daemon.socket_path, 30)
    connection.request("POST", "/build", context({"Dockerfile": "FROM busybox\nRUN sleep 731\n"}))
    response = connection.getresponse()
    eventually(lambda: len(_runs(daemon)) == 1)
    response.close()
    connection.close()
    eventually(lambda: not _runs(daemon))


def test_a_daemon_killed_in_a_build_leaves_nothing(fresh_daemon: Daemon) -> None:
    dockerfile = (
        "FROM busybox\nRUN echo 1 > /1\nRUN --mount=type=secret,id=x --mount=type=tmpfs,target=/t sleep 731\n"
    )
    failed: list[BaseException] = []

    def run() -> None:
        try:
            build(fresh_daemon, {"Dockerfile": dockerfile})
        except Exception as error:
            failed.append(error)

    for _ in range(3):
        thread = threading.Thread(target=run)
        thread.start()
        eventually(lambda: len(_runs(fresh_daemon)) == 1)
        fresh_daemon.kill9()
        thread.join()
        fresh_daemon.start()
        assert not _runs(fresh_daemon)
        assert os.listdir(fresh_daemon.data_root / "containers") == []
        assert os.listdir(fresh_daemon.run_dir / "containers") == []
        assert not (fresh_daemon.run_dir / "builds").exists()
    assert failed
    image = build(fresh_daemon, {"Dockerfile": dockerfile.replace("sleep 731", "true")}).image
    assert output(fresh_daemon, image, "cat /1") == "1\n"


def test_a_daemon_killed_at_any_moment_keeps_its_store_whole(fresh_daemon: Daemon) -> None:
    dockerfile = (
        b"FROM busybox AS a\nCOPY . /src\nRUN ls /src | wc -l > /n; mkdir -p /x/y; touch /x/y/z\n"
        b"RUN --mount=type=cache,target=/c cp /n /c/\nFROM busybox\nWORKDIR /w\nCOPY --from=a /src /s\n"
        b"COPY --from=a /n /n\nRUN --mount=type=bind,from=a,source=/src,target=/b ls /b | wc -l > /m\n"
    )
    files = [File("Dockerfile", dockerfile), *(File(f"f{number}", b"x" * 100) for number in range(1500))]

    def run(number: int) -> None:
        try:
            build(fresh_daemon, files, nocache=number % 2)
        except Exception:
            return  # that is the point

    for number in range(8):
        thread = threading.Thread(target=run, args=(number,))
        thread.start()
        time.sleep(0.05 + 0.17 * number)
        fresh_daemon.kill9()
        thread.join()
        fresh_daemon.start()
        for directory in ("containers", "images/loading"):
            assert os.listdir(fresh_daemon.data_root / directory) == []
        assert os.listdir(fresh_daemon.run_dir / "containers") == []
        assert not fresh_daemon.http("GET", "/cove/v1/images/check?deep=1").json().get("Problems")
    image = build(fresh_daemon, files).image
    assert output(fresh_daemon, image, "cat /n /m; ls /s | wc -l").split() == ["1501"] * 3


def test_a_frozen_client_does_not_fill_the_daemons_memory(daemon: Daemon) -> None:
    """Who doesn't read holds the process back."""
    from tests.daemon import _UnixConnection

    connection = _UnixConnection(daemon.socket_path, 30)
    connection.request("POST", "/build", context({"Dockerfile": "FROM busybox\nRUN yes\n"}))
    time.sleep(1.5)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    connection.close()
    assert resident < 150 << 10, f"{resident >> 10} MiB"
