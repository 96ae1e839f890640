"""The server's life: opens what needs root, gives root up, answers, and ends when told.

Order that must hold: sockets (an address in use is told before anything is touched), certificates and passwords, the
registry's directory handed to its user, root given up, and only then the catalog, uploads, and the first request.
SIGTERM and SIGINT end it: requests under way have a moment, what they had sent stays, a second signal ends it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from cove import __version__
from cove.api.listener import HttpServer
from cove.api.sockets import notify
from cove.model.errors import Invalid
from cove.registry.access import Policy
from cove.registry.app import VERSION_HEADER, Links, Registry, refuse_http
from cove.registry.certificates import own_certificate, server_context
from cove.registry.identity import Identity, become, enter, hand_over, plan_identity
from cove.registry.login import Login
from cove.registry.options import LISTEN, parse_duration, plan_bounds, plan_root
from cove.registry.passwords import Passwords
from cove.registry.proxy import Proxy
from cove.registry.rules import plan_policy
from cove.registry.sharing import SHARES, Broker, Linker, start_broker
from cove.registry.sockets import is_local, listen, split_address, told_address
from cove.registry.source import USER, Asker, DaemonClient, Source, default_socket, new_password
from cove.registry.store import Store
from cove.registry.sweep import describe, sweep
from cove.registry.uploads import Bounds
from cove.registry.upstreams import Upstreams, parse_upstreams, read_credentials

log = logging.getLogger("cove.registry")
GRACE_S = 10.0
IDLE_S = 120.0  # a connection without a request
CONNECTIONS_MAX = 4096
HOUSEKEEPING_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a server was told, and what it has opened."""

    root: Path
    bounds: Bounds
    addresses: tuple[str, ...]
    policy: Policy
    passwords: Passwords
    tokens: bool
    tls: ssl.SSLContext | None
    self_signed: tuple[str, ...]  # names for a certificate of the registry's own; (): none is made
    client_authority: str
    read_only: bool
    upstreams: Upstreams | None
    proxy_age_s: float
    images: Path  # of the daemon on this machine
    share_with: str
    daemon: str  # the daemon's socket, where its images are what is served; ""
    sockets: list[socket.socket] = field(default_factory=list)


def plan_serving(options: argparse.Namespace) -> Plan:
    """Everything that can be wrong with the options is told here. Raises Invalid."""
    addresses = tuple(options.listen or [LISTEN])
    passwords = Passwords()
    if options.htpasswd:
        passwords.add_htpasswd(Path(options.htpasswd))
    for each in options.user:
        passwords.add_user(each)
    policy = plan_policy(
        Path(options.policy) if options.policy else None,
        options.anonymous,
        users=bool(passwords) or bool(options.tls_client_ca),
        read_only=options.read_only,
    )
    if options.tokens and not passwords:
        raise Invalid(
            "--tokens: there are no users who could log in for one: add --user NAME:FILE or --htpasswd FILE"
        )
    remote = [address for address in addresses if not is_local(address)]
    if policy.unguarded and remote:
        raise Invalid(
            f"--listen {remote[0]} is open to the network, and nobody would have to log in: add --user NAME:FILE "
            "or --htpasswd FILE, or say --anonymous pull or --anonymous push"
        )
    upstreams = None
    if options.proxy:
        path = options.proxy_credentials
        upstreams = Upstreams(parse_upstreams(options.proxy), read_credentials(Path(path)) if path else {})
    elif options.proxy_credentials:
        raise Invalid("--proxy-credentials: there is no --proxy that they could be for")
    if options.share not in SHARES:
        raise Invalid(f"--share {options.share}: expected {', '.join(SHARES)}")
    if options.tls not in ("", "self"):
        raise Invalid(f"--tls {options.tls}: expected self; files are given with --tls-cert and --tls-key")
    if bool(options.tls_cert) != bool(options.tls_key) or (options.tls and options.tls_cert):
        raise Invalid("expected --tls-cert FILE together with --tls-key FILE, or --tls self alone")
    if options.tls_client_ca and not (options.tls_cert or options.tls):
        raise Invalid(
            "--tls-client-ca needs --tls-cert and --tls-key, or --tls self: certificates are shown in TLS"
        )
    tls = None
    if options.tls_cert:
        tls = server_context(
            Path(options.tls_cert), Path(options.tls_key), options.tls_client_ca, required=not passwords
        )
    if remote and passwords and tls is None and not options.tls:
        log.warning(
            "passwords cross the network unencrypted to %s: add --tls self, or a certificate", remote[0]
        )
    return Plan(
        root=plan_root(options),
        bounds=plan_bounds(options),
        addresses=addresses,
        policy=policy,
        passwords=passwords,
        tokens=options.tokens,
        tls=tls,
        self_signed=_names(addresses, options.tls_name) if options.tls else (),
        client_authority=options.tls_client_ca,
        read_only=options.read_only or options.images,
        upstreams=upstreams,
        proxy_age_s=parse_duration("--proxy-age", options.proxy_age),
        images=Path(options.data_root).absolute() / "images",
        share_with=options.share,
        daemon=_daemon_socket(options),
    )


