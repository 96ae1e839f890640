"""What bin/cove-runtime does by itself: hooks, terminals, namespaces, descriptors, and cleaning up after a kill -9."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.oci_support import BOUND_S, Box, opened, wait_until


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as made:
        yield made


def cgroup_directories(box: Box) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{box.cgroup}/*") if path.is_dir()]


# --- hooks ------------------------------------------------------------------------------------------


KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def add_hooks(box: Box, config: dict[str, Any], failing: str = "", timeout: int | None = None) -> Path:
    """Each hook notes its kind and what it got on standard input; `failing` ends with 1."""
    notes = box.bundle / "rootfs/notes"
    notes.mkdir(exist_ok=True, mode=0o777)
    config["root"]["readonly"] = False
    config["hooks"] = {}
    for kind in KINDS:
        inside = kind == "startContainer"
        directory = "/notes" if inside else str(notes)
        shell = "/bin/sh"
        script = f"cat > {directory}/{kind}; echo {kind} >> {directory}/order"
        script += "; echo sorry >&2; exit 1" if kind == failing else ""
        hook: dict[str, Any] = {"path": shell, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}
        if timeout is not None:
            hook["timeout"] = timeout
        config["hooks"][kind] = [hook]
    return notes


def test_hooks_run_in_the_order_of_the_specification_with_the_state_on_their_input(box: Box) -> None:
    box.configure(["sleep", "1000"], lambda config: add_hooks(box, config, timeout=30))
    notes = box.bundle / "rootfs/notes"
    assert box.cove("create", "one").status == 0
    assert (notes / "order").read_text().split() == list(KINDS[:3])
    assert box.cove("start", "one").status == 0
    pid = box.cove("state", "one").json()["pid"]
    assert box.cove("delete", "--force", "one").status == 0
    assert (notes / "order").read_text().split() == list(KINDS)
    states = {kind: json.loads((notes / kind).read_text()) for kind in KINDS}
    told = [states[kind]["status"] for kind in KINDS]
    assert told == ["created", "creating", "creating", "created", "running", "stopped"]
    for kind, state in states.items():
        assert (state["id"], state["bundle"]) == ("one", str(box.bundle))
        assert state.get("pid") == (None if kind == "poststop" else pid)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_hook_that_fails_ends_the_container(box: Box, kind: str) -> None:
    box.configure(["sleep", "1000"], lambda config: add_hooks(box, config, failing=kind))
    done = box.cove("create", "one")
    if kind == "startContainer":
        assert done.status == 0
        done = box.cove("start", "one")
        assert box.status("cove", "one") == "stopped"
        assert box.cove("delete", "one").status == 0
    assert done.status == 1 and "hook" in done.error
    assert box.ids("cove") == [] and cgroup_directories(box) == []
    assert (box.bundle / "rootfs/notes/order").read_text().split()[-1] == "poststop"


def test_a_poststart_hook_that_fails_ends_what_runs_already(box: Box) -> None:
    """Since 1.3; runc always did so."""
    box.configure(["sleep", "1000"], lambda config: add_hooks(box, config, failing="poststart"))
    words = "error running poststart hook #0: /bin/sh: exit status 1, output: sorry"
    done = box.cove("run", "--detach", "one")
    assert done.status == 1 and words in done.error
    assert box.ids("cove") == [] and cgroup_directories(box) == []
    assert box.cove("create", "one").status == 0
    done = box.cove("start", "one")
    assert done.status == 1 and words in done.error
    wait_until(lambda: box.status("cove", "one") == "stopped", "its end")
    assert box.cove("delete", "one").status == 0
    assert (box.bundle / "rootfs/notes/order").read_text().split()[-1] == "poststop"


def test_what_fails_of_a_poststop_hook_is_a_warning(box: Box) -> None:
    box.configure(["true"], lambda config: add_hooks(box, config, failing="poststop"))
    done = box.cove("run", "one")
    assert done.status == 0
    assert "error running poststop hook #0: /bin/sh: exit status 1, output: sorry" in done.err


def test_a_hook_that_takes_too_long_is_killed(box: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}

    box.configure(["true"], change)
    begin = time.monotonic()
    done = box.cove("run", "one")
    assert done.status == 1 and "did not end within 1 s" in done.error
    assert time.monotonic() - begin < 30
    assert box.ids("cove") == []


# --- the process ------------------------------------------------------------------------------------


def test_a_created_process_has_its_rights_and_its_parent_already(box: Box) -> None:
    box.configure(["sleep", "1000"])
    pid_file = box.bundle.parent / "pid"
    assert box.cove("create", "--pid-file", str(pid_file), "one").status == 0
    pid = int(pid_file.read_text())
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "\t" in line
    )
    assert int(status["CapEff"], 16) == (1 << 29 | 1 << 5 | 1 << 10) and status["NoNewPrivs"] == "1"
    assert sorted(os.listdir(f"/proc/{pid}/fd"), key=int)[:3] == ["0", "1", "2"]
    names = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")[3:]}
    assert all(str(box.state["cove"]) in name for name in names), names


def test_a_detached_process_becomes_the_child_of_the_nearest_subreaper(box: Box) -> None:
    """As containerd's shim relies on."""
    box.configure(["sleep", "1000"])
    script = (
        "import ctypes, os, subprocess, sys\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        "subprocess.run(sys.argv[2:], check=True)\n"
        "pid = int(open(sys.argv[1]).read())\n"
        "print(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1] == str(os.getpid()))\n"
        "os.kill(pid, 9)\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    for verb in (["create"], ["exec", "--detach"]):
        pid_file = str(box.bundle.parent / verb[0])
        argv = box.argv(
            "cove", *verb, "--pid-file", pid_file, "one", *(["sleep", "1000"] if len(verb) > 1 else [])
        )
        done = subprocess.run(
            ["python3", "-c", script, pid_file, *argv], cwd=box.bundle, capture_output=True, text=True,
            timeout=BOUND_S, env=box.environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.stdout.split() == ["True", "9"], done.stderr
        if verb == ["create"]:
            box.cove("delete", "--force", "one")
            assert box.cove("run", "--detach", "one").status == 0


def test_signals_to_a_foreground_run_reach_the_process(box: Box) -> None:
    box.configure(["sh", "-c", "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.05; done"])
    with subprocess.Popen(
        box.argv("cove", "run", "one"), cwd=box.bundle, stdout=subprocess.PIPE, text=True, env=box.environment
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGUSR1)
        assert child.stdout.readline() == "got it\n"
        assert child.wait(BOUND_S) == 9
    assert box.ids("cove") == []


def test_descriptors_are_passed_on(box: Box, tmp_path: Path) -> None:
    box.configure(["sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd | wc -l; echo $LISTEN_FDS $LISTEN_PID"])
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name}\n")
    call = " ".join(box.argv("cove", "run", "--preserve-fds", "1", "one"))
    script = f"export LISTEN_FDS=1 LISTEN_PID=$$; exec {call} 3<{tmp_path}/a 4<{tmp_path}/b"
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=box.bundle,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        env=box.environment,
    )
    # 0, 1, 2, the two, and the directory that ls reads
    assert done.stdout.split() == ["a", "b", "6", "1", "1"], done.stderr
    refused = box.cove("run", "--preserve-fds", "2", "one")
    assert refused.status == 1 and "descriptor 3 isn't open" in refused.error


