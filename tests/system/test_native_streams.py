"""Output, input, attached clients, terminals and logs of a running container, with both builds."""
# ruff: noqa: F811

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cove.model.errors import Conflict, HostError
from cove.runtime.launch import Attach, LogSetup, StreamSetup
from cove.runtime.steps import Chdir, Exec, Plan, SetNs, Step, Terminal
from tests.system.native_support import (  # noqa: F401
    NAMESPACES,
    NEWPID,
    PATH,
    Box,
    box,
    hang_up,
    launcher,
    needs_root,
    read_local,
    run,
    until,
)

pytestmark = needs_root


class Client:
    """A client's end of an attached connection."""

    def __init__(self, **options: Any) -> None:
        self.mine, theirs = socket.socketpair()
        self.mine.setblocking(False)
        hang_up.append(self.mine.close)
        self.detached = asyncio.Event()
        self.attach = Attach(sock=theirs, on_detach=self.detached.set, **options)
        self.received = b""

    async def read(self) -> bytes:
        """What comes next; b"" at the end."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.mine, 65536)
        except ConnectionResetError:
            data = b""
        self.received += data
        return data

    async def read_until(self, text: bytes) -> None:
        while text not in self.received:
            assert await self.read(), f"the end came before {text!r}: {self.received!r}"

    async def read_all(self) -> bytes:
        while await self.read():
            pass
        return self.received

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.mine, data)

    def end(self) -> None:
        self.mine.shutdown(socket.SHUT_WR)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        stream, zeros, length = data[0], data[1:4], int.from_bytes(data[4:8], "big")
        assert zeros == bytes(3) and len(data) >= 8 + length
        found.append((stream, data[8 : 8 + length]))
        data = data[8 + length :]
    return found


# --- clients ------------------------------------------------------------------------------------


def test_a_client_gets_frames_of_both_streams_from_the_first_byte_to_the_end(box: Box) -> None:
    async def body() -> None:
        client = Client(multiplex=True)
        task = await box.start(box.sh("echo out; echo err >&2; exit 4"), attach=[client.attach])
        got = frames(await client.read_all())
        assert b"".join(text for stream, text in got if stream == 1) == b"out\n"
        assert b"".join(text for stream, text in got if stream == 2) == b"err\n"
        assert (await task.wait()).exit_code == 4
        assert box.output() == "out\nerr\n"

    run(body())


def test_clients_get_only_the_streams_they_asked_for(box: Box) -> None:
    async def body() -> None:
        clients = [Client(stderr=False), Client(stdout=False), Client(), Client(stdout=False, stderr=False)]
        task = await box.start(box.sh("echo out; echo err >&2"), attach=[client.attach for client in clients])
        got = [await client.read_all() for client in clients]
        await task.wait()
        assert got[0] == b"out\n" and got[1] == b"err\n" and got[3] == b""
        assert sorted(got[2].split()) == [b"err", b"out"]

    run(body())


def test_a_slow_client_holds_the_output_back_and_misses_nothing(box: Box) -> None:
    size = 3_000_000

    async def body() -> None:
        slow, fast = Client(multiplex=True), Client()
        task = await box.start(
            box.sh(f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2; echo done > /shared/done"),
            attach=[slow.attach, fast.attach],
        )
        total = 0
        while total < 50_000:  # the fast one gets what fits, then nothing more comes for either
            total += len(await fast.read())
        reader = asyncio.create_task(fast.read_all())
        await slow.read()
        assert not (box.shared / "done").exists()
        got = frames(await slow.read_all())
        for stream in (1, 2):
            assert sum(len(text) for number, text in got if number == stream) == size
        assert len(await reader) == 2 * size
        assert (await task.wait()).exit_code == 0
        assert sum(len(payload) for _, _, payload in read_local(box.log / "log")) == 2 * size

    run(body())


def test_a_dead_client_is_dropped_and_the_container_runs_on(box: Box) -> None:
    async def body() -> None:
        dead = Client(multiplex=True)
        task = await box.start(box.sh("head -c 5000000 /dev/zero; echo; echo end"), attach=[dead.attach])
        await dead.read()
        dead.mine.close()
        assert (await task.wait()).exit_code == 0
        assert box.output().endswith("end\n")

    run(body())


def test_a_client_that_takes_nothing_does_not_hold_the_exit_back_for_ever(box: Box) -> None:
    async def body() -> None:
        stuck = Client()
        filler = box.sh("head -c 400000 /dev/zero &  sleep 0.2")
        task = await box.start(filler, attach=[stuck.attach])
        assert (await task.wait()).exit_code == 0

    run(body())


def test_a_client_that_reads_after_the_end_still_gets_everything(box: Box) -> None:
    """More than a socket holds is left when the process ends: it waits in the supervisor, not the exit for it."""

    async def body() -> None:
        slow = Client(multiplex=True)
        task = await box.start(box.sh("head -c 240000 /dev/zero; echo last"), attach=[slow.attach])
        assert (await task.wait()).exit_code == 0
        assert box.output().endswith("last\n")
        got = b"".join(data for _, data in frames(await slow.read_all()))
        assert got == b"\0" * 240000 + b"last\n"

    run(body())


def test_a_client_may_come_later_and_gets_what_comes_then(box: Box) -> None:
    async def body() -> None:
        task = await box.start(
            box.sh("echo early; while ! test -e /shared/go; do sleep 0.05; done; echo late")
        )
        await until(lambda: "early" in box.output())
        client = Client()
        await task.attach(client.attach)
        assert client.attach.sock.fileno() == -1
        (box.shared / "go").touch()
        assert await client.read_all() == b"late\n"
        await task.wait()
        refused = Client()
        with pytest.raises(Conflict, match="has ended"):
            await task.attach(refused.attach)
        assert refused.attach.sock.fileno() >= 0

    run(body())


def test_only_so_many_clients_are_served_at_once(box: Box) -> None:
    async def body() -> None:
        first = [Client() for _ in range(60)]
        task = await box.start(box.sh("sleep 1000"), attach=[client.attach for client in first])
        later = [Client() for _ in range(5)]
        for client in later[:4]:
            await task.attach(client.attach)
        with pytest.raises(Conflict, match="Too many users"):
            await task.attach(later[4].attach)
        await task.signal(9)
        await task.wait()

    run(body())


# --- input --------------------------------------------------------------------------------------


def test_input_arrives_and_its_end_closes_stdin_when_told_so(box: Box) -> None:
    data = bytes(range(256)) * 4000

    async def body() -> None:
        client = Client(stdin=True, initial=b"first ")
        task = await box.start(
            box.plan("cat"), attach=[client.attach], streams=box.streams(stdin=True, stdin_once=True)
        )

        async def send() -> None:
            await client.send(data)
            client.end()

        _, got = await asyncio.gather(send(), client.read_all())
        assert got == b"first " + data
        assert (await task.wait()).exit_code == 0

    run(body())


def test_input_stays_open_for_the_next_client_unless_told_otherwise(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.plan("cat"), streams=box.streams(stdin=True))
        for text in (b"one\n", b"two\n"):
            client = Client(stdin=True)
            await task.attach(client.attach)
            await client.send(text)
            client.end()
            await client.read_until(text)
            client.mine.close()
        await task.close_stdin()
        assert (await task.wait()).exit_code == 0
        assert box.output() == "one\ntwo\n"

    run(body())


def test_input_of_a_process_that_does_not_read_waits_with_the_client(box: Box) -> None:
    async def body() -> None:
        client = Client(stdin=True)
        task = await box.start(
            box.sh("while ! test -e /shared/go; do sleep 0.05; done; wc -c"),
            attach=[client.attach],
            streams=box.streams(stdin=True, stdin_once=True),
        )
        size = 2_000_000
        sending = asyncio.create_task(client.send(bytes(size)))
        done, _ = await asyncio.wait([sending], timeout=0.3)
        assert not done  # some hundred kilobytes fit into pipe, buffer and socket
        (box.shared / "go").touch()
        await sending
        client.mine.close()  # all that was sent still counts
        assert (await task.wait()).exit_code == 0
        assert box.output().split() == [str(size)]

    run(body())


def test_input_that_nobody_reads_any_more_harms_nothing(box: Box) -> None:
    async def body() -> None:
        client = Client(stdin=True)
        task = await box.start(
            box.sh("exec <&-; echo closed; while ! test -e /shared/go; do sleep 0.05; done; echo end"),
            attach=[client.attach],
            streams=box.streams(stdin=True),
        )
        await client.read_until(b"closed\n")
        for _ in range(50):
            await client.send(bytes(10000))
        (box.shared / "go").touch()
        await client.read_until(b"end\n")
        assert (await task.wait()).exit_code == 0

    run(body())


def test_two_clients_write_to_one_process(box: Box) -> None:
    async def body() -> None:
        clients = [Client(stdin=True), Client(stdin=True)]
        task = await box.start(
            box.plan("cat"), streams=box.streams(stdin=True), attach=[c.attach for c in clients]
        )
        await clients[0].send(b"from one\n")
        await clients[1].read_until(b"from one\n")
        await clients[1].send(b"from two\n")
        await clients[0].read_until(b"from two\n")
        await task.close_stdin()
        assert (await task.wait()).exit_code == 0

    run(body())


# --- terminals ----------------------------------------------------------------------------------


def terminal(box: Box, script: str, **step: int) -> Plan:
    return box.sh(script, inside=(Terminal(**step),))


def tty(box: Box, **more: object) -> StreamSetup:
    return box.streams(terminal=True, stdin=True, **more)


def test_a_terminal_is_the_controlling_one_and_the_console(box: Box) -> None:
    script = "tty; test -c /dev/console; echo $?; echo to-tty > /dev/tty; stty size; echo to-console > /dev/console"
    status, printed = run(box.finish(terminal(box, script, rows=33, cols=99), streams=tty(box)))
    assert printed.splitlines() == ["/dev/pts/0", "0", "to-tty", "33 99", "to-console"]
    assert status.exit_code == 0


def test_a_terminal_may_belong_to_a_user_and_have_no_console(box: Box) -> None:
    status, printed = run(box.finish(terminal(box, "stat -c %u /dev/pts/0; ls /dev/console 2>&1", uid=1000, console=0),
                                     streams=tty(box)))  # fmt: skip
    assert printed.splitlines()[0] == "1000" and "No such file" in printed
    assert status.exit_code == 1


def test_a_terminal_can_be_resized_and_typed_into(box: Box) -> None:
    async def body() -> None:
        client = Client(stdin=True)
        script = "trap 'stty size' WINCH; echo ready; until read line; do :; done; echo got $line; exit 6"
        task = await box.start(terminal(box, script), attach=[client.attach], streams=tty(box))
        await client.read_until(b"ready")
        await task.resize(40, 120)
        await client.read_until(b"40 120")
        await client.send(b"hello\r")
        await client.read_until(b"got hello")
        assert (await task.wait()).exit_code == 6
        assert await client.read_all()

    run(body())


def test_interrupt_and_end_of_file_are_typed(box: Box) -> None:
    async def body() -> None:
        client = Client(stdin=True)
        script = "trap 'echo interrupted' INT; echo ready; cat; echo eof; cat; exit 2"
        task = await box.start(
            terminal(box, script), attach=[client.attach], streams=tty(box, stdin_once=True)
        )
        await client.read_until(b"ready")
        await client.send(b"x\n")
        await client.read_until(b"x\r\nx\r\n")
        await client.send(b"\x03")
        await client.read_until(b"interrupted")
        await client.send(b"\x04")
        client.end()  # which isn't the terminal's end
        assert (await task.wait()).exit_code == 2

    run(body())


def test_a_terminal_survives_that_nobody_has_it_open_for_a_while(box: Box) -> None:
    script = "exec >/dev/null 2>&1 </dev/null; sleep 0.6; echo again > /dev/pts/0"
    status, printed = run(box.finish(terminal(box, script), streams=tty(box)))
    assert status.exit_code == 0 and printed == "again\r\n"


def test_resizing_without_a_terminal_is_a_conflict(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 1000"))
        with pytest.raises(Conflict, match="can't be resized to 80x24"):
            await task.resize(24, 80)
        await task.signal(9)
        await task.wait()

    run(body())


def test_plan_and_streams_must_agree_about_a_terminal(box: Box) -> None:
    with pytest.raises(
        HostError, match="a terminal is asked for by the plan or by the streams, but not by both"
    ):
        run(box.start(terminal(box, "true")))
    with pytest.raises(HostError, match="but not by both"):
        run(box.start(box.sh("true"), streams=tty(box)))


def test_an_exec_gets_a_terminal_of_the_container(box: Box) -> None:
    async def body() -> None:
        first = await box.start(box.sh("echo up; exec sleep 1000"))
        await until(lambda: "up" in box.output())
        pidfd = os.pidfd_open(first.pid)
        child: tuple[Step, ...] = (
            SetNs(slot=0, flags=NAMESPACES & ~NEWPID),
            Terminal(rows=10, cols=20, console=0),
            Chdir(path="/"),
            Exec(args=("sh", "-c", "tty; stty size; ls /dev/console"), env=(PATH,)),
        )
        plan = Plan(clone_flags=0, before=(SetNs(slot=0, flags=NEWPID),), child=child)
        client = Client(stdin=True)
        task = await box.start(
            plan,
            slots=[pidfd],
            state_dir=box.path / "exec",
            streams=StreamSetup(terminal=True, stdin=True),
            attach=[client.attach],
        )
        os.close(pidfd)
        lines = (await client.read_all()).decode().splitlines()
        assert lines[:2] == ["/dev/pts/0", "10 20"] and "No such file" in lines[2]
        assert (await task.wait()).exit_code == 1
        await first.signal(9)
        await first.wait()

    run(body())


def test_detach_keys_end_the_attachment_and_not_the_process(box: Box) -> None:
    async def body() -> None:
        client = Client(stdin=True, detach_keys=b"\x10\x11", initial=b"a")
        task = await box.start(terminal(box, "echo ready; cat"), attach=[client.attach], streams=tty(box))
        await client.read_until(b"ready")
        await client.send(b"\x10")
        await client.send(b"b\n")  # the first key is passed on after all
        await until(lambda: "a\x10b" in box.output())
        await client.send(b"c\x10")
        await client.send(b"\x11lost")
        await client.read_all()
        await asyncio.wait_for(client.detached.wait(), 30)
        again = Client(stdin=True)
        await task.attach(again.attach)
        await again.send(b"still here\n")
        await again.read_until(b"still here\r\n")
        assert b"lost" not in box.output().encode() and not task.exited
        await task.signal(9)
        await task.wait()

    run(body())


# --- logs ---------------------------------------------------------------------------------------


def json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_local_log_has_chunks_in_order_with_their_times(box: Box) -> None:
    status, _ = run(box.finish(box.sh("echo one; sleep 0.2; echo two >&2; sleep 0.2; echo -n three")))
    records = read_local(box.log / "log")
    assert [(stream, text) for stream, _, text in records] == [(1, b"one\n"), (2, b"two\n"), (1, b"three")]
    times = [time for _, time, _ in records]
    assert times == sorted(times) and times[2] - times[0] >= 300_000_000
    assert times[2] <= status.finished_ns


def json_setup(box: Box, **more: int) -> StreamSetup:
    return StreamSetup(log=LogSetup(driver="json-file", directory=box.log, **more))


def test_the_json_log_has_lines_as_docker_has_them(box: Box) -> None:
    script = r"""printf 'a <b> & "c"\n'; printf 'part'; sleep 0.2; printf ' and rest\n\n'; printf '\377\342\202\254';
                 sleep 0.2; echo err >&2"""
    run(box.finish(box.sh(script), streams=json_setup(box)))
    raw = (box.log / "json.log").read_text().splitlines()
    pattern = r'\{"log":".*","stream":"std(out|err)","time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"\}'
    assert all(re.fullmatch(pattern, line) for line in raw)
    assert raw[0].startswith(r'{"log":"a \u003cb\u003e \u0026 \"c\"\n","stream":"stdout"')
    entries = [(entry["stream"], entry["log"]) for entry in json_lines(box.log / "json.log")]
    assert sorted(entries) == sorted([
        ("stdout", 'a <b> & "c"\n'), ("stdout", "part and rest\n"), ("stdout", "\n"),
        ("stderr", "err\n"), ("stdout", "\ufffd\u20ac"),
    ])  # fmt: skip


def test_long_lines_of_the_json_log_are_split(box: Box) -> None:
    run(box.finish(box.sh("head -c 40000 /dev/zero; echo"), streams=json_setup(box)))
    entries = [entry["log"] for entry in json_lines(box.log / "json.log")]
    assert [len(entry) for entry in entries] == [16384, 16384, 40001 - 2 * 16384]
    assert entries[-1].endswith("\n") and "".join(entries) == "\0" * 40000 + "\n"


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_logs_are_rotated_and_bounded(box: Box, driver: str) -> None:
    name = "log" if driver == "local" else "json.log"
    log = LogSetup(driver=driver, directory=box.log, max_size_bytes=100_000, max_files=3)  # type: ignore[arg-type]
    script = "i=0; while test $i -lt 60; do head -c 9999 /dev/zero | tail -c 9999; echo; i=$((i+1)); done; echo end"
    run(box.finish(box.sh(script), streams=StreamSetup(log=log)))
    assert sorted(path.name for path in box.log.iterdir()) == [name, f"{name}.1", f"{name}.2"]
    for path in box.log.iterdir():
        assert path.stat().st_size < 100_000 + 6 * 65536 + 1000
    if driver == "local":
        whole = [record for suffix in (".2", ".1", "") for record in read_local(box.log / (name + suffix))]
        assert whole[-1][2].endswith(b"end\n")
        assert (box.log / "log.1").stat().st_size >= 100_000
    else:
        lines = [line for suffix in (".2", ".1", "") for line in json_lines(box.log / (name + suffix))]
        assert lines[-1]["log"] == "end\n" and all(line["log"].endswith("\n") for line in lines)


def test_one_file_alone_starts_anew_when_it_is_full(box: Box) -> None:
    log = LogSetup(driver="local", directory=box.log, max_size_bytes=10_000, max_files=1)
    run(box.finish(box.sh("head -c 20000 /dev/zero; sleep 0.2; echo end"), streams=StreamSetup(log=log)))
    assert [path.name for path in box.log.iterdir()] == ["log"]
    kept = b"".join(payload for _, _, payload in read_local(box.log / "log"))
    assert kept.endswith(b"end\n") and len(kept) < 20000


def test_a_log_goes_on_where_an_earlier_start_ended(box: Box) -> None:
    run(box.finish(box.sh("echo one")))
    run(box.finish(box.sh("echo two")))
    assert box.output() == "one\ntwo\n"


@pytest.mark.parametrize("torn", [b"\x09", bytes(30), struct.pack("<IBBHQ", 100, 1, 0, 0, 5) + b"x" * 50])
def test_a_torn_record_is_left_behind_in_a_file_of_its_own(box: Box, torn: bytes) -> None:
    (box.log / "log").write_bytes(torn)
    (box.log / "json.log").write_bytes(torn)
    run(box.finish(box.sh("echo one")))
    run(box.finish(box.sh("echo one"), streams=json_setup(box)))
    assert box.output() == "one\n" and (box.log / "log.1").read_bytes() == torn
    assert len(json_lines(box.log / "json.log")) == 1 and (box.log / "json.log.1").read_bytes() == torn


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_a_full_disk_stops_neither_container_nor_clients(box: Box, driver: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(box.log)], check=True)
    try:

        async def body() -> None:
            client = Client()
            log = LogSetup(driver=driver, directory=box.log)  # type: ignore[arg-type]
            script = "yes | head -c 3000000; echo end"
            task = await box.start(box.sh(script), attach=[client.attach], streams=StreamSetup(log=log))
            assert len(await client.read_all()) == 3000004
            status = await task.wait()
            assert status.exit_code == 0
            if driver == "local":
                kept = sum(len(payload) for _, _, payload in read_local(box.log / "log"))
            else:
                kept = sum(len(line["log"]) for line in json_lines(box.log / "json.log"))
            assert 0 < kept < 262144 and status.log_dropped_bytes == 3000004 - kept

        run(body())
    finally:
        subprocess.run(["umount", str(box.log)], check=True)


def test_a_log_that_cannot_be_opened_is_counted_as_dropped(box: Box) -> None:
    async def body() -> None:
        (box.log / "log").mkdir()
        status = await (await box.start(box.sh("echo lost"))).wait()
        assert (status.exit_code, status.log_dropped_bytes) == (0, 5)

    run(body())


def test_output_of_others_that_hold_the_pipe_does_not_delay_the_end_for_ever(box: Box) -> None:
    async def body() -> None:
        first = await box.start(box.sh("echo up; exec sleep 1000"))
        await until(lambda: "up" in box.output())
        pidfd = os.pidfd_open(first.pid)
        plan = Plan(
            clone_flags=0,
            before=(SetNs(slot=0, flags=NEWPID),),
            child=(
                SetNs(slot=0, flags=NAMESPACES & ~NEWPID),
                Exec(args=("sh", "-c", "sleep 1000 & echo last; exit 3"), env=(PATH,)),
            ),
        )
        client = Client()
        task = await box.start(
            plan, slots=[pidfd], state_dir=box.path / "exec", streams=StreamSetup(), attach=[client.attach]
        )
        os.close(pidfd)
        assert (await task.wait()).exit_code == 3
        assert await client.read_all() == b"last\n"
        await first.signal(9)
        await first.wait()

    run(body())
