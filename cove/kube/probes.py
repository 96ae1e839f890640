"""Probes → the one health check that a container has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cove.kube import fields
from cove.kube.reading import At

_SECOND_NS = 1_000_000_000
_MOST_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    test: tuple[str, ...] = ()
    url: str = ""
    headers: str = ""
    delay_s: int = 0
    period_s: int = 10
    timeout_s: int = 1
    failures: int = 3

    @property
    def handler(self) -> tuple[tuple[str, ...], str, str]:
        return self.test, self.url, self.headers


def plan_health(
    container: At, ports: Mapping[str, int], *, restarts: bool, warnings: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """`Healthcheck` of a create body, and Cove's own settings."""
    liveness, readiness, startup = (
        _read(container.get(name), ports) if container.get(name) else None
        for name in ("livenessProbe", "readinessProbe", "startupProbe")
    )
    main = liveness or readiness or startup
    if main is None:
        return {}, {}
    chosen = "livenessProbe" if liveness else "readinessProbe"
    for name, other in (("readinessProbe", readiness), ("startupProbe", startup)):
        if other is not None and other.handler != main.handler:
            what = "only the time that it gives is" if name == "startupProbe" else "it isn't"
            at = container.get(name)
            warnings.append(
                f"{at.owner}: {at.path}: a container has one health check, here that of {chosen}: {what} used"
            )
    if startup is not None and startup is not main:
        main = replace(main, delay_s=max(main.delay_s, startup.delay_s + startup.period_s * startup.failures))
    health: dict[str, Any] = {
        "Interval": main.period_s * _SECOND_NS,
        "Timeout": main.timeout_s * _SECOND_NS,
        "Retries": main.failures,
    }
    if main.delay_s:
        health["StartPeriod"] = main.delay_s * _SECOND_NS
        health["StartInterval"] = (startup or main).period_s * _SECOND_NS
    cove = {}
    if main.test:
        health["Test"] = ["CMD", *main.test]
    else:
        cove["health.probe"] = main.url
        if main.headers:
            cove["health.probe.headers"] = main.headers
    if liveness is not None:
        cove["health.on-failure"] = "restart" if restarts else "stop"
    return health, cove


def _read(at: At, ports: Mapping[str, int]) -> _Probe:
    at.check(fields.PROBE)
    given = [name for name in ("exec", "httpGet", "tcpSocket") if at.get(name)]
    if len(given) != 1:
        raise at.error("expected one of exec, httpGet and tcpSocket")
    test: tuple[str, ...] = ()
    url = headers = ""
    inner = at.get(given[0])
    if given[0] == "exec":
        test = tuple(inner.check(fields.PROBE_EXEC).need("command", '["test", "-e", "/ready"]').texts())
        if not test:
            raise inner.get("command").error('is empty, e.g. ["test", "-e", "/ready"]')
    elif given[0] == "tcpSocket":
        inner.check(fields.PROBE_TCP)
        url = f"tcp://{_host(inner)}:{_port(inner, ports)}"
    else:
        inner.check(fields.PROBE_HTTP)
        scheme = inner.get("scheme").choice(("HTTP", "HTTPS"), "HTTP").lower()
        path = inner.get("path").text("/") or "/"
        url = f"{scheme}://{_host(inner)}:{_port(inner, ports)}{'' if path.startswith('/') else '/'}{path}"
        headers = "\n".join(_header(one) for one in inner.get("httpHeaders").items(32))
    return _Probe(
        test=test,
        url=url,
        headers=headers,
        delay_s=at.get("initialDelaySeconds").number(0, 0, _MOST_S),
        period_s=at.get("periodSeconds").number(10, 1, _MOST_S),
        timeout_s=at.get("timeoutSeconds").number(1, 1, _MOST_S),
        failures=at.get("failureThreshold").number(3, 1, 10_000),
    )


def _host(at: At) -> str:
    host = at.get("host").text()
    return f"[{host}]" if ":" in host else host


def _header(at: At) -> str:
    at.check(fields.HEADER)
    return f"{at.need('name', 'Host').text()}: {at.need('value', 'example.org').text()}"


def _port(at: At, ports: Mapping[str, int]) -> int:
    found = at.need("port", "8080")
    if isinstance(found.value, str):
        if found.value not in ports:
            raise found.error(f"{found.value[:80]!r}: no port of this container has that name")
        return ports[found.value]
    return found.number(0, 1, 65535)