def test_run_detached_and_keep(box: Box) -> None:
    box.configure(["sh", "-c", "exit 3"])
    assert box.cove("run", "--keep", "one").status == 3
    assert box.status("cove", "one") == "stopped"
    assert box.cove("delete", "one").status == 0


# --- exec -------------------------------------------------------------------------------------------


def test_exec_joins_everything_and_takes_its_flags(box: Box, tmp_path: Path) -> None:
    box.configure(["sleep", "1000"])
    assert box.cove("run", "--detach", "one").status == 0
    pid = box.cove("state", "one").json()["pid"]
    script = "id -u; id -g; pwd; echo $GREETING; hostname; readlink /proc/self/ns/uts; grep -c box /proc/self/cgroup"
    flags = ["--user", "12:34", "--cwd", "/tmp", "--env", "GREETING=hello", "--additional-gids", "56"]
    out = box.cove("exec", *flags, "one", "sh", "-c", script).out.split()
    assert out[:6] == ["12", "34", "/tmp", "hello", "box", os.readlink(f"/proc/{pid}/ns/uts")]
    assert int(out[6]) >= 1
    file = tmp_path / "process.json"
    file.write_text(
        json.dumps({"args": ["sh", "-c", "echo $X; exit 4"], "cwd": "/", "env": ["PATH=/bin", "X=y"]})
    )
    done = box.cove("exec", "--process", str(file), "one")
    assert (done.status, done.out) == (4, "y\n")
    assert box.cove("exec", "one", "nosuch").status == 255
    assert box.cove("exec", "--user", "root", "one", "id").status == 255


