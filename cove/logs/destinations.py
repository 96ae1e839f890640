"""Where a driver sends lines to, as data: the options of syslog, gelf, fluentd and journald, checked. Pure.

Names, options, defaults and wording are Docker's (moby, daemon/logger). `Shipment` is what the shipper reads
from a log's `ship/destination`, a format of our own: an upgrade has to read what its predecessor wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from cove.logs.options import BINARY, parse_count, parse_duration, parse_size, parse_switch
from cove.model.errors import Invalid

FACILITIES = (
    "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp".split()
    + [""] * 4
    + [f"local{number}" for number in range(8)]
)
_DAEMON_FACILITY = 3


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection is protected; empty paths: the host's authorities, no certificate of our own."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = True


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a connection. `unix` and `unixgram` have a path, the others host and port."""

    kind: Literal["udp", "tcp", "unix", "unixgram"]
    host: str = ""
    port: int = 0
    path: str = ""
    tls: Tls | None = None

    def __str__(self) -> str:
        if self.path:
            return f"{self.kind}://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}{'+tls' if self.tls else ''}://{host}:{self.port}"


class Syslog(msgspec.Struct, frozen=True, kw_only=True, tag="syslog"):
    """`address` None: this host's own syslog daemon."""

    address: Address | None
    facility: int
    format: Literal["", "rfc3164", "rfc5424", "rfc5424micro"]


class Gelf(msgspec.Struct, frozen=True, kw_only=True, tag="gelf"):
    address: Address
    compression: Literal["gzip", "zlib", "none"] = "gzip"
    level: int = 1  # -1 (zlib's default) to 9
    retry_s: float = 1.0


class Fluentd(msgspec.Struct, frozen=True, kw_only=True, tag="fluentd"):
    """Durations in seconds; 0: none."""

    address: Address
    nanoseconds: bool = False  # times as EventTime
    acknowledge: bool = False
    retry_s: float = 1.0
    reconnect_s: float = 0.0
    write_timeout_s: float = 0.0
    read_timeout_s: float = 0.0


class Journald(msgspec.Struct, frozen=True, kw_only=True, tag="journald"):
    pass