def _daemon_socket(options: argparse.Namespace) -> str:
    if not options.images:
        if options.daemon:
            raise Invalid("--daemon: it is asked only for --images")
        return ""
    if options.proxy:
        raise Invalid("--images and --proxy: serve them by two registries, with a --root for each")
    address = options.daemon or f"unix://{default_socket()}"
    if not address.startswith("unix:///"):
        raise Invalid(f"--daemon {address}: expected unix:///PATH, e.g. unix:///run/cove/docker.sock")
    return str(address.removeprefix("unix://"))


def _names(addresses: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """What clients may call this server."""
    names = [*more, socket.gethostname(), "localhost", "127.0.0.1"]
    hosts = [split_address(each)[0] for each in addresses if not each.startswith("unix://")]
    names += [host for host in hosts if host not in ("0.0.0.0", "::")]
    return tuple(dict.fromkeys(names))


def serve(options: argparse.Namespace) -> int:
    """Be the server until a signal says to stop; the exit code."""
    plan = plan_serving(options)
    for address in plan.addresses:
        plan.sockets.append(listen(address))
    inner = listen("127.0.0.1:0") if plan.daemon else None
    plan = replace(plan, addresses=tuple(map(told_address, plan.addresses, plan.sockets)))
    identity = plan_identity(options.run_as, plan.root)
    hand_over(plan.root, identity)
    own = [*plan.sockets, inner] if inner is not None else plan.sockets
    links = start_links(plan, identity, own)
    password = new_password()
    asker: Broker | DaemonClient | None = None
    if plan.daemon:
        asker = client = DaemonClient(plan.daemon, password)
        if identity is not None and identity.uid != 0:
            others = (
                [links.sock] if isinstance(links, Broker) else []
            )  # or else that one would never see its end
            asker = start_broker({"image": client.image, "push": client.push}, [*own, *others])
    inside = enter(plan.root, identity)
    os.chdir(inside)
    authority = (
        Path(plan.client_authority).read_bytes() if plan.client_authority and plan.self_signed else b""
    )
    become(identity)
    if plan.self_signed:
        certificate, key = own_certificate(inside / "tls", plan.self_signed)
        if authority:
            (inside / "tls/clients.pem").write_bytes(authority)
        clients = str(inside / "tls/clients.pem") if authority else ""
        plan = replace(plan, tls=server_context(certificate, key, clients, required=not plan.passwords))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(_run(plan, inside, links, Inner(inner, asker, password) if inner and asker else None))
    finally:
        for each in (links, asker):
            if isinstance(each, Broker):
                each.close()
    return 0


@dataclass(frozen=True)
class Inner:
    """Where the daemon pushes what is asked for, and who asks it to."""

    sock: socket.socket
    asker: Asker
    password: str

    @property
    def address(self) -> str:
        return told_address("", self.sock)


def start_links(plan: Plan, identity: Identity | None, own: Sequence[socket.socket]) -> Links | None:
    """Who links blobs of the image store: a process that stays root, or none where none is wanted or needed."""
    if plan.share_with == "none" or (plan.read_only and not plan.daemon):
        return None
    linker = Linker(plan.images, plan.root / "uploads")
    if identity is None or identity.uid == 0:
        return linker
    return start_broker({"link": linker.link}, own)


async def _run(plan: Plan, root: Path, links: Links | None, inner: Inner | None) -> None:
    store = Store(root, plan.bounds)
    try:
        store.recover()
        login = Login(plan.policy, plan.passwords, tokens=plan.tokens)
        proxy = Proxy(plan.upstreams, store, age_s=plan.proxy_age_s) if plan.upstreams else None
        registry = Registry(
            store,
            login,
            read_only=plan.read_only,
            links=links,
            share_with=plan.share_with,
            proxy=proxy,
            source=Source(inner.asker, store, inner.address) if inner else None,
        )
        headers = (("Server", f"Cove/{__version__}"), VERSION_HEADER, ("X-Content-Type-Options", "nosniff"))
        server = HttpServer(registry, headers, idle_s=IDLE_S, most=CONNECTIONS_MAX, refuse=refuse_http)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _told_to_stop, stop)
        for sock in plan.sockets:
            await server.listen(sock, plan.tls if sock.family != socket.AF_UNIX else None)
        inner_server = None
        if inner is not None:
            inner_server = _inner_server(inner, store, links, registry)
            await inner_server.listen(inner.sock)
        gc.collect()
        gc.freeze()
        announce(plan)
        notify("READY=1")
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(_keep_house(store, sweeps=inner is not None))
            await stop.wait()
            keeping.cancel()
        notify("STOPPING=1")
        await server.close(GRACE_S)
        if inner_server is not None:
            await inner_server.close(1.0)
        if proxy is not None:
            await proxy.close()
    finally:
        store.close()
        for address in plan.addresses:
            if address.startswith("unix://"):
                with contextlib.suppress(OSError):
                    os.unlink(address.removeprefix("unix://"))