def test_update_holds_and_is_remembered(box: Box) -> None:
    box.configure(["sleep", "1000"])
    assert box.cove("run", "--detach", "one").status == 0
    assert box.cove("update", "--memory", "64m", "--pids-limit", "33", "one").status == 0
    resources = json.dumps({"cpu": {"quota": 50000, "period": 100000}})
    assert box.cove("update", "--resources", "-", "one", stdin=resources).status == 0
    found = {
        path.name: path.read_text().strip()
        for path in Path("/sys/fs/cgroup").glob(f"*/{box.cgroup}/box/*.max")
    }
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        v1 = Path("/sys/fs/cgroup")
        assert (v1 / f"memory/{box.cgroup}/box/memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
        assert (v1 / f"cpu/{box.cgroup}/box/cpu.cfs_quota_us").read_text() == "50000\n"
        assert found["pids.max"] == "33"
    stats = box.cove("events", "--stats", "one").json()
    assert stats["type"] == "stats" and stats["data"]["pids"] == {"current": 1, "limit": 33}
    assert stats["data"]["memory"]["usage"]["limit"] == 64 << 20
    assert box.cove("update", "--memory", "many", "one").status == 1


# --- terminals --------------------------------------------------------------------------------------


def with_terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True
    config["process"]["consoleSize"] = {"height": 25, "width": 81}


def test_a_console_socket_gets_the_terminal(box: Box) -> None:
    box.configure(["sh", "-c", "tty; stty size; read line; echo got $line"], with_terminal)
    path = str(box.bundle.parent / "console.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(BOUND_S)
        assert box.cove("create", "--console-socket", path, "one").status == 0
        peer = listener.accept()[0]
        with peer:
            name, descriptors, _, _ = socket.recv_fds(peer, 4096, 1)
    assert name.startswith(b"/dev/pt")
    assert box.cove("start", "one").status == 0
    master = descriptors[0]
    assert read_until(master, b"25 81\r\n").startswith(b"/dev/pts/0\r\n")
    os.write(master, b"typed\n")
    assert b"got typed\r\n" in read_until(master, b"got typed\r\n")
    os.close(master)


def test_a_foreground_run_bridges_the_callers_terminal(box: Box) -> None:
    box.configure(["sh", "-c", "stty size; read line; echo got $line; read x"], with_terminal)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        box.argv("cove", "run", "one"),
        cwd=box.bundle,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=box.environment,
    ) as child:
        try:
            assert b"40 132\r\n" in read_until(ours, b"40 132\r\n")
            os.write(ours, b"typed\r")
            assert b"got typed\r\n" in read_until(ours, b"got typed\r\n")

            def interrupted() -> bool:
                os.write(
                    ours, b"\x03"
                )  # the container's terminal makes a signal of it, which a shell may miss
                return child.poll() is not None

            wait_until(interrupted, "the shell is interrupted")
            assert child.returncode == 130
        finally:
            child.kill()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def read_until(descriptor: int, end: bytes) -> bytes:
    data = b""
    deadline = time.monotonic() + BOUND_S
    while end not in data:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], data
        data += os.read(descriptor, 4096)
    return data


@pytest.mark.parametrize(
    ("flags", "terminal", "words"),
    [
        ([], True, "cannot allocate tty if cove-runtime will detach without setting console socket"),
        (
            ["--console-socket", "/nowhere"],
            False,
            "cannot use console socket if cove-runtime will not detach",
        ),
        (["--console-socket", "/nowhere"], True, "--console-socket /nowhere: no such file or directory"),
    ],
)
def test_a_terminal_without_a_socket_is_refused(
    box: Box, flags: list[str], terminal: bool, words: str
) -> None:
    box.configure(["true"], with_terminal if terminal else None)
    done = box.cove("create", *flags, "one")
    assert done.status == 1 and words in done.error
    assert box.ids("cove") == [] and cgroup_directories(box) == []


# --- namespaces -------------------------------------------------------------------------------------


def with_user_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]


