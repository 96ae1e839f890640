"""cove build: what is sent of a directory, how it shows itself, secrets, and what its options do."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import eventually
from tests.buildkit import context, output, saved
from tests.daemon import ROOT, Daemon


@pytest.fixture(autouse=True)
def cleared(daemon: Daemon) -> Iterator[None]:
    yield
    for found in daemon.http("GET", "/images/json").json():
        if found["RepoTags"] != ["busybox:latest"]:
            daemon.http("DELETE", f"/images/{found['Id']}?force=1")
    daemon.http("POST", "/build/prune")
    eventually(lambda: os.listdir(daemon.data_root / "images" / "loading") == [])
    assert not (daemon.run_dir / "builds").exists() or os.listdir(daemon.run_dir / "builds") == []


def cove(
    daemon: Daemon, *arguments: str, text: bytes = b"", status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(ROOT / "bin" / "cove"), *arguments],
        input=text,
        env={**os.environ, "COVE_HOST": daemon.host, "COVE_RUN_DIR": str(daemon.run_dir), **environment},
        capture_output=True,
        timeout=100,
    )
    shown = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
    assert done.returncode == status, shown.stdout + shown.stderr
    return shown


def written(directory: Path, files: dict[str, str]) -> Path:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return directory


def events(daemon: Daemon, *arguments: str, **more: Any) -> list[dict[str, Any]]:
    done = cove(daemon, "build", "--progress", "json", *arguments, **more)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_what_changed_is_sent(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path, {"Dockerfile": "FROM busybox\nCOPY . /app\n", "a": "1", "sub/b": "2"})
    assert "sent 3 files" in cove(daemon, "build", "-t", "app:1", str(root)).stderr
    again = cove(daemon, "build", "-t", "app:1", str(root)).stderr
    assert "sent" not in again and "CACHED" in again
    written(root, {"sub/b": "3"})
    changed = cove(daemon, "build", "-t", "app:1", str(root)).stderr
    assert "sent 1 files, 1B" in changed
    assert output(daemon, "app:1", "cat /app/a /app/sub/b") == "13"
    (root / "sub" / "b").unlink()
    os.rename(root / "a", root / "sub" / "a")
    cove(daemon, "build", "-t", "app:1", str(root))
    assert output(daemon, "app:1", "cd /app && find . -type f | sort") == "./Dockerfile\n./sub/a\n"


def test_a_file_that_was_just_changed_is_looked_at_again(daemon: Daemon, tmp_path: Path) -> None:
    """Its size and its times may stay the same when it changes once more in the same moment."""
    root = written(tmp_path, {"Dockerfile": "FROM busybox\nCOPY a /a\n"})
    (root / "a").write_text("1")
    cove(daemon, "build", "-q", "-t", "app:1", str(root))
    assert "sent 1 files" in cove(daemon, "build", str(root)).stderr


def test_dockerignore_keeps_files_at_home(daemon: Daemon, tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "Dockerfile": "FROM busybox\nCOPY . /app\n",
            ".dockerignore": "*.log\nsecret\n!keep.log\nnode_modules\n",
            "a.log": "",
            "keep.log": "",
            "secret/x": "",
            "node_modules/y/z": "",
            "b": "",
        },
    )
    cove(daemon, "build", "-t", "app:1", str(root))
    found = output(daemon, "app:1", "cd /app && find . -type f | sort").split()
    assert found == ["./.dockerignore", "./Dockerfile", "./b", "./keep.log"]
    written(root, {"other.Dockerfile": "FROM busybox\nCOPY . /app\n", "other.Dockerfile.dockerignore": "b\n"})
    cove(daemon, "build", "-t", "app:2", "-f", str(root / "other.Dockerfile"), str(root))
    assert "./a.log" in output(daemon, "app:2", "cd /app && find . -type f").split()


def test_links_and_hard_links_are_kept(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path, {"Dockerfile": "FROM busybox\nCOPY . /app/\n", "a": "1", "run": "#!/bin/sh\n"})
    os.link(root / "a", root / "b")
    os.symlink("a", root / "link")
    os.symlink("/etc", root / "absolute")
    os.chmod(root / "run", 0o755)
    cove(daemon, "build", "-t", "app:1", str(root))
    shown = output(
        daemon,
        "app:1",
        "cd /app; stat -c '%h' a; readlink link; readlink absolute; stat -c '%a %u' run; ls -l absolute/..",
    )
    assert shown.startswith("2\na\n/etc\n755 0\n")


def test_a_failure_shows_the_step_its_output_and_its_line(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path, {"Dockerfile": "FROM busybox\n\nRUN echo almost && \\\n  exit 7\n"})
    done = cove(daemon, "build", str(root), status=1)
    assert "> [stage-0 2/2] RUN echo almost &&" in done.stderr
    assert "\nalmost\n------\n" in done.stderr and "Dockerfile:3\n" in done.stderr
    assert "returned a non-zero code: 7" in done.stderr
    wrong = cove(daemon, "build", "-f", "-", str(root), text=b"FROM busybox\nRUM x\n", status=1)
    assert "did you mean RUN?" in wrong.stderr


def test_a_secret_is_there_while_it_is_needed_and_nowhere_after(daemon: Daemon, tmp_path: Path) -> None:
    dockerfile = """FROM busybox
