"""Logs of real containers at real receivers: everything arrives, in order, whoever goes away meanwhile."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.logkit import BOUND_S, Forward, Receiver, make_certificates, server_context

COUNT = 3_000
SCRIPT = f"i=0; while [ $i -lt {COUNT} ]; do echo line $i.; i=$((i+1)); done; echo oops >&2"
LINES = [f"line {number}." for number in range(COUNT)]
SLOW = "i=0; while [ $i -lt 60 ]; do echo line $i.; i=$((i+1)); sleep 0.02; done"


@contextmanager
def container(
    daemon: Daemon, image: str, script: str, driver: str, tty: bool = False, **options: str
) -> Iterator[Any]:
    """A started container that prints; removed at the end, whatever happened."""
    config = {"Type": driver, "Config": {key.replace("_", "-"): value for key, value in options.items()}}
    made = daemon.client.containers.create(image, ["sh", "-c", script], log_config=config, tty=tty)
    try:
        made.start()
        yield made
    finally:
        made.remove(force=True)


def shipper_pid(daemon: Daemon) -> int:
    """The shipper of a daemon: its child that was given its directory of unsent logs."""
    unsent = os.fsencode(daemon.data_root / "unsent")
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if unsent in words:
            return int(entry.parent.name)
    return 0


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, "it didn't come about"
        time.sleep(0.02)


def lines_of(data: bytes) -> list[str]:
    return re.findall(r"line \d+\.", data.decode(errors="replace"))


def test_syslog_over_tcp_has_every_line_though_the_container_is_removed(daemon: Daemon, image: str) -> None:
    with Receiver("tcp") as receiver:
        config = {
            "Type": "syslog",
            "Config": {
                "syslog-address": receiver.address,
                "syslog-format": "rfc5424micro",
                "tag": "app/{{.Name}}",
                "syslog-facility": "local0",
            },
        }
        daemon.client.containers.run(
            image, ["sh", "-c", SCRIPT], name="removed-soon", log_config=config, remove=True, detach=True
        )
        data = receiver.wait(lambda data: data.count(b"\n") >= COUNT + 1)
        assert lines_of(data) == LINES
        first = data.splitlines()[0].decode()
        assert re.fullmatch(
            r"<134>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\S+ \S+ app/removed-soon \d+ app/removed-soon - line 0\.",
            first,
        )
        assert b"<131>1 " in data and b" - oops\n" in data
        eventually(lambda: not list((daemon.data_root / "unsent").iterdir()))


@pytest.mark.parametrize("kind", ["udp", "unixgram", "unix"])
def test_syslog_over_other_sockets(daemon: Daemon, image: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log.sock" if kind.startswith("unix") else None
    with Receiver(kind, path) as receiver:
        script = "for i in 0 1 2 3 4; do echo line $i.; done; echo; printf end"
        with container(daemon, image, script, "syslog", syslog_address=receiver.address, tag="t") as made:
            data = receiver.wait(lambda data: b"end\n" in data)
            assert lines_of(data) == LINES[:5]
            assert re.match(rb"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d t\[\d+\]: line 0\.\n", data)
            assert made.logs() == b"".join(f"line {n}.\n".encode() for n in range(5)) + b"\nend"


def test_syslog_over_tls_with_a_client_s_certificate(daemon: Daemon, image: str, tmp_path: Path) -> None:
    make_certificates(tmp_path / "pki")
    pki = tmp_path / "pki"
    with Receiver("tcp", tls=server_context(pki)) as receiver:
        options = {
            "syslog_address": receiver.address,
            "syslog_format": "rfc5424",
            "syslog_tls_ca_cert": str(pki / "ca.pem"),
            "syslog_tls_cert": str(pki / "client.pem"),
            "syslog_tls_key": str(pki / "client.key"),
        }
        with container(daemon, image, SCRIPT, "syslog", **options):
            data = receiver.wait(lambda data: data.count(b"\n") >= COUNT + 1)
        assert lines_of(data) == LINES
        octets, _, rest = data.partition(b" ")
        assert rest[int(octets) - 1 : int(octets)] == b"\n"


def test_a_receiver_whose_certificate_nobody_vouches_for_gets_nothing(
    daemon: Daemon, image: str, tmp_path: Path
) -> None:
    make_certificates(tmp_path / "pki")
    with Receiver("tcp", tls=server_context(tmp_path / "pki")) as receiver:
        with container(daemon, image, "echo line 0.", "syslog", syslog_address=receiver.address) as made:
            eventually(
                lambda: re.search(rf"{made.short_id}.*can't be sent: .*certificate", daemon.log_text())
            )
        assert not receiver.data


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_gelf_over_udp(daemon: Daemon, image: str, compression: str) -> None:
    with Receiver("udp") as receiver:
        options = {
            "gelf_address": receiver.address,
            "gelf_compression_type": compression,
            "labels": "team",
            "env": "STAGE",
        }
        script = "echo line 0.; echo oops >&2; head -c 40000 /dev/urandom | base64 -w 0"
        config = {"Type": "gelf", "Config": {k.replace("_", "-"): v for k, v in options.items()}}
        made = daemon.client.containers.create(
            image,
            ["sh", "-c", script],
            log_config=config,
            labels={"team": "red"},
            environment={"STAGE": "blue"},
        )
        try:
            made.start()
            messages = gelf_messages(receiver, compression, count=6)
            text = made.logs(stderr=False).decode()
        finally:
            made.remove(force=True)
    out = [m["short_message"] for m in messages if m["level"] == 6]
    assert out[0] == "line 0." and "".join(out[1:]) == text.removeprefix("line 0.\n")
    assert [m["short_message"] for m in messages if m["level"] == 3] == ["oops"]
    assert messages[0]["_team"] == "red" and messages[0]["_STAGE"] == "blue"
    assert messages[0]["_container_id"] == made.id and messages[0]["_tag"] == made.short_id


def gelf_messages(receiver: Receiver, compression: str, count: int) -> list[dict[str, Any]]:
    """The messages in the datagrams that came, chunks joined."""

    def found() -> list[dict[str, Any]]:
        chunks: dict[bytes, dict[int, bytes]] = {}
        whole = []
        for datagram in list(receiver.datagrams):
            if not datagram.startswith(b"\x1e\x0f"):
                whole.append(datagram)
                continue
            parts = chunks.setdefault(datagram[2:10], {})
            parts[datagram[10]] = datagram[12:]
            if len(parts) == datagram[11]:
                whole.append(b"".join(parts[number] for number in range(datagram[11])))
        return [json.loads(gzip.decompress(data) if compression == "gzip" else data) for data in whole]

    eventually(lambda: len(found()) >= count)
    return found()


def test_gelf_over_tcp(daemon: Daemon, image: str) -> None:
    with Receiver("tcp") as receiver, container(daemon, image, SCRIPT, "gelf", gelf_address=receiver.address):
        data = receiver.wait(lambda data: data.count(b"\0") >= COUNT + 1)
    texts = [json.loads(text)["short_message"] for text in data.split(b"\0")[:-1]]
    assert [text for text in texts if text != "oops"] == LINES


@pytest.mark.parametrize("acknowledge", ["true", "false"])
def test_fluentd(daemon: Daemon, image: str, acknowledge: str, tmp_path: Path) -> None:
    forward = Forward()
    with Receiver("unix", tmp_path / "f.sock", answer=forward) as receiver:
        options = {
            "fluentd_address": receiver.address,
            "fluentd_sub_second_precision": "true",
            "fluentd_request_ack": acknowledge,
            "tag": "docker.{{.Name}}",
            "labels": "none",
        }
        with container(daemon, image, SCRIPT, "fluentd", **options) as made:
            eventually(lambda: len(forward.entries) >= COUNT + 1)
            name = made.name
    records = [record for _, record in forward.entries]
    assert [record["log"] for record in records if record["source"] == "stdout"] == LINES
    assert records[0]["container_name"] == f"/{name}" and forward.tags == {f"docker.{name}"}
    stamp: Any = forward.entries[0][0]
    assert stamp.code == 0 and abs(int.from_bytes(stamp.data[:4], "big") - time.time()) < 300


def test_what_fluentd_does_not_acknowledge_is_sent_again(daemon: Daemon, image: str) -> None:
    forward = Forward(acknowledges=False)
    with Receiver("tcp", answer=forward) as receiver:
        options = {
            "fluentd_address": f"127.0.0.1:{receiver.port}",
            "fluentd_request_ack": "true",
            "fluentd_read_timeout": "200ms",
            "fluentd_retry_wait": "100ms",
        }
        with container(daemon, image, "echo line 0.", "fluentd", **options):
            eventually(lambda: len(forward.entries) >= 2)
    assert {record["log"] for _, record in forward.entries} == {"line 0."}


def test_journald_s_native_protocol(image: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.sock"
    with Daemon(environment={"COVE_JOURNAL_SOCKET": str(path)}) as daemon:
        daemon.load_image()
        with Receiver("unixgram", path) as receiver:
            big = {"Type": "journald", "Config": {"env": "BIG", "tag": "{{.ImageName}}"}}
            # with 30 such messages' worth of attributes a datagram is too long: a descriptor takes its place
            made = daemon.client.containers.create(
                image, ["sh", "-c", "echo line 0.; head -c 20000 /dev/zero | tr '\\0' x; echo; echo oops >&2"],
                log_config=big, environment={"BIG": "y" * 60_000},
            )  # fmt: skip
            try:
                made.start()
                eventually(lambda: len(receiver.datagrams) >= 4)
            finally:
                made.remove(force=True)
    first = receiver.datagrams[0]
    assert b"MESSAGE=line 0.\nPRIORITY=6\n" in first
    for field in (
        f"CONTAINER_ID={made.short_id}",
        f"CONTAINER_ID_FULL={made.id}",
        f"CONTAINER_NAME={made.name}",
        f"IMAGE_NAME={image}",
        f"CONTAINER_TAG={image}",
        f"SYSLOG_IDENTIFIER={image}",
        "BIG=" + "y" * 60_000,
    ):
        assert f"\n{field}\n".encode() in first
    everything = b"".join(receiver.datagrams)
    assert everything.count(b"CONTAINER_PARTIAL_MESSAGE=true") == 1
    assert everything.count(b"\nCONTAINER_PARTIAL_LAST=true\n") == 1
    assert b"MESSAGE=oops\nPRIORITY=3\n" in everything


def test_a_receiver_that_is_away_at_first_gets_everything(daemon: Daemon, image: str) -> None:
    receiver = Receiver("tcp")
    receiver.stop()
    options = {"fluentd_address": f"127.0.0.1:{receiver.port}", "fluentd_retry_wait": "100ms"}
    with container(daemon, image, "echo line 0.; echo line 1.", "fluentd", **options) as made:
        assert made.wait(timeout=60)["StatusCode"] == 0
        assert made.logs() == b"line 0.\nline 1.\n"
        eventually(lambda: f"the log of container {made.short_id} can't be sent" in daemon.log_text())
        receiver.restart()
        try:
            receiver.wait(lambda data: b"line 1." in data)
            eventually(lambda: f"{made.short_id} is sent again" in daemon.log_text())
        finally:
            receiver.stop()
    assert lines_of(bytes(receiver.data)) == LINES[:2]


def test_a_receiver_that_is_killed_and_comes_back_misses_nothing(daemon: Daemon, image: str) -> None:
    forward = Forward()
    with Receiver("tcp", answer=forward) as receiver:
        options = {
            "fluentd_address": f"127.0.0.1:{receiver.port}",
            "fluentd_retry_wait": "50ms",
            "fluentd_request_ack": "true",
        }
        with container(daemon, image, SLOW, "fluentd", **options):
            for number in (5, 20):
                eventually(lambda number=number: len(forward.entries) >= number)  # type: ignore[misc]
                receiver.stop()
                forward._unpacker = type(forward._unpacker)()
                receiver.restart()
            eventually(lambda: any(record["log"] == "line 59." for _, record in forward.entries))
    assert list(dict.fromkeys(record["log"] for _, record in forward.entries)) == LINES[:60]


@pytest.mark.parametrize("victim", ["daemon", "shipper"])
def test_nothing_is_lost_when_a_process_is_killed(fresh_daemon: Daemon, image: str, victim: str) -> None:
    daemon = fresh_daemon
    with (
        Receiver("tcp") as receiver,
        container(daemon, image, SLOW, "syslog", syslog_address=receiver.address),
    ):
        receiver.wait(lambda data: data.count(b"line") >= 10)
        if victim == "daemon":
            daemon.kill9()
            daemon.start()
        else:
            os.kill(shipper_pid(daemon), signal.SIGKILL)
        data = receiver.wait(lambda data: b"line 59." in data)
    assert list(dict.fromkeys(lines_of(data))) == LINES[:60]


def test_what_a_removed_container_left_unsent_is_sent_by_the_next_daemon(
    fresh_daemon: Daemon, image: str
) -> None:
    daemon = fresh_daemon
    receiver = Receiver("tcp")
    receiver.stop()
    with container(daemon, image, "echo line 0.", "syslog", syslog_address=receiver.address) as made:
        made.wait(timeout=60)
    assert list((daemon.data_root / "unsent").iterdir())
    daemon.kill9()
    daemon.start()
    receiver.restart()
    try:
        receiver.wait(lambda data: b"line 0." in data)
        eventually(lambda: not list((daemon.data_root / "unsent").iterdir()))
    finally:
        receiver.stop()


def test_a_receiver_that_hangs_holds_nobody_back_and_losses_are_told(daemon: Daemon, image: str) -> None:
    with Receiver("tcp", reads=False) as hanging, Receiver("tcp") as receiver:
        options = {"cache_max_size": "100k", "cache_max_file": "2", "cache_compress": "false"}
        flood = "yes flooding and flooding | head -c 20000000; echo; echo line 0."
        with container(daemon, image, flood, "syslog", syslog_address=hanging.address, **options) as made:
            begun = time.monotonic()
            with container(daemon, image, "echo line 1.", "syslog", syslog_address=receiver.address):
                receiver.wait(lambda data: b"line 1." in data)
            assert made.wait(timeout=60)["StatusCode"] == 0
            assert made.logs(tail=1) == b"line 0.\n"
            eventually(lambda: f"{made.short_id}: at least" in daemon.log_text())
            status = Path(f"/proc/{shipper_pid(daemon)}/status").read_text()
            (resident_kib,) = map(int, re.findall(r"VmRSS:\s+(\d+)", status))
            assert resident_kib < 64 << 10
            assert time.monotonic() - begun < BOUND_S
            log_dir = daemon.data_root / "containers" / made.id / "log"
            assert sum(file.stat().st_size for file in log_dir.iterdir() if file.is_file()) < 400_000


def test_each_run_is_sent_under_the_name_that_it_has(daemon: Daemon, image: str) -> None:
    with Receiver("tcp") as receiver:
        options = {"syslog_address": receiver.address, "tag": "{{.Name}}"}
        with container(daemon, image, "echo run; sleep 600", "syslog", **options) as made:
            old = made.name
            for number in range(1, 6):
                receiver.wait(lambda data, number=number: data.count(b": run\n") == number)  # type: ignore[misc]
                if number == 4:
                    made.rename(f"{old}-new")
                made.restart(timeout=0)
            data = receiver.wait(lambda data: data.count(b": run\n") == 6).decode()
    assert re.findall(r"(\S+)\[\d+\]: run\n", data) == [old] * 4 + [f"{old}-new"] * 2


def test_a_container_without_a_readable_copy(daemon: Daemon, image: str) -> None:
    with Receiver("tcp") as receiver:
        options = {"syslog_address": receiver.address, "cache_disabled": "true"}
        with container(daemon, image, "echo line 0.", "syslog", **options) as made:
            receiver.wait(lambda data: b"line 0." in data)
            answer = daemon.http("GET", f"/containers/{made.id}/logs?stdout=1")
    assert (answer.status, answer.message) == (501, "configured logging driver does not support reading")


def test_drivers_are_listed_and_checked(daemon: Daemon, image: str) -> None:
    assert daemon.client.info()["Plugins"]["Log"] == [
        "fluentd", "gelf", "journald", "json-file", "local", "none", "syslog",
    ]  # fmt: skip
    body: dict[str, Any] = {"Image": image, "HostConfig": {"LogConfig": {"Type": "awslogs", "Config": {}}}}
    answer = daemon.http("POST", "/containers/create", body)
    assert answer.status == 400 and answer.message.startswith(
        "logger: no log driver named 'awslogs' is registered: "
    )
    body["HostConfig"]["LogConfig"] = {"Type": "journald", "Config": {"tag": "{{.Nothing}}"}}
    answer = daemon.http("POST", "/containers/create", body)
    assert answer.status == 400 and "can't evaluate field Nothing" in answer.message
    body["HostConfig"]["LogConfig"] = {"Type": "journald", "Config": {}}
    answer = daemon.http("POST", "/containers/create", body)
    assert answer.status == 201
    assert Path("/run/systemd/journal/socket").exists() or any(
        "log driver journald: nothing listens at" in warning for warning in answer.json()["Warnings"]
    )
    daemon.http("DELETE", f"/containers/{answer.json()['Id']}")


@contextmanager
def rsyslogd(directory: Path, inputs: str) -> Iterator[Path]:
    """A real syslog daemon with these inputs; the file that it writes program, severity, facility and text to."""
    out = directory / "out"
    template = "%programname%|%syslogseverity-text%|%syslogfacility-text%|%timestamp:::date-rfc3339%|%msg%\\n"
    (directory / "rsyslog.conf").write_text(
        f'{inputs}\ntemplate(name="t" type="string" string="{template}")\n'
        f'action(type="omfile" file="{out}" template="t")\n'
    )
    command = ["rsyslogd", "-n", "-f", str(directory / "rsyslog.conf"), "-i", str(directory / "pid")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        eventually(lambda: (directory / "pid").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]
        yield out
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not shutil.which("rsyslogd"), reason="rsyslogd isn't installed")
@pytest.mark.parametrize(
    ("kind", "form"), [("tcp", "rfc5424micro"), ("tcp", "rfc3164"), ("udp", "rfc5424"), ("unixgram", "")]
)
def test_rsyslogd_understands_it(daemon: Daemon, image: str, tmp_path: Path, kind: str, form: str) -> None:
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "log.sock"
    module = f"im{kind}"
    inputs = f'module(load="{module}")\ninput(type="{module}" port="{port}" address="127.0.0.1")'
    address = f"{kind}://127.0.0.1:{port}"
    if kind == "unixgram":
        inputs = f'module(load="imuxsock" SysSock.Use="off")\ninput(type="imuxsock" Socket="{path}")'
        address = f"unixgram://{path}"
    with rsyslogd(tmp_path, inputs) as out:
        options = {
            "syslog_address": address,
            "syslog_format": form,
            "syslog_facility": "local3",
            "tag": "my-app",
        }
        with container(daemon, image, "echo hello world; echo oops >&2", "syslog", **options):
            eventually(lambda: out.exists() and len(out.read_text().splitlines()) >= 2)
    rows = sorted(line.split("|") for line in out.read_text().splitlines())
    assert [(row[0], row[1], row[2], row[4].strip()) for row in rows] == [
        ("my-app", "err", "local3", "oops"),
        ("my-app", "info", "local3", "hello world"),
    ]
    assert form != "rfc5424micro" or "." in rows[0][3]
