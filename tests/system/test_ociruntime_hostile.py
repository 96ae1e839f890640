"""The OCI runtime in bad company: odd callers, odd files, hostile containers, and two calls at once."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.oci_support import Box, hierarchies, opened, wait_until


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as made:
        yield made


def nothing_left(box: Box) -> bool:
    """No state but the filters' cache, and no cgroup below the box's own."""
    state = box.state["cove"]
    names = [name for name in os.listdir(state) if name != "~filters"] if state.exists() else []
    below = [
        entry.path
        for hierarchy in hierarchies()
        for entry in os.scandir(hierarchy / box.cgroup)
        if entry.is_dir()
    ]
    return not names and not below


# --- two containers ---------------------------------------------------------------------------------


def test_a_cgroup_with_another_container_is_refused_and_that_one_lives(box: Box) -> None:
    box.configure(["sleep", "1000"])
    assert box.cove("run", "--detach", "one").status == 0
    done = box.cove("create", "two")
    assert done.status == 1 and "cgroup is not empty" in done.error
    assert box.status("cove", "one") == "running"
    assert box.ids("cove") == ["one"]


def test_two_starts_at_once_start_it_once(box: Box) -> None:
    def slow(config: dict[str, Any]) -> None:
        hook = {"path": "/bin/sh", "args": ["sh", "-c", "sleep 1"]}
        note = {"path": "/bin/sh", "args": ["sh", "-c", f"echo started >> {box.bundle}/notes"]}
        config["hooks"] = {"startContainer": [hook], "poststart": [note]}

    box.configure(["sleep", "1000"], slow)
    assert box.cove("create", "one").status == 0
    both = [
        subprocess.Popen(box.argv("cove", "start", "one"), cwd=box.bundle, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [each.communicate(timeout=60)[1] for each in both]
    assert sorted(each.returncode for each in both) == [0, 1], told
    assert (box.bundle / "notes").read_text() == "started\n"
    assert "cannot start" in "".join(told), told


def test_two_creates_of_one_id_make_it_once(box: Box) -> None:
    box.configure(["sleep", "1000"])
    for _ in range(4):
        both = [
            subprocess.Popen(
                box.argv("cove", "create", "one"), cwd=box.bundle, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]  # fmt: skip
        assert sorted(each.wait(60) for each in both) == [0, 1]
        assert box.status("cove", "one") == "created"
        assert box.cove("delete", "--force", "one").status == 0
        assert nothing_left(box)


def test_delete_force_ends_a_create_that_is_under_way(box: Box) -> None:
    def slow(config: dict[str, Any]) -> None:
        config["hooks"] = {
            "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"touch {box.bundle}/there; sleep 5"]}]
        }

    box.configure(["sleep", "1000"], slow)
    child = subprocess.Popen(
        box.argv("cove", "create", "one"), cwd=box.bundle, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until((box.bundle / "there").exists, "the hook runs")
    assert box.status("cove", "one") == "creating"
    assert box.cove("delete", "one").status == 1
    assert box.cove("delete", "--force", "one").status == 0
    box.configure(["sleep", "1000"])
    assert box.cove("create", "one").status == 0
    assert child.wait(60) != 0
    assert box.status("cove", "one") == "created"
    assert box.cove("start", "one").status == 0


# --- odd callers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_closed_streams_of_the_caller_are_dev_null_for_the_process(box: Box, closed: tuple[int, ...]) -> None:
    script = 'for fd in 0 1 2; do all="$all $(readlink /proc/1/fd/$fd)"; done; echo $all > /out'

    def writable(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = False

    box.configure(["sh", "-c", script], writable)
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    argv = box.argv("cove", "run", "one")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *argv], cwd=box.bundle, stdin=subprocess.PIPE,
        capture_output=True, check=False, timeout=60, env=box.environment,
    )  # fmt: skip
    streams = (box.bundle / "rootfs/out").read_text().split()
    assert done.returncode == 0, done.stderr
    for fd in range(3):
        assert (streams[fd] == "/dev/null") == (fd in closed), streams
    assert nothing_left(box)


@pytest.mark.parametrize("limit", [4, 8, 12, 16, 17, 20, 24, 32])
def test_a_tiny_limit_of_open_files_is_an_error_at_worst(box: Box, limit: int) -> None:
    box.configure(["true"])
    argv = box.argv("cove", "run", "one")
    done = subprocess.run(
        argv, cwd=box.bundle, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        env=box.environment, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )  # fmt: skip
    if limit < 12:
        assert done.returncode != 0  # not even Python starts
    else:
        assert done.returncode == 0 or "Traceback" not in done.stderr, done.stderr
    wait_until(lambda: box.cove("delete", "--force", "one").status == 0 and nothing_left(box), "all is gone")


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_callers_umask_gives_nobody_else_the_state(box: Box, umask: int) -> None:
    root = box.bundle.parent / "outer" / "inner"
    box.state["cove"] = root
    box.configure(["sh", "-c", "umask"])
    done = subprocess.run(
        box.argv("cove", "run", "--keep", "one"), cwd=box.bundle, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=60, check=False, preexec_fn=lambda: os.umask(umask),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0022\n"), done.stderr
    for directory in (root.parent, root, root / "one"):
        assert directory.stat().st_mode & 0o777 == 0o700
    assert (root / "one/state.json").stat().st_mode & 0o077 == 0


def test_a_working_directory_that_is_gone_is_an_error(box: Box) -> None:
    box.configure(["true"])
    gone = box.bundle.parent / "gone"
    for arguments in (["--bundle", str(box.bundle)], []):
        gone.mkdir()
        script = 'rmdir "$PWD"; exec "$@"'
        done = subprocess.run(
            ["sh", "-c", script, "sh", *box.argv("cove", "run", *arguments, "one")], cwd=gone,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == (0 if arguments else 1), done.stderr
        assert "Traceback" not in done.stderr
        assert nothing_left(box)


def test_pythons_environment_of_the_caller_changes_nothing(box: Box) -> None:
    box.configure(["true"])
    evil = box.bundle.parent / "evil"
    evil.mkdir()
    for name in ("os", "sitecustomize", "usercustomize", "cove", "msgspec"):
        (evil / f"{name}.py").write_text(f"open({str(evil / 'ran')!r}, 'w')\n")
    (evil / "start.py").write_text(f"open({str(evil / 'ran')!r}, 'w')\n")
    box.environment |= {
        "PYTHONPATH": str(evil), "PYTHONHOME": str(evil), "PYTHONSTARTUP": str(evil / "start.py"),
        "PYTHONINSPECT": "1", "PYTHONUSERBASE": str(evil), "PYTHONPLATLIBDIR": str(evil), "PYTHONMALLOC": "debug",
    }  # fmt: skip
    (box.bundle / "msgspec.py").write_text(f"open({str(evil / 'ran')!r}, 'w')\n")
    assert box.cove("run", "one").status == 0
    assert not (evil / "ran").exists()


def test_hooks_get_no_descriptor_of_the_caller_or_of_the_runtime(box: Box) -> None:
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

    def add(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = False
        config["hooks"] = {}
        for kind in kinds:
            path = f"/{kind}" if kind == "startContainer" else f"{box.bundle}/rootfs/{kind}"
            script = f"for each in /proc/self/fd/*; do readlink $each; done > {path}; echo $$ >> {path}"
            config["hooks"][kind] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]

    box.configure(["sleep", "1000"], add)
    secret = box.bundle.parent / "secret"
    secret.write_text("secret")
    with open(secret) as file:
        for verb in (["create", "one"], ["start", "one"], ["delete", "--force", "one"]):
            done = subprocess.run(
                box.argv("cove", *verb), cwd=box.bundle, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, pass_fds=[file.fileno()], timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0
    for kind in kinds:
        links = (box.bundle / "rootfs" / kind).read_text()
        assert "secret" not in links, (kind, links)
        for word in ("socket:", "pidfd", "cove-init", "/go", "/status", "plan"):
            assert word not in links, (kind, links)


# --- odd files --------------------------------------------------------------------------------------


def test_a_config_that_is_no_file_is_refused(box: Box) -> None:
    config = box.bundle / "config.json"
    os.mkfifo(config)
    begin = time.monotonic()
    for device in (None, "/dev/zero", "/proc/self/mem", "/"):
        if device:
            config.unlink()
            config.symlink_to(device)
        done = box.cove("create", "one")
        assert done.status == 1 and "config.json" in done.error, done.err
        assert nothing_left(box)
    assert time.monotonic() - begin < 30


def test_a_namespace_that_is_a_fifo_is_refused(box: Box) -> None:
    fifo = box.bundle.parent / "fifo"
    os.mkfifo(fifo)

    def join(config: dict[str, Any]) -> None:
        for each in config["linux"]["namespaces"]:
            if each["type"] == "uts":
                each["path"] = str(fifo)
        del config["hostname"]

    box.configure(["true"], join)
    done = box.cove("create", "one")
    assert done.status == 1 and "Traceback" not in done.err, done.err
    assert nothing_left(box)


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": {"a": "x" * 100_000}},
        {"annotations": {"a": "x" * 100_000}, "hooks": {"startContainer": [{"path": "/bin/true"}]}},
        {"annotations": {"a": "x" * 31_000}, "hooks": {"startContainer": [{"path": "/bin/true"}]}},
        {"annotations": {str(n): "y" for n in range(20_000)}},
        {"hostname": "x" * 5000},
        {"root": {"path": "rootfs/../../../../../../etc"}},
        {"root": {"path": "\0"}},
        {"hooks": {"createRuntime": [{"path": "/bin/tr\0ue"}]}},
        {"hooks": {"createRuntime": [{"path": "/bin/true", "timeout": 3_000_000}]}},
        {"hooks": {"createRuntime": [{"path": "/bin/true", "timeout": 2**62}]}},
        {"hooks": {"createContainer": [{"path": "/bin/true", "timeout": 2**62}]}},
        {"hooks": {"createRuntime": [{"path": "/bin/true", "env": ["NOEQUALS", "=x", "A=\0"]}]}},
        {"hooks": {"createRuntime": [{"path": "/bin/true", "args": ["a"] * 100_000}]}},
        {"hooks": {"startContainer": [{"path": "/bin/true", "args": ["true"] + ["a"] * 10_000}]}},
        {"process": {"args": ["true"], "cwd": "/", "env": ["A=" + "x" * 200_000]}},
        {"process": {"args": ["true"] + ["x" * 1000] * 10_000, "cwd": "/"}},
        {"process": {"args": ["true"], "cwd": "/../../proc/self/fd/9"}},
        {"process": {"args": ["true"], "cwd": "/", "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2**64, "hard": 0}]}},
        {"process": {"args": ["true"], "cwd": "/", "user": {"uid": 2**32, "gid": 0}}},
        {"process": {"args": ["true"], "cwd": "/", "user": {"uid": 2**32 - 1, "gid": 0}}},
        {"process": {"args": ["true"], "cwd": "/", "oomScoreAdj": 10**30}},
        {"process": {"args": ["\ud800"], "cwd": "/"}},
        {"mounts": [{"destination": "/proc/../../x", "type": "tmpfs", "source": "x"}]},
        {"mounts": [{"destination": "/" + "d/" * 3000, "type": "tmpfs", "source": "x"}]},
        {"mounts": [{"destination": "/tmp", "type": "tmpfs", "options": ["size=" + "9" * 5000]}]},
        {"mounts": [{"destination": f"/m{n}", "type": "tmpfs"} for n in range(3000)]},
        {"linux": {"cgroupsPath": "/"}},
        {"linux": {"cgroupsPath": "/../.."}},
        {"linux": {"cgroupsPath": "\0"}},
        {"linux": {"sysctl": {"../../../etc/passwd": "1", "kernel/../../x": "2"}}},
        {"linux": {"maskedPaths": ["/" + "x" * 5000, "../..", ""]}},
        {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "\0"}}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)  # fmt: skip
def test_a_hostile_config_gets_one_sentence_or_runs(box: Box, change: dict[str, Any]) -> None:
    box.configure(["true"])
    for key, value in change.items():
        box.config[key] = {**box.config[key], **value} if key == "linux" else value
    (box.bundle / "config.json").write_text(json.dumps(box.config))
    done = box.cove("create", "one")
    assert "Traceback" not in done.err, done.err
    if done.status == 0:
        done = box.cove("start", "one")
        assert done.status == 0 or "too long" in done.error, done.err
        assert box.cove("delete", "--force", "one").status == 0
    else:
        assert done.status == 1 and len(done.error) < 2000
    wait_until(lambda: nothing_left(box), "nothing is left")


def test_a_pid_file_or_log_replaces_or_follows_no_link_into_the_state(box: Box) -> None:
    box.configure(["sleep", "1000"])
    precious, link = box.bundle.parent / "precious", box.bundle.parent / "pid"
    precious.write_text("precious")
    link.symlink_to(precious)
    assert box.cove("create", "--pid-file", str(link), "one").status == 0
    assert precious.read_text() == "precious" and not link.is_symlink()
    assert link.read_text() == str(box.cove("state", "one").json()["pid"])


# --- consoles ---------------------------------------------------------------------------------------


def with_terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True


def test_a_console_socket_that_nobody_serves_is_an_error_in_time(box: Box, tmp_path: Path) -> None:
    box.configure(["sleep", "1000"], with_terminal)
    path = str(tmp_path / "console")
    begin = time.monotonic()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert box.cove("create", "--console-socket", path, "one").status == 1  # it doesn't listen
        assert nothing_left(box)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)  # the queue is full, nobody accepts
            done = box.cove("create", "--console-socket", path, "one")
            assert done.status == 1 and "console-socket" in done.error, done.err
    assert time.monotonic() - begin < 30
    assert nothing_left(box)


def test_a_console_socket_that_hangs_up_is_an_error_or_a_lost_terminal(box: Box, tmp_path: Path) -> None:
    box.configure(["sleep", "1000"], with_terminal)
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        done = box.cove("create", "--console-socket", path, "one")
        thread.join()
    assert "Traceback" not in done.err
    if done.status:
        assert nothing_left(box)
    else:
        assert box.cove("delete", "--force", "one").status == 0


def test_an_exec_that_cant_tell_its_pid_leaves_no_process(box: Box) -> None:
    box.configure(["sleep", "1000"])
    assert box.cove("run", "--detach", "one").status == 0
    done = box.cove("exec", "--detach", "--pid-file", "/nosuch/pid", "one", "sleep", "1001")
    assert done.status == 255 and "/nosuch/" in done.error, done.err
    wait_until(lambda: len(box.cove("ps", "--format", "json", "one").json()) == 1, "it has ended")


# --- hostile containers -----------------------------------------------------------------------------


def test_exec_reads_nothing_of_the_containers_that_could_block_it(box: Box) -> None:
    def writable(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = False

    box.configure(["sleep", "1000"], writable)
    for name in ("passwd", "group"):
        path = box.bundle / "rootfs/etc" / name
        path.unlink()
        os.mkfifo(path)
    assert box.cove("run", "--detach", "one").status == 0
    done = box.cove("exec", "one", "sh", "-c", "echo $HOME")
    assert done.status == 0, done.err


def test_a_container_that_froze_a_cgroup_of_its_own_is_deleted(box: Box) -> None:
    freezer = Path("/sys/fs/cgroup/freezer")
    if not freezer.is_dir():
        pytest.skip("freezes by the v1 controller, and this host has none mounted")
    box.configure(["sh", "-c", "sleep 1001 & sleep 1000"])
    assert box.cove("run", "--detach", "one").status == 0
    inner = freezer / box.cgroup / "box/inner/most"
    inner.mkdir(parents=True)
    procs = freezer / box.cgroup / "box/cgroup.procs"
    wait_until(lambda: len(procs.read_text().split()) > 1, "both run")
    (inner / "cgroup.procs").write_text(procs.read_text().split()[-1])
    (inner / "freezer.state").write_text("FROZEN")
    wait_until(lambda: (inner / "freezer.state").read_text() == "FROZEN\n", "it is frozen")
    begin = time.monotonic()
    assert box.cove("delete", "--force", "one").status == 0
    assert time.monotonic() - begin < 8
    assert nothing_left(box)


def test_a_paused_container_is_deleted_by_force(box: Box) -> None:
    box.configure(["sh", "-c", "sleep 1001 & sleep 1000"])
    assert box.cove("run", "--detach", "one").status == 0
    assert box.cove("pause", "one").status == 0
    assert box.cove("start", "one").status == 1
    assert box.cove("delete", "one").status == 1
    assert box.cove("delete", "--force", "one").status == 0
    assert nothing_left(box)


def test_start_ends_with_the_process_whoever_holds_its_fifo(box: Box) -> None:
    def slow(config: dict[str, Any]) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}

    box.configure(["true"], slow)
    assert box.cove("create", "one").status == 0
    pid = box.cove("state", "one").json()["pid"]
    holder = os.open(box.state["cove"] / "one/status", os.O_RDWR)
    try:
        child = subprocess.Popen(box.argv("cove", "start", "one"), stderr=subprocess.PIPE, text=True)
        wait_until(lambda: bool(Path(f"/proc/{pid}/task/{pid}/children").read_text()), "the hook runs")
        os.kill(pid, signal.SIGKILL)
        _, err = child.communicate(timeout=20)
        assert child.returncode == 1, err
    finally:
        os.close(holder)
    assert box.cove("delete", "--force", "one").status == 0


def test_a_kill_reaches_nobody_who_has_the_pid_by_now(box: Box) -> None:
    box.configure(["sleep", "1000"])
    assert box.cove("run", "--detach", "one").status == 0
    state = box.state["cove"] / "one/state.json"
    data = json.loads(state.read_text())
    os.kill(data["pid"], signal.SIGKILL)
    wait_until(lambda: box.status("cove", "one") == "stopped", "it ends")
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        state.write_text(json.dumps({**data, "pid": innocent.pid}))  # as if it had been given the pid
        assert box.cove("kill", "one", "KILL").status == 1
        assert box.status("cove", "one") == "stopped"
        assert box.cove("delete", "--force", "one").status == 0
        assert innocent.poll() is None
        innocent.kill()


def test_kill_all_catches_a_fork_bomb(box: Box) -> None:
    def shared(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [
            each for each in config["linux"]["namespaces"] if each["type"] != "pid"
        ]
        config["linux"]["resources"]["pids"] = {"limit": 64}

    # each hops on to a new process all the time
    script = "hop() { hop & exit; }; hop & hop & hop & hop & exec sleep 1000"
    box.configure(["sh", "-c", script], shared)
    assert box.cove("run", "--detach", "one").status == 0
    time.sleep(0.5)  # let it grow
    assert box.cove("kill", "one", "KILL").status == 0
    wait_until(lambda: box.status("cove", "one") == "stopped", "it ends")
    assert box.cove("delete", "one").status == 0
    assert nothing_left(box)


def test_a_create_without_cgroups_that_fails_at_its_end_leaves_no_process(box: Box) -> None:
    box.configure(["sleep", "1000"])
    box.state["cove"] = box.bundle.parent / "own"
    for directory in (box.bundle, *box.bundle.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    rootless = subprocess.run(
        [*box.argv("cove", "spec", "--rootless", "--bundle", str(box.bundle.parent))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert rootless.returncode == 0, rootless.stderr
    config = json.loads((box.bundle.parent / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["sleep", "1000"]}
    for kind in ("uid", "gid"):
        config["linux"][f"{kind}Mappings"] = [{"containerID": 0, "hostID": 65534, "size": 1}]
    (box.bundle / "config.json").write_text(json.dumps(config))
    box.state["cove"].mkdir()
    os.chown(box.state["cove"], 65534, 65534)
    box.prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = box.cove("create", "--pid-file", "/nosuch/pid", box.cgroup)
    assert done.status == 1 and "/nosuch/" in done.error, done.err
    assert os.listdir(box.state["cove"]) == []
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert [line for line in lines if box.cgroup.encode() + b"\0" in line] == []


# --- ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["~filters", "~", "a/b", "..", ".", "a\nb", "a b", "é", "x" * 2000, "a\\b", "%s"]
)
@pytest.mark.parametrize("verb", ["create", "delete", "state", "kill"])
def test_a_name_that_is_no_id_touches_nothing(box: Box, name: str, verb: str) -> None:
    box.configure(["true"])
    box.state["cove"].mkdir()
    (box.state["cove"] / "~filters").mkdir()
    (box.state["cove"] / "~filters/one").write_text("filter")
    done = box.cove(verb, *(["--force"] if verb == "delete" else []), name)
    assert done.status == 1 and "Traceback" not in done.err
    assert (box.state["cove"] / "~filters/one").read_text() == "filter"
    assert os.listdir(box.state["cove"]) == ["~filters"]
