"""A crowd at an engine's door: many clients, each of which takes containers through whole lives, without pause.

Every answer is checked: output, log, exit code, the list after it. Beside the crowd one client lists all
containers again and again, in a process of its own, so that only the engine's time shows in its figures.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from bench.client import ApiError, Client
from bench.engines import FAILURES, body, create, remove, start
from bench.images import BUSYBOX

THREADS = 50  # in one process
PAUSE_S = 0.02  # between two lists
PATIENCE_S = 60.0


@dataclass(slots=True)
class Seen:
    """What became of it: whole lives, what went wrong (the first few, in words), and the lists' times in ms."""

    lives: int = 0
    wrong: int = 0
    words: list[str] = field(default_factory=list)
    lists_ms: list[float] = field(default_factory=list)

    def add(self, other: Seen) -> None:
        self.lives += other.lives
        self.wrong += other.wrong
        self.words = (self.words + other.words)[:5]
        self.lists_ms += other.lists_ms


def crowd(
    socket: Path, *, clients: int, seconds: float, network: str, listed: int, image: str = BUSYBOX
) -> Seen:
    """Let `clients` live for so long beside a client that lists at least `listed` containers."""
    context = multiprocessing.get_context("fork")
    until = time.monotonic() + seconds
    groups = [min(THREADS, clients - first) for first in range(0, clients, THREADS)]
    works: list[Callable[[], Seen]] = [
        lambda size=size, first=first: _group(socket, first * THREADS, size, until, network, image)  # type: ignore[misc]
        for first, size in enumerate(groups)
    ]
    works.append(lambda: _list(socket, until, listed))
    seen = Seen()
    pipes = []
    for work in works:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(theirs, work), daemon=True)
        process.start()
        theirs.close()
        pipes.append((ours, process))
    for ours, process in pipes:
        try:
            seen.add(ours.recv())
        except EOFError:
            seen.add(Seen(wrong=1, words=["a process of the crowd died"]))
        process.join()
    return seen


def _report(pipe: Connection, work: Callable[[], Seen]) -> None:
    pipe.send(work())


def _group(socket: Path, first: int, size: int, until: float, network: str, image: str) -> Seen:
    results = [Seen() for _ in range(size)]
    threads = [
        threading.Thread(target=_live, args=(socket, first + number, until, network, image, results[number]))
        for number in range(size)
    ]
    for thread in threads:
        thread.start()
    total = Seen()
    for thread, result in zip(threads, results, strict=True):
        thread.join()
        total.add(result)
    return total


def _live(socket: Path, number: int, until: float, network: str, image: str, seen: Seen) -> None:
    turn = 0
    with Client(socket) as client, Client(socket) as raw:
        while time.monotonic() < until:
            turn += 1
            try:
                live_once(client, raw, f"{number}-{turn}", network, image)
                seen.lives += 1
            except (*FAILURES, AssertionError, TimeoutError) as error:
                seen.wrong += 1
                seen.words = [*seen.words, f"client {number}, turn {turn}: {error}"][:5]
                client.close()
                raw.close()
                time.sleep(0.5)


def live_once(client: Client, raw: Client, word: str, network: str, image: str) -> None:
    """One whole life, every step of it checked. Raises ApiError, AssertionError, OSError."""
    request = {**body(["sh", "-c", f"echo {word}; exec sleep 1000"], network), "Image": image}
    name = create(client, request)
    try:
        start(client, name)
        made = client.call(
            "POST", f"/containers/{name}/exec", {"AttachStdout": True, "Cmd": ["sh", "-c", f"echo {word}"]}
        )
        size = raw.hijack(f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False})
        assert size == 8 + len(word) + 1, f"exec gave {size} bytes for {word!r}"
        deadline = time.monotonic() + PATIENCE_S
        while word.encode() not in client.exchange("GET", f"/containers/{name}/logs?stdout=1", b"")[1]:
            assert time.monotonic() < deadline, f"the log of {name[:12]} never had its line"
            time.sleep(0.05)
        client.call("POST", f"/containers/{name}/stop?t=0")
        state = client.call("GET", f"/containers/{name}/json")["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 137), f"after stop: {state}"
    finally:
        remove(client, name)
    status, _ = client.exchange("GET", f"/containers/{name}/json", b"")
    assert status == 404, f"{name[:12]} is still there after its removal: {status}"


def _list(socket: Path, until: float, listed: int) -> Seen:
    seen = Seen()
    with Client(socket) as client:
        while time.monotonic() < until:
            begin = time.perf_counter()
            try:
                status, content = client.exchange("GET", "/containers/json?all=1", b"")
                if status != 200 or content.count(b'"Id":') < listed:
                    raise ApiError("list", status, f"shows {content.count(b'Id')} containers, not {listed}")
            except FAILURES as error:
                seen.wrong += 1
                seen.words = [*seen.words, f"the list: {error}"][:5]
                client.close()
            seen.lists_ms.append((time.perf_counter() - begin) * 1e3)
            time.sleep(PAUSE_S)
    return seen
