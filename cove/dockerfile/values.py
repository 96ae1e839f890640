"""Values in instructions: durations, signals, ports, modes, mounts' sizes, platforms. Pure.

All raise DockerfileError.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from cove.dockerfile.errors import DockerfileError

_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_SIGNALS = frozenset(
    "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP "
    "TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX".split()
)
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_OCTAL = re.compile(r"[0-7]{1,7}", re.ASCII)
_SYMBOLIC = re.compile(r"[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+(?:,[ugoa]*(?:[-+=](?:[rwxXst]*|[ugo]))+)*")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_PLATFORM_PART = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ARCHITECTURES = {
    "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "amd64": ("amd64", ""), "i386": ("386", ""), "386": ("386", ""),
    "aarch64": ("arm64", ""), "arm64": ("arm64", ""), "armhf": ("arm", "v7"), "armel": ("arm", "v6"),
    "arm": ("arm", "v7"),
}  # fmt: skip
_KNOWN_ARCHITECTURES = frozenset(
    "386 amd64 arm arm64 loong64 mips mipsle mips64 mips64le ppc64 ppc64le riscv64 s390x wasm".split()
)
_SYSTEMS = frozenset("linux windows darwin freebsd wasi wasip1".split())


def duration_ns(what: str, text: str) -> int:
    """Nanoseconds of "1m30s", as Go's time.ParseDuration reads it; not negative, and not below 1 ms but 0."""
    total, at = 0, 0
    while match := _DURATION_PART.match(text, at):
        total += round(float(match[1]) * _UNITS_NS[match[2]])
        at = match.end()
    if text != "0" and (not text or at != len(text)):
        raise DockerfileError(f"{what}: {text!r} isn't a duration, e.g. 30s or 1m30s")
    if 0 < total < 10**6 or total >= 1 << 63:
        raise DockerfileError(f"{what}: {text} is out of bounds: 0, or from 1ms to 2562047h, e.g. 30s")
    return total


def stop_signal(text: str) -> str:
    """The signal as it is written: a number, TERM, SIGTERM or SIGRTMIN+3 (signal(7))."""
    name = text.upper().removeprefix("SIG")
    base, sign, offset = name[:5], name[5:6], name[6:]
    realtime = base in ("RTMIN", "RTMAX") and sign == ("+" if base == "RTMIN" else "-") and offset.isdecimal()
    if name in _SIGNALS or (name.isdecimal() and len(name) < 4 and 0 < int(name) < 65):
        return text
    if realtime and len(offset) < 3 and int(offset) <= 30:
        return text
    raise DockerfileError(f"STOPSIGNAL: {text!r} isn't a signal, e.g. SIGTERM or 15")


class Port(msgspec.Struct, frozen=True):
    """One word of EXPOSE."""

    ports: tuple[str, ...]  # 80/tcp
    written_protocol: str
    mapped: bool  # it names an address or a port of the host, which means nothing here


def expose_port(word: str) -> Port:
    """[[address:]host-port:]port[-port][/protocol]"""
    head, _, inner = word.rpartition(":")
    numbers, slash, protocol = inner.partition("/")
    if (slash and protocol.lower() not in ("tcp", "udp", "sctp", "")) or not numbers:
        raise DockerfileError(f"Invalid proto: {protocol}: expected tcp, udp or sctp, e.g. 53/udp" if numbers
                              else f"EXPOSE: {word!r} has no port, e.g. 80/tcp")  # fmt: skip
    first, last = _port_range("containerPort", numbers)
    if head:
        address, _, host = head.rpartition(":")
        if address:
            _check_address(address.removeprefix("[").removesuffix("]"))
        if host:
            host_first, host_last = _port_range("hostPort", host)
            if last != first and last - first != host_last - host_first:
                raise DockerfileError(f"invalid ranges for container and host ports: {numbers} and {host}")
    kind = protocol.lower() or "tcp"
    return Port(tuple(f"{port}/{kind}" for port in range(first, last + 1)), protocol, bool(head))


def _port_range(what: str, text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if match is None or not 1 <= first <= last <= 65535:
        raise DockerfileError(f"Invalid {what}: {text}: expected 1 to 65535, e.g. 80/tcp or 8000-8010")
    return first, last


def _check_address(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise DockerfileError(f"invalid IP address: {text}") from None


def check_mode(text: str) -> None:
    """--chmod: octal up to 07777, or symbolic as chmod(1) has it, e.g. u=rwX,go=rX."""
    if _OCTAL.fullmatch(text) and int(text, 8) <= 0o7777:
        return
    if not text[:1].isdecimal() and len(text) <= 64 and _SYMBOLIC.fullmatch(text):
        return
    raise DockerfileError(
        f"invalid chmod parameter: '{text}': expected octal up to 07777 or letters, e.g. 0755 or u=rwX,go=rX"
    )


def size_bytes(what: str, text: str) -> int:
    """Bytes of "64m", powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * (1 << 10 * "_kmgtp".index(match[2].lower() or "_"))) if match else -1
    if not 0 <= size < 1 << 62:
        raise DockerfileError(f"invalid value for {what}: {text}: expected a size, e.g. 64m")
    return size


class Platform(msgspec.Struct, frozen=True):
    """What an image is for."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def parse_platform(text: str, default: Platform) -> Platform:
    """os, architecture, or os/architecture[/variant]; what isn't said is as in `default` (containerd's platforms)."""
    parts = text.split("/")
    if not all(map(_PLATFORM_PART.fullmatch, parts)) or len(parts) > 3:
        raise DockerfileError(f"failed to parse platform {text!r}: expected e.g. linux/amd64 or linux/arm/v7")
    parts = [part.lower() for part in parts]
    if len(parts) == 1:
        if parts[0] in _SYSTEMS:
            return Platform(parts[0], default.architecture, default.variant)
        if parts[0] not in _ARCHITECTURES and parts[0] not in _KNOWN_ARCHITECTURES:
            raise DockerfileError(
                f"{text!r} is no known system or architecture, e.g. linux/amd64 or linux/arm/v7"
            )
        parts = [default.os, *parts]
    architecture, variant = _ARCHITECTURES.get(parts[1], (parts[1], ""))
    given = parts[2] if len(parts) == 3 else variant
    if given and given[0].isdecimal():
        given = f"v{given}"
    if (architecture, given) in (("arm64", "v8"), ("amd64", "v1")):
        given = ""
    return Platform(parts[0], architecture, given)
