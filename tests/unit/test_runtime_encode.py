"""The plan's encoding, and its decoder in C: what one writes the other reads, and nothing else passes."""

from __future__ import annotations

import inspect
import random
import subprocess
from collections.abc import Iterator
from typing import get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cove.runtime import steps as vocabulary
from cove.runtime.encode import MAX_PLAN, encode
from cove.runtime.steps import Exec, Hostname, MakeHostDir, PivotRoot, Plan, SetIds, Step, WriteHost
from tests.native_build import build

KINDS = [
    kind
    for _, kind in inspect.getmembers(vocabulary, inspect.isclass)
    if issubclass(kind, Step) and kind is not Step
]
LAST = Exec(args=("x",), env=())
BEFORE, PARENT, CHILD, EXIT = 0, 2, 3, 4
SLOTS = 3


class Decoder:
    """The C decoder, as a process that answers each plan with what it read."""

    def __init__(self, build_name: str) -> None:
        self.process = subprocess.Popen(
            [build(build_name) / "cove-init-pure", "plan", str(SLOTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )

    def read(self, plan: bytes) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(len(plan).to_bytes(4, "little") + plan)
        self.process.stdin.flush()
        size = self.process.stdout.read(4)
        assert len(size) == 4, "the decoder died"
        return self.process.stdout.read(int.from_bytes(size, "little")).decode()

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) == 0


@pytest.fixture(scope="module", params=["native", "native-asan"])
def decoder(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    made = Decoder(request.param)
    yield made
    made.close()


def show(section: int, step: Step) -> str:
    """What the decoder has to say of a step."""
    words = [str(section), type(step).__name__]
    for name in step.__struct_fields__:
        value = getattr(step, name)
        if isinstance(value, int):
            words.append(str(value & (2**64 - 1)))
        elif isinstance(value, str | bytes):
            raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
            words.append(f"'{raw.hex()}'")
        else:
            words.append("[" + ",".join(item.encode(errors="surrogateescape").hex() for item in value) + "]")
    return " ".join(words)


def expected(plan: Plan) -> str:
    lines = [f"clone {plan.clone_flags} {plan.cgroup_path.encode().hex()}"]
    sections = ((BEFORE, plan.before), (PARENT, plan.parent), (CHILD, plan.child), (EXIT, plan.exit))
    lines += [show(number, step) for number, section in sections for step in section]
    return "\n".join(lines) + "\n"


def example(kind: type[Step]) -> Step:
    """A step of that kind with a value in every field."""
    values: dict[str, object] = {}
    for name, hint in get_type_hints(kind).items():
        if name == "KIND":
            continue
        if hint is int:
            values[name] = {
                "flags": 0x20000000,
                "slot": SLOTS - 1,
                "go": 0,
                "status": 1,
                "first": 1,
                "last": 2,
            }.get(name, 7)
        elif hint is bytes:
            values[name] = bytes(range(16))
        elif hint is str:
            values[name] = {"key": "a/b", "name": "lo0"}.get(name, f"/path/{name}")
        else:
            values[name] = ("12", "34")
    return kind(**values)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_step_arrives_whole(decoder: Decoder, kind: type[Step]) -> None:
    step = example(kind)
    root = (vocabulary.BindRoot(path="/r"),) if kind is PivotRoot else ()
    candidates = [
        Plan(clone_flags=0x20000, before=(step,), child=(LAST,)),
        Plan(clone_flags=0x20000, parent=(step,), child=(LAST,)),
        Plan(clone_flags=0x20000, child=(*root, step, LAST)),
        Plan(clone_flags=0x20000, child=(step,)),
        Plan(clone_flags=0x20000, child=(LAST,), exit=(step,)),
    ]
    answers = [(plan, decoder.read(encode(plan))) for plan in candidates]
    accepted = [plan for plan, answer in answers if not answer.startswith("refused")]
    assert accepted, [answer for _, answer in answers]
    for plan, answer in answers:
        if plan in accepted:
            assert answer == expected(plan)
        else:
            assert answer.split(" ", 3)[3] in (
                "the step can't stand in this section",
                "the last step of the child must be Exec",
                "Exec must be the last step",
                "only a time namespace can be made before the clone",
                "only timens_offsets can be written before the clone",
            )


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
numbers = st.integers(-(2**63), 2**64 - 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.builds(Hostname, name=texts), max_size=5),
    st.lists(st.builds(WriteHost, path=texts.map("/{}".format), data=texts, optional=numbers), max_size=5),
    st.builds(
        Exec,
        args=st.lists(texts, max_size=20).map(lambda args: ("x", *args)),
        env=st.lists(texts).map(tuple),
        init=numbers,
    ),
    texts.map("/{}".format),
)
def test_any_plan_arrives_whole(
    decoder: Decoder, names: list[Hostname], writes: list[WriteHost], last: Exec, group: str
) -> None:
    plan = Plan(
        clone_flags=0x20000000,
        cgroup_path=group,
        before=tuple(writes),
        parent=tuple(writes[::2]),
        child=(*names, last),
        exit=tuple(writes[1:]),
    )
    assert decoder.read(encode(plan)) == expected(plan)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan(clone_flags=0), "child 0 the last step of the child must be Exec"),
        (Plan(clone_flags=0x100, child=(LAST,)), "clone 0 clone flags other than namespaces"),
        (Plan(clone_flags=0, cgroup_path="x", child=(LAST,)), "clone 0 the cgroup path must be absolute"),
        (Plan(clone_flags=0, child=(PivotRoot(), LAST)), "child 0 there is no root to pivot into"),
        (Plan(clone_flags=0, child=(LAST, LAST)), "child 0 Exec must be the last step"),
        (
            Plan(clone_flags=0, child=(*(vocabulary.BindRoot(path="/x"),) * 2, LAST)),
            "child 1 the root is mounted already",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.SetNs(slot=SLOTS, flags=1), LAST)),
            "child 0 a slot is beyond the descriptors that were given",
        ),
        (
            Plan(clone_flags=0, before=(MakeHostDir(path="relative"),), child=(LAST,)),
            "before 0 a host path must be absolute",
        ),
        (
            Plan(clone_flags=0, before=(MakeHostDir(path="/" + "x" * 4095),), child=(LAST,)),
            "before 0 a path has 1 to 4095 bytes",
        ),
        (
            Plan(clone_flags=0, child=(SetIds(uid=2**32, gid=0), LAST)),
            "child 0 a number is beyond 32 bits",
        ),
        (
            Plan(clone_flags=0, child=(SetIds(uid=0, gid=0, groups=("4294967295",)), LAST)),
            "child 0 a group is beyond 4294967294",
        ),
        (
            Plan(clone_flags=0, child=(SetIds(uid=0, gid=0, groups=("+1",)), LAST)),
            "child 0 a group isn't a decimal number",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.Sysctl(key="../x", value=""), LAST)),
            "child 0 expected a relative",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.Seccomp(program=b"123"), LAST)),
            "child 0 a program has 1 to 4096",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.MakeDir(path=""), LAST)),
            "child 0 a path has 1 to 4095 bytes",
        ),
        (Plan(clone_flags=0, child=(Exec(args=(), env=()),)), "child 0 there is nothing to execute"),
        (
            Plan(clone_flags=0, before=(vocabulary.Unshare(flags=0x40000000),), child=(LAST,)),
            "before 0 only a time namespace can be made before the clone",
        ),
        (
            Plan(
                clone_flags=0, before=(vocabulary.WriteSelf(name="oom_score_adj", data="1"),), child=(LAST,)
            ),
            "before 0 only timens_offsets can be written before the clone",
        ),
        (
            Plan(clone_flags=0, child=(*(vocabulary.Hold(go=0, status=1, program="x"),) * 2, LAST)),
            "child 1 the process is held already",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.RunHook(path="bin/hook"), LAST)),
            "child 0 a host path must be absolute",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.Affinity(mask=b"1234"), LAST)),
            "child 0 a mask has 8 to 1024 bytes, whole words",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.Preserve(first=2, last=1), LAST)),
            "child 0 the last slot comes before the first",
        ),
        (
            Plan(clone_flags=0, child=(vocabulary.Umask(mask=0), vocabulary.Preserve(first=0, last=0), LAST)),
            "child 1 Preserve must be the first step",
        ),
    ],
)
def test_a_plan_that_cannot_work_is_refused_with_the_step_and_a_reason(
    decoder: Decoder, plan: Plan, reason: str
) -> None:
    _, section, rest = decoder.read(encode(plan)).split(" ", 2)
    names = ("before", "clone", "parent", "child", "exit")
    assert f"{names[int(section)]} {rest}".startswith(reason)