def _told_to_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)
    stop.set()


def _inner_server(inner: Inner, store: Store, links: Links | None, registry: Registry) -> HttpServer:
    passwords = Passwords()
    passwords.add(USER, inner.password)
    login = Login(Policy(users=True, said=True), passwords)
    handler = Registry(store, login, links=links, share_with="local")
    handler.meters = registry.meters
    return HttpServer(handler, (VERSION_HEADER,), idle_s=IDLE_S, refuse=refuse_http)


async def _keep_house(store: Store, *, sweeps: bool) -> None:
    """Uploads that nobody goes on with expire; images that the machine no longer has go (`sweeps`)."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_S)
        if count := await store.uploads.expire():
            log.info("%d abandoned uploads expired", count)
        if sweeps:
            swept = await store.threads.change(sweep, store.content, store.writer, untagged=True)
            if swept.contents:
                log.info("%s", describe(swept, dry_run=False))


def announce(plan: Plan) -> None:
    """Say where it answers, and what to type next."""
    lines = [f"cove registry: answers on {', '.join(plan.addresses)}, keeps its content in {plan.root}"]
    if plan.policy.anonymous and not plan.read_only:
        lines.append(f"Callers without a login may {' and '.join(plan.policy.anonymous)}.")
    tcp = [address for address in plan.addresses if not address.startswith("unix://")]
    if plan.daemon:
        lines.append(f"Served are the images of the daemon at {plan.daemon}, under their names")
    if plan.upstreams is not None:
        lines += [
            f"{f'{each.name}/…' if each.name else 'Everything else'} is cached from {each.url}"
            for each in plan.upstreams.known
        ]
    if tcp and not plan.read_only:
        host, port = split_address(tcp[0])
        name = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
        lines.append("Try:")
        if plan.self_signed:
            where = f"/etc/docker/certs.d/{name}:{port}"
            lines.append(f"  sudo install -D -m 644 {plan.root}/tls/ca.pem {where}/ca.crt")
        if plan.passwords:
            lines.append(f"  docker login {name}:{port}")
        lines += [f"  docker tag IMAGE {name}:{port}/app", f"  docker push {name}:{port}/app"]
    print("\n".join(lines), file=sys.stderr, flush=True)
