"""The stock command line's verbs for containers: lists, states, templates, copies."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import Docker, clean, eventually

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture(scope="module")
def docker(daemon: Daemon) -> Iterator[Docker]:
    docker = Docker(daemon.host)
    yield docker
    docker.close()


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon) -> Iterator[None]:
    yield
    clean(daemon.client)


def names(docker: Docker, *filters: str) -> set[str]:
    options = [part for name in filters for part in ("--filter", name)]
    return set(docker("ps", "-a", "--format", "{{.Names}}", *options).lines)


def test_ps_selects_by_every_common_filter(docker: Docker, image: str) -> None:
    docker("network", "create", "back")
    docker("run", "-d", "--name", "one", "-l", "tier=web", "-v", "data:/data", image, "sleep", "600")
    docker(
        "run",
        "-d",
        "--name",
        "two",
        "-l",
        "tier=db",
        "--network",
        "back",
        "-p",
        "127.0.0.1::99",
        image,
        "sleep",
        "600",
    )
    docker("run", "--name", "three", image, "sh", "-c", "exit 3", code=3)
    docker("create", "--name", "four", image)
    docker("pause", "two")
    one = docker("inspect", "-f", "{{.Id}}", "one").word
    for given, wanted in {
        ("name=one",): {"one"},
        ("name=^t",): {"two", "three"},
        (f"id={one[:12]}",): {"one"},
        ("label=tier",): {"one", "two"},
        ("label=tier=db",): {"two"},
        ("status=running",): {"one"},
        ("status=paused",): {"two"},
        ("status=exited", "status=created"): {"three", "four"},
        ("exited=3",): {"three"},
        (f"ancestor={image}", "name=f"): {"four"},
        ("volume=data",): {"one"},
        ("volume=/data",): {"one"},
        ("network=back",): {"two"},
        ("publish=99",): set(),
        ("expose=99/tcp",): {"two"},
        ("before=two",): {"one"},
        ("since=two",): {"three", "four"},
        ("health=none", "name=one"): {"one"},
        ("is-task=false",): {"one", "two", "three", "four"},
    }.items():
        assert names(docker, *given) == wanted, given
    assert "nonsense" in docker("ps", "--filter", "nonsense=1", code=1).err
    assert set(docker("ps", "--format", "{{.Names}}").lines) == {"one", "two"}
    assert docker("ps", "-l", "--format", "{{.Names}}").word == "four"
    assert docker("ps", "-n", "2", "--format", "{{.Names}}").lines == ["four", "three"]
    docker("unpause", "two")


def test_ps_shows_its_table_and_the_fields_of_templates(docker: Docker, image: str) -> None:
    docker(
        "run",
        "-d",
        "--name",
        "one",
        "-l",
        "a=b",
        "-v",
        "data:/data",
        image,
        "sh",
        "-c",
        "echo x > /f; sleep 600",
    )
    table = docker("ps").lines
    assert table[0].split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert image in table[1] and '"sh -c \'echo x > /f;…"' in table[1] and "one" in table[1]
    template = (
        "{{.Image}}|{{.Command}}|{{.Status}}|{{.State}}|{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.RunningFor}}"
    )
    fields = docker("ps", "--no-trunc", "--format", template).word.split("|")
    assert fields[0] == image and fields[1] == "\"sh -c 'echo x > /f; sleep 600'\""
    assert fields[2].startswith("Up ") and fields[3:7] == ["running", "a=b", "data", "bridge"]
    assert fields[7].endswith(" ago")
    entry = json.loads(docker("ps", "--format", "{{json .}}").out)
    assert entry["Names"] == "one" and entry["LocalVolumes"] == "1"
    eventually(lambda: docker("ps", "-s", "--format", "{{.Size}}").word.startswith("2B (virtual "))


def test_a_container_goes_through_its_states(docker: Docker, image: str) -> None:
    assert len(docker("create", "--name", "box", image, "sleep", "600").word) == 64
    state = ("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box")
    assert docker(*state).word == "created 0"
    assert docker("start", "box").word == "box"
    assert docker(*state).word == "running 0"
    assert docker("pause", "box").word == "box"
    assert docker(*state).word == "paused 0"
    assert "is already paused" in docker("pause", "box", code=1).err
    assert "(Paused)" in docker("ps").out
    docker("unpause", "box")
    assert docker("restart", "-t", "0", "box").word == "box"
    assert docker("stop", "-t", "0", "box").word == "box"
    assert docker(*state).word == "exited 137"
    assert "Exited (137)" in docker("ps", "-a").out
    docker("start", "box")
    assert docker("kill", "-s", "KILL", "box").word == "box"
    assert "is not running" in docker("kill", "box", code=1).err
    assert docker("rename", "box", "crate").out == ""
    docker("start", "crate")
    assert "container is running" in docker("rm", "crate", code=1).err
    assert docker("rm", "-f", "crate").word == "crate"
    assert "No such container: crate" in docker("rm", "crate", code=1).err
    assert docker("rm", "-f", "crate", code=None).out == ""


def test_inspect_answers_the_templates_that_people_use(docker: Docker, image: str, tmp_path: Path) -> None:
    docker(
        "run", "-d", "--name", "box", "--hostname", "h", "-e", "A=b", "-p", "127.0.0.1::80", "-v", f"{tmp_path}:/b:ro",
        "--restart", "unless-stopped", "-m", "64m", image, "sleep", "600",
    )  # fmt: skip

    def ask(template: str) -> str:
        return docker("inspect", "-f", template, "box").word

    assert (
        ask("{{.State.Running}} {{.State.Paused}} {{.State.Dead}} {{.RestartCount}}") == "true false false 0"
    )
    assert int(ask("{{.State.Pid}}")) > 1
    assert ask("{{.Config.Hostname}} {{.Config.Image}} {{.Config.Cmd}}") == f"h {image} [sleep 600]"
    assert ask("{{range .Config.Env}}{{.}} {{end}}").startswith("A=b")
    assert ask("{{.Path}} {{.Args}}") == "sleep [600]"
    port = ask('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}')
    assert docker("port", "box", "80/tcp").word == f"127.0.0.1:{port}"
    assert ask("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}") == ask(
        "{{.NetworkSettings.IPAddress}}"
    )
    assert (
        ask("{{(index .Mounts 0).Type}} {{(index .Mounts 0).RW}} {{(index .Mounts 0).Destination}}")
        == "bind false /b"
    )
    assert (
        ask("{{.HostConfig.Binds}} {{.HostConfig.RestartPolicy.Name}}")
        == f"[{tmp_path}:/b:ro] unless-stopped"
    )
    assert ask("{{.HostConfig.Memory}} {{.HostConfig.LogConfig.Type}}") == f"{64 << 20} json-file"
    assert ask("{{.Image}}") == docker("image", "inspect", "-f", "{{.Id}}", image).word
    assert ask("{{.Created}}") < ask("{{.State.StartedAt}}")
    found = json.loads(docker("inspect", "box", image).out)
    assert [sorted(item)[0] for item in found] == ["AppArmorProfile", "Architecture"]
    assert "No such object: nothing" in docker("inspect", "nothing", code=1).err
    assert "SizeRw" in json.loads(docker("inspect", "-s", "--type", "container", "box").out)[0]


def test_copies_go_both_ways(docker: Docker, image: str, tmp_path: Path) -> None:
    docker("run", "-d", "--name", "box", image, "sleep", "600")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/big").write_bytes(os.urandom(3 << 20))
    (source / "link").symlink_to("deep/big")
    (source / "run").write_text("#!/bin/sh\necho ran\n")
    (source / "run").chmod(0o755)
    os.chown(source / "run", 7, 7)
    quiet = ("-q",) if docker.version >= (23, 0) else ()
    docker("cp", *quiet, str(source), "box:/whole")
    docker("cp", *quiet, f"{source}/.", "box:/tmp")
    assert docker("exec", "box", "/whole/run").out == docker("exec", "box", "/tmp/run").out == "ran\n"
    docker("run", "-d", "--name", "user", "-u", "1000", image, "sleep", "600")
    docker("cp", *quiet, "-a", str(source / "run"), "user:/archived")
    docker("cp", *quiet, str(source / "run"), "box:/plain")
    assert docker("exec", "box", "stat", "-c", "%u:%g", "/plain").word == "7:7"
    assert docker("exec", "user", "stat", "-c", "%u:%g", "/archived").word == "1000:1000"
    docker("cp", *quiet, "box:/whole", str(tmp_path / "back"))
    assert (tmp_path / "back/deep/big").read_bytes() == (source / "deep/big").read_bytes()
    assert os.readlink(tmp_path / "back/link") == "deep/big"
    docker("cp", *quiet, "-L", "box:/whole/link", str(tmp_path / "followed"))
    assert (tmp_path / "followed").stat().st_size == 3 << 20
    missing = docker("cp", "box:/nothing", str(tmp_path), code=1).err
    assert "Could not find the file /nothing in container box" in missing or "path: box:/nothing" in missing
    missing = docker("cp", "nobody:/x", str(tmp_path), code=1).err
    assert "No such container: nobody" in missing or "path: nobody:/x" in missing


def test_copies_go_through_pipes_also_of_a_container_that_doesn_t_run(docker: Docker, image: str) -> None:
    docker("create", "--name", "box", "-v", "data:/data", image)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("piped")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    docker("cp", "-", "box:/data", input=packed.getvalue())
    with tarfile.open(fileobj=io.BytesIO(docker("cp", "box:/data/piped", "-").raw)) as tar:
        file = tar.extractfile("piped")
        assert file is not None and file.read() == b"hello"
    assert docker("run", "--rm", "-v", "data:/d", image, "cat", "/d/piped").out == "hello"


def test_a_diff_tells_what_was_changed(docker: Docker, image: str) -> None:
    script = (
        "echo x >> /etc/passwd; touch /new; mkdir -p /a/b; rm /bin/ps; rm -r /var; mkdir /var;"
        " touch /var/mine; chmod 700 /root"
    )
    docker("run", "--name", "box", "-v", "/anonymous", image, "sh", "-c", script)
    assert docker("diff", "box").lines == [
        "A /a",
        "A /a/b",
        "A /anonymous",
        "C /bin",
        "D /bin/ps",
        "C /etc",
        "C /etc/passwd",
        "A /new",
        "C /root",
        "C /var",
        "A /var/mine",
    ]
    docker("run", "-d", "--name", "same", image, "sh", "-c", "touch -r /etc/passwd /etc/passwd; sleep 600")
    assert docker("diff", "same").out == ""


def test_what_an_opaque_directory_hides_is_deleted(docker: Docker, image: str, daemon: Daemon) -> None:
    docker("run", "--name", "first", image, "sh", "-c", "mkdir /d; touch /d/old /d/kept")
    imported = docker("export", "first").raw
    docker("import", "-", "layered:1", input=imported)
    docker("run", "--name", "box", "layered:1", "sh", "-c", "rm -r /d; mkdir /d; touch /d/kept /d/new")
    assert docker("diff", "box").lines == ["C /d", "C /d/kept", "A /d/new", "D /d/old"]
    docker("rm", "box")
    docker("rmi", "layered:1")


def test_an_export_is_the_whole_tree_and_can_be_imported(docker: Docker, image: str) -> None:
    docker(
        "run",
        "-d",
        "--name",
        "box",
        "-v",
        "data:/data",
        image,
        "sh",
        "-c",
        "echo mine > /mine; echo v > /data/v; sleep 600",
    )
    eventually(lambda: docker("exec", "box", "cat", "/data/v", code=None).out == "v\n")
    archive = docker("export", "box").raw
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = tar.getnames()
    assert "mine" in members and "bin/sh" in members and "data/v" not in members
    docker("import", "-c", "CMD cat /mine", "-", "exported:1", input=archive)
    assert docker("run", "--rm", "exported:1").out == "mine\n"
    docker("rmi", "exported:1")


def test_top_shows_the_processes_with_the_columns_asked_for(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", image, "sh", "-c", "sleep 600 & wait")
    eventually(lambda: "sleep 600" in docker("top", "box").out)
    assert docker("top", "box").lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert docker("top", "box", "-eo", "pid,comm").lines[0].split() == ["PID", "COMMAND"]
    docker("stop", "-t", "0", "box")
    assert "is not running" in docker("top", "box", code=1).err


def test_limits_and_policies_are_updated(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", "-m", "64m", image, "sleep", "600")
    docker(
        "update", "-m", "128m", "--memory-swap", "256m", "--cpus", "0.5", "--restart", "on-failure:3", "box"
    )
    template = "{{.HostConfig.Memory}} {{.HostConfig.NanoCPUs}} {{.HostConfig.RestartPolicy}}"
    assert docker("inspect", "-f", template, "box").word == f"{128 << 20} 500000000 {{on-failure 3}}"
    assert "/ 128MiB" in docker("stats", "--no-stream", "--format", "{{.MemUsage}}").out


def test_stats_show_every_column(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "box", image, "sleep", "600")
    lines = docker("stats", "--no-stream").lines
    assert lines[0].split("  ")[0] == "CONTAINER ID" and "box" in lines[1]
    found = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", "box").out)
    assert found["Name"] == "box" and found["PIDs"] == "1" and found["CPUPerc"].endswith("%")


def test_events_tell_a_container_s_life(docker: Docker, image: str) -> None:
    docker("run", "--name", "box", "-l", "of=events", image, "sh", "-c", "exit 4", code=4)
    docker("rename", "box", "crate")
    docker("rm", "crate")
    now = f"{time.time():.6f}"
    out = docker(
        "events", "--since", "5m", "--until", now, "--filter", "type=container", "--filter", "label=of=events",
        "--format", "{{.Action}} {{index .Actor.Attributes \"name\"}}",
    ).lines  # fmt: skip
    assert out == ["create box", "attach box", "start box", "die box", "rename crate", "destroy crate"]
    codes = docker(
        "events", "--since", "5m", "--until", now, "--filter", "event=die", "--format", "{{json .}}"
    ).out
    assert json.loads(codes.splitlines()[-1])["Actor"]["Attributes"]["exitCode"] == "4"


def test_prune_removes_what_does_not_run(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "alive", image, "sleep", "600")
    ended = docker("create", "--name", "ended", "-l", "keep=no", image).word
    docker("create", "--name", "kept", "-l", "keep=yes", image)
    out = docker("container", "prune", "-f", "--filter", "label!=keep=yes").lines
    assert out[:2] == ["Deleted Containers:", ended] and out[-1].startswith("Total reclaimed space: ")
    assert names(docker) == {"alive", "kept"}