def whole_plan() -> bytes:
    roots = (vocabulary.MountRoot, vocabulary.AttachRoot)  # BindRoot is there
    others = (Exec, PivotRoot, vocabulary.Preserve, *roots)
    child = [example(kind) for kind in KINDS if kind not in others]
    allowed = [example(vocabulary.Preserve), *(step for step in child if type(step).KIND >= 16)]
    before = (MakeHostDir(path="/a"), WriteHost(path="/b", data="c"))
    return encode(Plan(clone_flags=0x20000, before=before, child=(*allowed, LAST), exit=before))


def test_a_plan_cut_short_or_prolonged_is_refused(decoder: Decoder) -> None:
    plan = whole_plan()
    assert not decoder.read(plan).startswith("refused")
    for size in range(0, len(plan), 5):
        assert decoder.read(plan[:size]).startswith("refused")
        sized = plan[:16] + size.to_bytes(8, "little") + plan[24:size]
        assert decoder.read(sized[:size]).startswith("refused")
    assert decoder.read(plan + bytes(8)).startswith("refused")


def test_flipped_bits_do_no_harm(decoder: Decoder) -> None:
    plan = whole_plan()
    chance = random.Random(3)
    for _ in range(1500):
        broken = bytearray(plan)
        for _ in range(chance.choice((1, 1, 2, 8))):
            broken[chance.randrange(len(plan))] ^= 1 << chance.randrange(8)
        decoder.read(bytes(broken))


def test_values_without_an_encoding_are_named() -> None:
    with pytest.raises(ValueError, match=r"Hostname\.name has a NUL byte"):
        encode(Plan(clone_flags=0, child=(Hostname(name="a\0b"), LAST)))
    with pytest.raises(
        ValueError, match=r"SetIds\.uid is 18446744073709551616: expected a number of 64 bits"
    ):
        encode(Plan(clone_flags=0, child=(SetIds(uid=2**64, gid=0), LAST)))
    with pytest.raises(ValueError, match=f"at most {MAX_PLAN} are possible"):
        encode(Plan(clone_flags=0, child=(Exec(args=("x" * MAX_PLAN,), env=()),)))