def test_a_user_namespace_gets_its_maps(box: Box) -> None:
    for directory in (box.bundle, *box.bundle.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    box.configure(["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; id -u; echo > /dev/null && echo written"],
                  with_user_namespace)  # fmt: skip
    done = box.cove("run", "one")
    assert done.out.split() == ["0", "100000", "65536", "0", "200000", "65536", "0", "written"], done.err
    box.configure(["sleep", "1000"], with_user_namespace)
    assert box.cove("run", "--detach", "one").status == 0
    assert box.cove("exec", "one", "sh", "-c", "cat /proc/self/uid_map; id -u").out.split() == [
        "0",
        "100000",
        "65536",
        "0",
    ]


def test_an_ordinary_user_runs_a_container_without_a_cgroup(box: Box) -> None:
    nobody = 65534
    for directory in (box.bundle.parent, *box.bundle.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    for directory, _, files in os.walk(box.bundle.parent):
        for path in (directory, *(os.path.join(directory, file) for file in files)):
            os.chown(path, nobody, nobody, follow_symlinks=False)
    box.prefix = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    assert box.cove("spec", "--rootless").status == 0
    config = json.loads((box.bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["sleep", "1000"]}
    (box.bundle / "config.json").write_text(json.dumps(config))
    assert box.cove("run", "--detach", "one").status == 0
    out = box.cove(
        "exec", "one", "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/setgroups"
    ).out.split()
    assert out == ["0", "0", str(nobody), "1", "deny"]
    assert box.cove("list", "-f", "json").json()[0]["owner"] == "nobody"
    done = box.cove("pause", "one")
    assert done.status == 1 and "has no cgroup" in done.error
    assert box.cove("kill", "one", "KILL").status == 0
    wait_until(lambda: box.status("cove", "one") == "stopped", "its end")
    assert box.cove("delete", "one").status == 0
    config["linux"]["resources"] = {"memory": {"limit": 1 << 26}}
    (box.bundle / "config.json").write_text(json.dumps(config))
    done = box.cove("run", "two")
    assert done.status == 1 and "linux.resources.memory.limit: this user can't make cgroups" in done.error


# --- what is left -----------------------------------------------------------------------------------


def test_delete_force_clears_up_after_a_kill_at_any_moment(box: Box) -> None:
    box.configure(["sleep", "1000"])
    for step in range(24):
        child = subprocess.Popen(
            box.argv("cove", "create", "one"), cwd=box.bundle, env=box.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(0.02 + 0.005 * step)  # the moments, not a wait
        child.kill()
        child.wait()
        wait_until(
            lambda: box.cove("delete", "--force", "one").status == 0, "the half-made container can be deleted"
        )
        assert box.ids("cove") == [] and not (box.state["cove"] / "one").exists()
        wait_until(lambda: cgroup_directories(box) == [], "its cgroups are gone")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ociVersion": "2.0.0"}, "ociVersion"),
        ({"process": {"args": "true", "cwd": "/"}}, "config.json: process.args"),
        ({"root": {"path": "nowhere"}}, "nowhere: no such file or directory"),
        (
            {"mounts": [{"destination": "/x", "type": "bind", "source": "/nosuch", "options": ["bind"]}]},
            "/nosuch",
        ),
        ({"linux": {"namespaces": [{"type": "netns"}]}}, "config.json: linux.namespaces[0].type"),
    ],
)
def test_bad_input_is_refused_with_its_place_and_leaves_nothing(
    box: Box, change: dict[str, Any], words: str
) -> None:
    box.configure(["true"], lambda config: config.update(change))
    for verb in ("create", "run"):
        done = box.cove(verb, "one")
        assert done.status == 1 and words in done.error, done.err
    assert box.ids("cove") == [] and cgroup_directories(box) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "é"])
def test_an_id_is_a_plain_name(box: Box, name: str) -> None:
    box.configure(["true"])
    done = box.cove("run", name)
    assert done.status == 1 and "id" in done.error.lower()


def test_the_json_log_ends_with_the_reason(box: Box) -> None:
    box.configure(["nosuch"])
    log = box.bundle.parent / "log.json"
    done = box.cove("--log", str(log), "--log-format=json", "create", "one")
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["level"] == "error" and 'exec: "nosuch": executable file not found in $PATH' in last["msg"]
    assert done.err.strip() == last["msg"]


def test_features_and_version_tell_what_this_is(box: Box) -> None:
    box.configure(["true"])
    features = box.cove("features").json()
    assert features["ociVersionMin"] == "1.0.0" and "user" in features["linux"]["namespaces"]
    assert box.cove("--version").out.startswith("cove-runtime version ")
    for verb in ("checkpoint", "restore"):
        assert box.cove(verb, "one").status == 1