Destination = Syslog | Gelf | Fluentd | Journald


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The container that the lines come from."""

    container_id: str
    container_name: str
    image_id: str
    image_name: str
    command: str
    created_ns: int
    host_name: str
    tag: str
    attributes: dict[str, str] = {}


class Shipment(msgspec.Struct, frozen=True, kw_only=True):
    """What the shipper has to know about one log."""

    source: Source
    destination: Destination


def parse_destination(driver: str, options: Mapping[str, str]) -> Destination:
    """The destination that a driver's own options name. Raises Invalid; the options' names are checked already."""
    return _PARSERS[driver](options)


# --- syslog -------------------------------------------------------------------------------

SYSLOG_OPTIONS = frozenset(
    "syslog-address syslog-facility syslog-tls-ca-cert syslog-tls-cert syslog-tls-key syslog-tls-skip-verify "
    "syslog-format".split()
)


def _parse_syslog(options: Mapping[str, str]) -> Syslog:
    form = options.get("syslog-format", "")
    if form not in ("", "rfc3164", "rfc5424", "rfc5424micro"):
        raise Invalid(
            f"Invalid syslog format: syslog-format={form}: expected rfc3164, rfc5424 or rfc5424micro"
        )
    tls = Tls(
        ca=options.get("syslog-tls-ca-cert", ""),
        certificate=options.get("syslog-tls-cert", ""),
        key=options.get("syslog-tls-key", ""),
        verify="syslog-tls-skip-verify" not in options,
    )
    if bool(tls.certificate) != bool(tls.key):
        raise Invalid(
            "syslog-tls-cert and syslog-tls-key belong together: name both files, "
            "e.g. syslog-tls-cert=/etc/ssl/client.pem and syslog-tls-key=/etc/ssl/client.key"
        )
    return Syslog(
        address=_syslog_address(options.get("syslog-address", ""), tls),
        facility=_facility(options.get("syslog-facility", "")),
        format=form,  # type: ignore[arg-type]  # checked above
    )


def _syslog_address(text: str, tls: Tls) -> Address | None:
    if not text:
        return None
    url = _split_url("syslog-address", text)
    if url.scheme in ("unix", "unixgram"):
        if not url.path.startswith("/"):
            raise Invalid(
                f"syslog-address={text}: expected an absolute path, e.g. {url.scheme}:///run/log.sock"
            )
        return Address(kind=url.scheme, path=url.path)  # type: ignore[arg-type]
    if url.scheme not in ("udp", "tcp", "tcp+tls"):
        raise Invalid(
            f"unsupported scheme: '{url.scheme}': expected udp, tcp, tcp+tls, unix or unixgram in "
            "syslog-address, e.g. udp://192.0.2.1:514"
        )
    host, port = _host_port("syslog-address", text, url, default_port=514)
    if url.scheme == "tcp+tls":
        return Address(kind="tcp", host=host, port=port, tls=tls)
    return Address(kind=url.scheme, host=host, port=port)  # type: ignore[arg-type]


def _facility(text: str) -> int:
    if not text:
        return _DAEMON_FACILITY
    if text in FACILITIES:
        return FACILITIES.index(text)
    if text.isascii() and text.isdecimal() and len(text) <= 2 and int(text) <= 23:
        return int(text)
    raise Invalid(f"invalid syslog facility: syslog-facility={text}: expected a name or 0 to 23, e.g. local0")


# --- gelf ---------------------------------------------------------------------------------

GELF_OPTIONS = frozenset(
    "gelf-address gelf-compression-level gelf-compression-type gelf-tcp-max-reconnect "
    "gelf-tcp-reconnect-delay".split()
)


def _parse_gelf(options: Mapping[str, str]) -> Gelf:
    text = options.get("gelf-address", "")
    if not text:
        raise Invalid("gelf-address is a required parameter, e.g. gelf-address=udp://192.0.2.1:12201")
    url = _split_url("gelf-address", text)
    if url.scheme not in ("udp", "tcp"):
        raise Invalid(f"gelf: endpoint needs to be TCP or UDP: gelf-address={text}")
    host, port = _host_port("gelf-address", text, url, default_port=0)
    if not port:
        raise Invalid(f"gelf: please provide gelf-address as proto://host:port: gelf-address={text}")
    for option in ("gelf-compression-level", "gelf-compression-type"):
        if option in options and url.scheme != "udp":
            raise Invalid(f"compression is only supported on UDP: leave {option} out")
    for option in ("gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"):
        if option in options:
            if url.scheme != "tcp":
                raise Invalid(f'"{option}" is only valid for TCP')
            if not (options[option].isascii() and options[option].isdecimal()):
                raise Invalid(f'"{option}" must be a positive integer')
    kind = options.get("gelf-compression-type", "gzip")
    if kind not in ("gzip", "zlib", "none"):
        raise Invalid(
            f'unknown value "{kind}" for log opt "gelf-compression-type" for gelf log driver: '
            "expected gzip, zlib or none"
        )
    return Gelf(
        address=Address(kind=url.scheme, host=host, port=port),  # type: ignore[arg-type]
        compression=kind,  # type: ignore[arg-type]
        level=_gelf_level(options.get("gelf-compression-level", "1")),
        retry_s=float(min(int(options.get("gelf-tcp-reconnect-delay", "1")[:6]), 3600)),
    )


def _gelf_level(text: str) -> int:
    try:
        return parse_count("gelf-compression-level", text, -1, 9, 1)
    except Invalid:
        raise Invalid(
            f'unknown value "{text}" for log opt "gelf-compression-level" for gelf log driver: expected -1 to 9'
        ) from None


# --- fluentd ------------------------------------------------------------------------------

FLUENTD_OPTIONS = frozenset(
    "fluentd-address fluentd-async fluentd-async-reconnect-interval fluentd-buffer-limit fluentd-max-retries "
    "fluentd-request-ack fluentd-retry-wait fluentd-sub-second-precision fluentd-write-timeout "
    "fluentd-read-timeout".split()
)
_MOST_RETRIES = (1 << 31) - 1


def _parse_fluentd(options: Mapping[str, str]) -> Fluentd:
    def switch(option: str) -> bool:
        return parse_switch(option, options[option]) if options.get(option) else False

    def duration(option: str, default: float) -> float:
        return parse_duration(option, options[option]) if options.get(option) else default

    reconnect_s = duration("fluentd-async-reconnect-interval", 0.0)
    if reconnect_s and not 0.1 <= reconnect_s <= 10:
        raise Invalid(
            "invalid value for fluentd-async-reconnect-interval: value "
            f'("{options["fluentd-async-reconnect-interval"]}") must be between 100ms and 10s'
        )
    # Checked and not needed: the local copy is the buffer, and sending never holds the container back.
    switch("fluentd-async")
    if options.get("fluentd-buffer-limit"):
        parse_size("fluentd-buffer-limit", options["fluentd-buffer-limit"], BINARY)
    if options.get("fluentd-max-retries"):
        parse_count("fluentd-max-retries", options["fluentd-max-retries"], 0, _MOST_RETRIES, 10)
    return Fluentd(
        address=_fluentd_address(options.get("fluentd-address", "")),
        nanoseconds=switch("fluentd-sub-second-precision"),
        acknowledge=switch("fluentd-request-ack"),
        retry_s=duration("fluentd-retry-wait", 1.0),
        reconnect_s=reconnect_s,
        write_timeout_s=duration("fluentd-write-timeout", 0.0),
        read_timeout_s=duration("fluentd-read-timeout", 0.0),
    )


def _fluentd_address(text: str) -> Address:
    def wrong(why: str) -> Invalid:
        return Invalid(f"invalid fluentd-address ({text}): {why}, e.g. 192.0.2.1:24224")

    if not text:
        return Address(kind="tcp", host="127.0.0.1", port=24224)
    url = _split_url("fluentd-address", text if "://" in text else f"tcp://{text}")
    if url.scheme == "unix":
        if not url.path.lstrip("/"):
            raise wrong("path is empty")
        return Address(kind="unix", path=url.path)
    if url.scheme not in ("tcp", "tls"):
        raise wrong(f"unsupported scheme: '{url.scheme}'")
    if url.path:
        raise wrong("should not contain a path element")
    host, port = _host_port("fluentd-address", text, url, default_port=24224)
    return Address(
        kind="tcp", host=host or "127.0.0.1", port=port, tls=Tls() if url.scheme == "tls" else None
    )


# --- addresses ----------------------------------------------------------------------------

_MOST_ADDRESS = 1024


def _split_url(option: str, text: str) -> SplitResult:
    try:
        if len(text) > _MOST_ADDRESS or any(ord(c) <= 32 or ord(c) == 127 for c in text):
            raise ValueError("it is too long, or has spaces in it")
        return urlsplit(text)
    except ValueError as error:
        raise Invalid(
            f"{option}={text[:80]}: {error}: expected an address, e.g. tcp://192.0.2.1:514"
        ) from None


def _host_port(option: str, text: str, url: SplitResult, *, default_port: int) -> tuple[str, int]:
    try:
        return url.hostname or "", url.port if url.port is not None else default_port
    except ValueError:
        raise Invalid(f"{option}={text}: invalid port: expected 1 to 65535, e.g. :514") from None


_PARSERS: Mapping[str, Callable[[Mapping[str, str]], Destination]] = {
    "syslog": _parse_syslog,
    "gelf": _parse_gelf,
    "fluentd": _parse_fluentd,
    "journald": lambda options: Journald(),
}
