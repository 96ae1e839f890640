"""The pure parts of cove-init: escaping, times, detach keys; and the fuzzer on the plan decoder."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cove.runtime.encode import encode
from cove.runtime.steps import Exec, Hold, MemoryPolicy, Pause, Plan, RunHook, SetIds, SetNs, Step
from tests.native_build import build

quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Pure:
    """One part of cove-init-pure: frames in, frames out."""

    def __init__(self, build_name: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [build(build_name) / "cove-init-pure", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self, data: bytes) -> bytes:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(len(data).to_bytes(4, "little") + data)
        self.process.stdin.flush()
        size = self.process.stdout.read(4)
        assert len(size) == 4, "the process died"
        return self.process.stdout.read(int.from_bytes(size, "little"))

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) == 0


@pytest.fixture(scope="module", params=["native", "native-asan"])
def part(request: pytest.FixtureRequest) -> Iterator[dict[str, Pure]]:
    parts = {
        "json": Pure(request.param, "json"),
        "time": Pure(request.param, "time"),
        "abab": Pure(request.param, "detach", "abab"),
        "aab": Pure(request.param, "detach", "aab"),
        "none": Pure(request.param, "detach", ""),
    }
    yield parts
    for each in parts.values():
        each.close()


def go_text(data: bytes) -> str:
    """What Go's decoder makes of bytes: each that isn't part of UTF-8 becomes U+FFFD."""
    text = ""
    while data:
        for size in (1, 2, 3, 4):
            try:
                text += data[:size].decode()
                break
            except UnicodeDecodeError:
                pass
        else:
            text, size = text + "\ufffd", 1
        data = data[size:]
    return text


@quick
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
@example(bytes(range(256)))
@example("\u2028 \u2029 \ud7ff \ue000 \U0010ffff".encode())
@example(b"\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80\xe2\x80")
def test_escaped_bytes_are_json_and_mean_what_go_means(part: dict[str, Pure], data: bytes) -> None:
    escaped = part["json"](data)
    assert json.loads(b'"' + escaped + b'"') == go_text(data)
    assert not set(escaped) & set(b"<>&\n")


def test_escapes_are_those_of_docker(part: dict[str, Pure]) -> None:
    assert part["json"](b'<a>&"\\\n\r\t\x01\xff') == rb"\u003ca\u003e\u0026\"\\\n\r\u0009\u0001\ufffd"


@quick
@given(st.integers(0, 2**62))
@example(0)
@example(951782400 * 10**9)  # 29 February 2000
@example(1709164800 * 10**9 + 120)
@example(4107542399 * 10**9 + 999999999)  # the end of February 2100
def test_times_are_rfc_3339_without_trailing_zeros(part: dict[str, Pure], time_ns: int) -> None:
    second = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=time_ns // 10**9)
    fraction = f".{time_ns % 10**9:09}".rstrip("0").rstrip(".")
    assert part["time"](time_ns.to_bytes(8, "little")).decode() == f"{second:%Y-%m-%dT%H:%M:%S}{fraction}Z"


@quick
@given(st.sampled_from(["abab", "aab", "none"]), st.text("abc", max_size=60))
@example("abab", "abaabab")
@example("aab", "aaab")
def test_detach_keys_are_found_wherever_they_are_split(part: dict[str, Pure], keys: str, typed: str) -> None:
    answer = part[keys](typed.encode()).decode()
    found = -1 if keys == "none" else typed.find(keys)
    if found >= 0:
        assert answer == "!" + typed[:found]
        return
    withheld = (
        max((n for n in range(len(keys)) if typed.endswith(keys[:n])), default=0) if keys != "none" else 0
    )
    assert answer == typed[: len(typed) - withheld]


def test_the_fuzzer_finds_nothing_in_the_plan_decoder(tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("the fuzz target is built with clang's libFuzzer, and clang isn't installed")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    last = Exec(args=("sh", "-c", "true"), env=("A=b",))
    (corpus / "exec").write_bytes(encode(Plan(clone_flags=0, child=(last,))))
    (corpus / "ids").write_bytes(
        encode(Plan(clone_flags=0, child=(SetIds(uid=1, gid=2, groups=("3",)), last)))
    )
    hook = RunHook(path="/bin/hook", args=("hook", "a"), env=("A=b",), timeout_ms=5)
    held = (
        Pause(name="hooks"),
        hook,
        MemoryPolicy(mode=2, nodes=bytes(8)),
        Hold(go=0, status=1, program="sh"),
        last,
    )
    (corpus / "held").write_bytes(
        encode(Plan(clone_flags=0x10000000, before=(SetNs(slot=2, flags=0x40000000),), child=held))
    )
    values = {"str": "dev/x", "int": 1, "bool": True, "bytes": bytes(16), "tuple[str, ...]": ("a", "1")}
    for kind in Step.__subclasses__():  # one of each, in a section that may have it, or not
        step = kind(**{name: values[kind.__annotations__[name]] for name in kind.__struct_fields__})
        (corpus / f"{kind.__name__}-child").write_bytes(encode(Plan(clone_flags=0, child=(step, last))))
        (corpus / f"{kind.__name__}-before").write_bytes(
            encode(Plan(clone_flags=0, before=(step,), parent=(step,), child=(last,), exit=(step,)))
        )
    done = subprocess.run(
        [
            build("native-fuzz") / "fuzz-plan",
            "-max_total_time=10",
            "-max_len=4096",
            "-rss_limit_mb=1024",
            corpus,
        ],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
