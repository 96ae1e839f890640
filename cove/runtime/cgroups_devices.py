"""The devices controller: Docker's default rules, reading of rules, v1 lines and v2's BPF program. Pure.

The last rule that matches decides, and what no rule matches is refused. v1 has files for that, v2 a program
of type BPF_PROG_TYPE_CGROUP_DEVICE (bpf(2)), which gets `struct bpf_cgroup_dev_ctx` (linux/bpf.h).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from cove.model.errors import Invalid
from cove.runtime.oci import DeviceRule

DENY_ALL = DeviceRule(allow=False, access="rwm")
ALLOW_ALL = DeviceRule(allow=True, access="rwm")


def _character(major: int, minor: int | None, access: str = "rwm") -> DeviceRule:
    return DeviceRule(allow=True, type="c", major=major, minor=minor, access=access)


DEFAULT_RULES = (
    DENY_ALL,
    DeviceRule(allow=True, type="c", access="m"),  # mknod of anything: opening is another matter
    DeviceRule(allow=True, type="b", access="m"),
    _character(1, 3),  # null
    _character(1, 5),  # zero
    _character(1, 7),  # full
    _character(1, 8),  # random
    _character(1, 9),  # urandom
    _character(5, 0),  # tty
    _character(5, 1),  # console
    _character(5, 2),  # ptmx
    _character(136, None),  # /dev/pts/*
)

_RULE = re.compile(r"([acb]) ([0-9]{1,10}|\*):([0-9]{1,10}|\*) ([rwm]{1,3})")


def parse_rule(text: str) -> DeviceRule:
    """One `--device-cgroup-rule`: "c 1:3 rwm", with * for any number. Raises Invalid in Docker's words."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise Invalid(
            f"invalid device cgroup rule format: '{text}': use TYPE MAJOR:MINOR ACCESS, e.g. 'c 42:* rmw'"
        )
    kind, major, minor, access = match.groups()
    return DeviceRule(
        allow=True, type=kind, access=access,
        major=None if major == "*" else int(major), minor=None if minor == "*" else int(minor),
    )  # fmt: skip


def is_any(rule: DeviceRule) -> bool:
    """Whether a rule is about every device in every way."""
    everything = rule.type in ("", "a") and rule.major in (None, -1) and rule.minor in (None, -1)
    return everything and set(rule.access or "rwm") == set("rwm")


def is_unrestricted(rules: Iterable[DeviceRule]) -> bool:
    """Whether the rules allow everything (as a privileged container's do)."""
    allowed = False
    for rule in rules:
        if is_any(rule):
            allowed = rule.allow
        elif not rule.allow:
            allowed = False
    return allowed


def effective_rules(rules: tuple[DeviceRule, ...]) -> tuple[DeviceRule, ...]:
    """The rules of a config, and after them those of the default devices, which every container may use whatever the
    config says (config-linux.md, "Default Devices"). None at all: the default rules."""
    if not rules:
        return DEFAULT_RULES
    if rules[: len(DEFAULT_RULES)] == DEFAULT_RULES or is_unrestricted(rules):
        return rules
    return rules + DEFAULT_RULES[1:]


def v1_lines(rules: Sequence[DeviceRule]) -> list[tuple[str, str]]:
    """(file, line) pairs for a v1 cgroup, to be written in order: ("devices.deny", "a"), …"""
    return [("devices.allow" if rule.allow else "devices.deny", v1_line(rule)) for rule in rules]


def v1_line(rule: DeviceRule) -> str:
    if is_any(rule):
        return "a"
    return f"{rule.type or 'a'} {_star(rule.major)}:{_star(rule.minor)} {rule.access or 'rwm'}"


_Key = tuple[str, int | None, int | None]  # b or c, major, minor (None: any)


def v1_changes(listed: str, rules: Sequence[DeviceRule]) -> list[tuple[str, str]]:
    """What to write, as `v1_lines`, to a cgroup whose devices.list is `listed`, so that `rules` hold, without refusing
    in between what is allowed before and after: what is new is allowed, then what went is denied."""
    before_all, before = _exceptions(
        parse_rule(line) for line in listed.splitlines() if _RULE.fullmatch(line.strip())
    )
    after_all, after = _exceptions(rules)
    if after_all:  # everything but some
        return [("devices.allow", "a"), *(("devices.deny", line) for line in _lines(after, {}))]
    if before_all:
        return [("devices.deny", "a"), *(("devices.allow", line) for line in _lines(after, {}))]
    return [
        *(("devices.allow", line) for line in _lines(after, before)),
        *(("devices.deny", line) for line in _lines(before, after)),
    ]


