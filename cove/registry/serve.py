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
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop

from cove import __version__
from cove.api.listener import HttpServer
from cove.model.errors import Invalid
from cove.registry.access import ACTIONS, PULL, Policy
from cove.registry.app import VERSION_HEADER, Registry, refuse_http
from cove.registry.identity import become, enter, hand_over, plan_identity
from cove.registry.login import Login
from cove.registry.options import LISTEN, plan_bounds, plan_root
from cove.registry.sockets import is_local, listen, notify, split_address, told_address
from cove.registry.store import Store
from cove.registry.uploads import Bounds

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
    read_only: bool
    sockets: list[socket.socket] = field(default_factory=list)


def plan_serving(options: argparse.Namespace) -> Plan:
    """Everything that can be wrong with the options is told here. Raises Invalid."""
    addresses = tuple(options.listen or [LISTEN])
    policy = plan_policy(options)
    if policy.open and not policy.anonymous and not options.read_only:
        for address in addresses:
            if not is_local(address):
                raise Invalid(
                    f"--listen {address} is open to the network, and nobody would have to log in: add --user NAME:FILE "
                    "or --htpasswd FILE, or say --anonymous pull or --anonymous push"
                )
    return Plan(
        root=plan_root(options),
        bounds=plan_bounds(options),
        addresses=addresses,
        policy=policy,
        read_only=options.read_only,
    )


def plan_policy(options: argparse.Namespace) -> Policy:
    """The rules. Raises Invalid."""
    words = {"": (), "none": (), "pull": (PULL,), "push": ACTIONS}
    if options.anonymous not in words:
        raise Invalid(f"--anonymous {options.anonymous}: expected none, pull or push")
    return Policy(anonymous=words[options.anonymous], read_only=options.read_only)


def serve(options: argparse.Namespace) -> int:
    """Be the server until a signal says to stop; the exit code."""
    plan = plan_serving(options)
    for address in plan.addresses:
        plan.sockets.append(listen(address))
    plan = replace(plan, addresses=tuple(map(told_address, plan.addresses, plan.sockets)))
    identity = plan_identity(options.run_as, plan.root)
    hand_over(plan.root, identity)
    inside = enter(plan.root, identity)
    os.chdir(inside)
    become(identity)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_run(plan, inside))
    return 0


async def _run(plan: Plan, root: Path) -> None:
    store = Store(root, plan.bounds)
    try:
        store.recover()
        registry = Registry(store, Login(plan.policy), read_only=plan.read_only)
        headers = (("Server", f"Cove/{__version__}"), VERSION_HEADER, ("X-Content-Type-Options", "nosniff"))
        server = HttpServer(registry, headers, idle_s=IDLE_S, most=CONNECTIONS_MAX, refuse=refuse_http)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _told_to_stop, stop)
        for sock in plan.sockets:
            await server.listen(sock)
        gc.collect()
        gc.freeze()
        announce(plan)
        notify("READY=1")
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(_keep_house(store))
            await stop.wait()
            keeping.cancel()
        notify("STOPPING=1")
        await server.close(GRACE_S)
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


async def _keep_house(store: Store) -> None:
    """Uploads that nobody goes on with expire."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_S)
        if count := await store.uploads.expire():
            log.info("%d abandoned uploads expired", count)


def announce(plan: Plan) -> None:
    """Say where it answers, and what to type next."""
    lines = [f"cove registry: answers on {', '.join(plan.addresses)}, keeps its content in {plan.root}"]
    if who := ", ".join(plan.policy.anonymous):
        lines.append(f"whoever comes may {who}")
    tcp = [address for address in plan.addresses if not address.startswith("unix://")]
    if tcp and not plan.read_only:
        host, port = split_address(tcp[0])
        name = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
        lines += ["Try:", f"  docker tag IMAGE {name}:{port}/app", f"  docker push {name}:{port}/app"]
    print("\n".join(lines), file=sys.stderr, flush=True)