RUN --mount=type=secret,id=token cat /run/secrets/token > /dev/null; stat -c '%a %s' /run/secrets/token
RUN --mount=type=secret,id=token,env=TOKEN,target=/t test ${#TOKEN} = 11 && cmp -s /t /t
RUN --mount=type=secret,id=none echo "optional"; ls /run/secrets 2>&1 || true
"""
    root = written(tmp_path / "c", {"Dockerfile": dockerfile})
    written(tmp_path, {"token": "sesame-open"})
    options = ("--secret", f"id=token,src={tmp_path / 'token'}", "-t", "app:1", str(root))
    done = cove(daemon, "build", *options)
    assert "400 11" in done.stderr
    for path in daemon.base.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"sesame-open" not in path.read_bytes(), path
    assert "sesame" not in daemon.log_text()
    assert b"sesame" not in daemon.http("GET", "/images/app:1/get").body
    _, layers = saved(daemon, "app:1")
    assert all(not layer for layer in layers[1:]), "nor the places where it was mounted"
    written(tmp_path, {"token": "sesame-shut"})
    again = cove(daemon, "build", *options).stderr
    assert again.count("CACHED") == 3, "what a secret is doesn't count"
    needed = b"FROM busybox\nRUN --mount=type=secret,id=other,required=true true\n"
    missing = cove(daemon, "build", "-", text=needed, status=1)
    assert "--secret id=other,src=FILE" in missing.stderr


def test_what_the_options_write(daemon: Daemon, tmp_path: Path) -> None:
    root = written(
        tmp_path / "c",
        {
            "Dockerfile": "FROM busybox AS a\nARG X=0\nRUN echo $X > /x\nFROM a\nRUN exit 9\n",
            "more/f": "named",
        },
    )
    iid, meta = tmp_path / "iid", tmp_path / "meta"
    quiet = cove(
        daemon, "build", "-q", "--target", "a", "--build-arg", "X=5", "--label", "l=1", "--iidfile", str(iid),
        "--metadata-file", str(meta), "-t", "app:1", "-t", "app:2", str(root),
    )  # fmt: skip
    image = quiet.stdout.strip()
    assert iid.read_text() == image and json.loads(meta.read_text())["image.name"] == "app:1,app:2"
    found = daemon.http("GET", "/images/app:2/json").json()
    assert found["Id"] == image and found["Config"]["Labels"] == {"l": "1"}
    assert output(daemon, image, "cat /x") == "5\n"
    text = b"FROM busybox\nCOPY --from=more f /f\nRUN getent hosts there || grep there /etc/hosts\n"
    shown = cove(
        daemon, "build", "--build-context", f"more={root / 'more'}", "--add-host", "there:10.9.8.7",
        "--network", "none", "-t", "app:3", "-", text=text,
    )  # fmt: skip
    assert "10.9.8.7" in shown.stderr
    assert output(daemon, "app:3", "cat /f") == "named"


def test_what_was_built_is_written_out(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path / "c", {"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/f": "made\n"})
    cove(daemon, "build", "-o", str(tmp_path / "out"), str(root))
    assert (tmp_path / "out" / "d" / "f").read_text() == "made\n"
    cove(daemon, "build", "--output", f"type=tar,dest={tmp_path / 'files.tar'}", str(root))
    with tarfile.open(tmp_path / "files.tar") as archive:
        assert "d/f" in [name.removeprefix("./") for name in archive.getnames()]
    cove(daemon, "build", "-t", "app:1", "--output", f"type=oci,dest={tmp_path / 'image.tar'}", str(root))
    with tarfile.open(tmp_path / "image.tar") as archive:
        assert {"oci-layout", "index.json", "manifest.json"} <= set(archive.getnames())
    assert daemon.http("GET", "/containers/json?all=1").json() == []
    assert "expected type=" in cove(daemon, "build", "-o", "type=x", str(root), status=125).stderr


def test_a_check_says_what_there_is_to_say(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path, {"Dockerfile": "FROM busybox as x\nMAINTAINER me\n"})
    done = cove(daemon, "build", "--check", str(root), status=1)
    assert "WARNING: FromAsCasing" in done.stdout and "MaintainerDeprecated" in done.stdout
    written(root, {"Dockerfile": "FROM busybox\n"})
    assert "no warnings" in cove(daemon, "build", "--check", str(root)).stdout


def test_an_archive_is_built_from_standard_input(daemon: Daemon) -> None:
    data = context({"Dockerfile": "FROM busybox\nRUN echo out; echo err >&2\n"})
    shown = cove(daemon, "build", "-t", "app:1", "-", text=gzip.compress(data)).stdout
    assert "\nout\n" in shown and "\nerr\n" in shown and "\x1b" not in shown and "x1b" not in shown
    failed = cove(daemon, "build", "-", text=context({"Dockerfile": "FROM busybox\nRUN exit 3\n"}), status=1)
    assert "returned a non-zero code: 3" in failed.stderr


def test_events_are_json(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo hi\n"})
    lines = events(daemon, str(root))
    assert [step["text"] for step in lines[0]["steps"]] == ["FROM busybox", "RUN echo hi"]
    assert lines[-1]["image"].startswith("sha256:")


def test_the_cache_is_listed_and_pruned(daemon: Daemon, tmp_path: Path) -> None:
    root = written(tmp_path, {"Dockerfile": "FROM busybox\nRUN --mount=type=cache,target=/c echo x > /c/f\n"})
    cove(daemon, "build", str(root))
    assert "RUN --mount=type=cache" in cove(daemon, "builder", "ls").stdout
    assert os.listdir(daemon.data_root / "builds" / "contexts")
    assert "Total reclaimed space" in cove(daemon, "builder", "prune", "-f").stdout
    assert os.listdir(daemon.data_root / "builds" / "mounts") == []
    assert os.listdir(daemon.data_root / "builds" / "contexts") == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build",), "expected 1 argument"),
        (("build", "/nowhere"), "no such directory"),
        (("build", "--progress", "loud", "."), "expected one of auto"),
        (("build", "--secret", "src=x", "-"), "an id is needed"),
        (("build", "--secret", "id=x,src=/nowhere", "-"), "No such file"),
        (("build", "--build-context", "x", "-"), "expected NAME=PATH"),
        (
            ("build", "--secret", "id=x,src=/etc/hosts", "http://127.0.0.1:1/x.tar"),
            "works when a directory is built",
        ),
    ],
)
def test_a_wrong_command_line_says_what_would_work(
    daemon: Daemon, arguments: tuple[str, ...], sentence: str
) -> None:
    done = cove(daemon, *arguments, status=125)
    assert sentence in done.stderr


def test_a_listing_that_leads_outside_is_refused(daemon: Daemon) -> None:
    row = [b"x", b"f", b"644", b"1", b"1", b"s", b"", b""]
    for place, value, sentence in (
        (0, b"../x", "leads outside"),
        (0, b"/x", "leads outside"),
        (1, b"c", "can't be read"),
        (2, b"9", "can't be read"),
        (3, b"-5", "leads outside"),
        (3, b"%d" % (1 << 60), "no space left"),
        (7, b"\0", "cut off"),
    ):
        listing = b"".join(field + b"\0" for field in (*row[:place], value, *row[place + 1 :]))
        answer = daemon.http("POST", "/cove/v1/build/context?key=0123456789abcdef", listing)
        assert answer.status in (400, 500) and sentence in answer.message
    assert daemon.http("POST", "/cove/v1/build/context?key=../../x", b"").status == 400
    assert daemon.http("POST", "/cove/v1/build/context/contents?id=x", b"").status == 404


def test_contents_that_are_cut_off_leave_nothing(daemon: Daemon) -> None:
    key = "fedcba9876543210"
    listing = b"x f 644 5 1 s  ".replace(b" ", b"\0") + b"\0"
    planned = daemon.http("POST", f"/cove/v1/build/context?key={key}", listing).json()
    assert planned["Missing"] == [0]
    path = f"/cove/v1/build/context/contents?id={planned['Id']}"
    answer = daemon.http("POST", path, b"123")
    assert answer.status == 400 and "cut off" in answer.message
    assert os.listdir(daemon.data_root / "builds" / "contexts" / key) == []
    assert daemon.http("POST", path, b"12345").status == 404