def _exceptions(rules: Iterable[DeviceRule]) -> tuple[bool, dict[_Key, str]]:
    """Rules as v1 keeps them: whether everything is allowed, and the exceptions to that."""
    allowed = False
    exceptions: dict[_Key, str] = {}
    for rule in rules:
        if is_any(rule):
            allowed = rule.allow
            exceptions.clear()
            continue
        for kind in rule.type if rule.type in ("b", "c") else "bc":
            key = (kind, _number(rule.major), _number(rule.minor))
            access, old = rule.access or "rwm", exceptions.get(key, "")
            if rule.allow == allowed:
                exceptions[key] = "".join(letter for letter in old if letter not in access)
            else:
                exceptions[key] = "".join(letter for letter in "rwm" if letter in old + access)
    return allowed, {key: access for key, access in exceptions.items() if access}


def _number(number: int | None) -> int | None:
    return None if number is None or number < 0 else number


def _lines(wanted: dict[_Key, str], without: dict[_Key, str]) -> Iterator[str]:
    """Lines for the access in `wanted` that isn't in `without`."""
    for (kind, major, minor), access in wanted.items():
        more = "".join(letter for letter in access if letter not in without.get((kind, major, minor), ""))
        if more:
            yield f"{kind} {_star(major)}:{_star(minor)} {more}"


def _star(number: int | None) -> str:
    return "*" if number is None or number < 0 else str(number)


def device_allow(rules: Sequence[DeviceRule]) -> list[tuple[str, str]] | None:
    """Rules as systemd's DeviceAllow, (device, access); None when it has no words for one of them: exceptions from
    everything, or a minor number of any major."""
    everything, exceptions = _exceptions(rules)
    if everything:
        return None
    result = []
    for (kind, major, minor), access in exceptions.items():
        word = "char" if kind == "c" else "block"
        if major is None and minor is not None:
            return None
        if major is None:
            device = f"{word}-*"
        elif minor is None:
            device = f"{word}-{major}"
        else:
            device = f"/dev/{word}/{major}:{minor}"
        result.append((device, access))
    return result


# --- v2 -------------------------------------------------------------------------------------------

_TYPE_BITS = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*

# opcodes of linux/bpf.h: class | size or operation | source
_LDX_W = 0x61
_AND32_K = 0x54
_AND32_X = 0x5C
_RSH32_K = 0x74
_MOV32_X = 0xBC
_MOV64_K = 0xB7
_JNE_K = 0x55
_JEQ_K = 0x15
_JNE_X = 0x5D
_EXIT = 0x95

# registers: 1 is the context on entry; 2 type, 3 access, 4 major, 5 minor, 6 scratch
_Instruction = tuple[int, int, int, int, int]  # code, destination, source, offset, immediate


def _instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> _Instruction:
    return (code, dst, src, off, imm)


@lru_cache(maxsize=128)
def v2_program(rules: tuple[DeviceRule, ...]) -> bytes:
    """The program for `rules`, as struct bpf_insn[]: 1 allows, 0 refuses (EPERM).

    An allow rule has to cover all of the access asked for; a deny rule matches when it covers some of it.
    """
    program = [
        _instruction(_LDX_W, 2, 1, 0),
        _instruction(_AND32_K, 2, imm=0xFFFF),
        _instruction(_LDX_W, 3, 1, 0),
        _instruction(_RSH32_K, 3, imm=16),
        _instruction(_LDX_W, 4, 1, 4),
        _instruction(_LDX_W, 5, 1, 8),
    ]
    decided = False
    for rule in reversed(rules):
        block, unconditional = _rule_block(rule)
        program += block
        if unconditional:  # older rules can't be reached; the verifier refuses dead code
            decided = True
            break
    if not decided:
        program += _verdict(allow=False)
    return b"".join(
        struct.pack("<BBhI", code, src << 4 | dst, off, imm & 0xFFFFFFFF)
        for code, dst, src, off, imm in program
    )


def _verdict(*, allow: bool) -> list[_Instruction]:
    return [_instruction(_MOV64_K, 0, imm=int(allow)), _instruction(_EXIT)]


def _rule_block(rule: DeviceRule) -> tuple[list[_Instruction], bool]:
    """Tests that jump past the verdict when the rule doesn't match; the offsets are filled in last."""
    tests: list[_Instruction] = []
    if rule.type in _TYPE_BITS:
        tests.append(_instruction(_JNE_K, 2, imm=_TYPE_BITS[rule.type]))
    access = 0
    for letter in rule.access or "rwm":
        access |= _ACCESS_BITS[letter]
    if access != 7:
        tests += [_instruction(_MOV32_X, 6, 3), _instruction(_AND32_K, 6, imm=access)]
        tests.append(_instruction(_JNE_X, 6, 3) if rule.allow else _instruction(_JEQ_K, 6, imm=0))
    if rule.major is not None and rule.major >= 0:
        tests.append(_instruction(_JNE_K, 4, imm=rule.major))
    if rule.minor is not None and rule.minor >= 0:
        tests.append(_instruction(_JNE_K, 5, imm=rule.minor))
    block = tests + _verdict(allow=rule.allow)
    patched = [
        (code, dst, src, len(block) - index - 1 if code in (_JNE_K, _JEQ_K, _JNE_X) else off, imm)
        for index, (code, dst, src, off, imm) in enumerate(block)
    ]
    return patched, not tests
