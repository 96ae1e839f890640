"""Every key of the daemon's configuration, once: its kind, its flag, what it does, and what it doesn't.

The names are dockerd's (moby, daemon/config and daemon/command), Cove's own are marked. This table drives the command
line, the file, validation, reload and docs/daemon.md. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cove.config import kinds
from cove.config.kinds import (
    DEFAULT_BUILD_CACHE,
    BuilderSettings,
    Choice,
    Kind,
    Number,
    Objects,
    Pairs,
    Pools,
    Size,
    Switch,
    Switches,
    Text,
    Ulimits,
    Words,
)

DEFAULT_FILE = "/etc/cove/daemon.json"
MAX_SECONDS = 86_400
LOG_LEVELS = ("debug", "info", "warn", "warning", "error", "fatal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `flag` is its long option without dashes ("": as the key), `short` a letter more.

    `reload`: a SIGHUP makes a new value count. `ignored` and `refused` say why a value other than the default has
    no effect, or isn't taken. `own`: dockerd has no such key.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    example: Any
    section: str
    flag: str = ""
    short: str = ""
    aliases: tuple[str, ...] = ()  # further names in the file
    flag_aliases: tuple[str, ...] = ()
    reload: bool = False
    own: bool = False
    ignored: str = ""
    refused: str = ""

    @property
    def option(self) -> str:
        """The long flag with its dashes."""
        return "--" + (self.flag or self.name)


def _rows(section: str, *rows: dict[str, Any]) -> tuple[Key, ...]:
    return tuple(Key(section=section, **row) for row in rows)


def _row(name: str, kind: Kind, default: Any, help: str, example: Any, **rest: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "default": default, "help": help, "example": example, **rest}


_SWITCH = Switch("BOOL")
_PATH = Text("PATH", kinds.optional(kinds.check_path))
_NO_SWARM = "this engine isn't part of a swarm"
_NO_CONTAINERD = "there is no containerd: Cove supervises containers by itself"
_NO_PROXY = "connections to registries go through no proxy: use registry-mirrors"

_PLACES = _rows(
    "Places and addresses",
    _row("data-root", _PATH, "/var/lib/cove", "keep images, containers and volumes in PATH", "/srv/cove"),
    _row(
        "run-dir",
        _PATH,
        "/run/cove",
        "keep sockets and what lives until a reboot in PATH",
        "/run/cove2",
        aliases=("exec-root",),
        flag_aliases=("exec-root",),
    ),
    _row(
        "hosts",
        Words("ADDRESS", kinds.check_listen),
        (),
        "listen on ADDRESS, unix://PATH or tcp://HOST:PORT; without any, on docker.sock in the run dir",
        ["unix:///run/cove/docker.sock"],
        flag="host",
        short="H",
    ),
    _row("group", Text("NAME"), "", "let the group NAME use the unix sockets", "docker", short="G"),
    _row("pidfile", _PATH, "", "write the daemon's process id to PATH", "/run/cove.pid", short="p"),
    _row("tls", _SWITCH, False, "speak TLS on TCP addresses; implied by tlsverify", True),
    _row("tlsverify", _SWITCH, False, "speak TLS and ask each client for a certificate of tlscacert", True),
    _row(
        "tlscacert",
        _PATH,
        "",
        "trust clients' certificates of this authority",
        "/etc/cove/ca.pem",
        reload=True,
    ),
    _row("tlscert", _PATH, "", "the daemon's certificate, with its chain", "/etc/cove/cert.pem", reload=True),
    _row("tlskey", _PATH, "", "the certificate's private key", "/etc/cove/key.pem", reload=True),
    _row(
        "insecure-tcp",
        _SWITCH,
        False,
        "let TCP addresses other than loopback go without TLS: whoever reaches them is root here",
        True,
        own=True,
    ),
    _row(
        "metrics-addr",
        Text("HOST:PORT", kinds.optional(kinds.check_host_port)),
        "",
        "serve Prometheus metrics at http://HOST:PORT/metrics",
        "127.0.0.1:9323",
        reload=True,
    ),
)

_MESSAGES = _rows(
    "The daemon's own log",
    _row(
        "debug", _SWITCH, False, "write debug messages, as log-level debug does", True, short="D", reload=True
    ),
    _row(
        "log-level",
        Choice("LEVEL", LOG_LEVELS),
        "info",
        "write messages from this level on: debug, info, warn, error or fatal",
        "warn",
        short="l",
        reload=True,
    ),
    _row("log-format", Choice("FORMAT", ("text", "json")), "text", "write messages as text or json", "json"),
    _row("raw-logs", _SWITCH, False, "write plain text", True, ignored="the text is never coloured"),
)

_LIFE = _rows(
    "Restart and end",
    _row(
        "live-restore",
        _SWITCH,
        True,
        "let containers run on when the daemon ends; false stops them at SIGTERM",
        False,
        reload=True,
    ),
    _row(
        "shutdown-timeout",
        Number("SECONDS", -1, MAX_SECONDS),
        15,
        "give containers SECONDS to stop where live-restore is false; -1 waits for ever",
        30,
        reload=True,
    ),
    _row(
        "default-stop-timeout",
        Number("SECONDS", -1, MAX_SECONDS),
        10,
        "wait SECONDS between the stop signal and SIGKILL where a container names no time",
        30,
        reload=True,
    ),
    _row(
        "labels",
        Words("NAME=VALUE", kinds.check_label),
        (),
        "label the daemon",
        ["rack=12"],
        flag="label",
        reload=True,
    ),
    _row(
        "features",
        Switches("NAME[=BOOL]"),
        {},
        "switch features of dockerd",
        {"containerd-snapshotter": True},
        flag="feature",
        reload=True,
        ignored="dockerd's features choose among its own parts",
    ),
    _row("experimental", _SWITCH, False, "switch experimental features on", True, ignored="there are none"),
)

_CONTAINERS = _rows(
    "Defaults of containers",
    _row(
        "log-driver",
        Text("NAME"),
        "local",
        "log with NAME where a container names no driver",
        "json-file",
        flag_aliases=("default-log-driver",),
        reload=True,
    ),
    _row(
        "log-opts",
        Pairs("NAME=VALUE"),
        {},
        "options of the default log driver",
        {"max-size": "10m"},
        flag="log-opt",
        reload=True,
    ),
    _row(
        "default-ulimits",
        Ulimits("NAME=SOFT[:HARD]"),
        {},
        "limits of processes where a container sets none",
        {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 4096}},
        flag="default-ulimit",
        reload=True,
    ),
    _row("default-shm-size", Size("SIZE"), 64 << 20, "size of /dev/shm", "128m", reload=True),
    _row(
        "default-ipc-mode",
        Choice("MODE", ("private", "shareable")),
        "private",
        "IPC namespace where a container names none: private or shareable",
        "shareable",
        reload=True,
    ),
    _row(
        "default-cgroupns-mode",
        Choice("MODE", ("", "private", "host")),
        "",
        "cgroup namespace where a container names none: private or host; by default private on cgroup v2, host on v1",
        "private",
        reload=True,
    ),
    _row("init", _SWITCH, False, "run a small init as process 1, which reaps and passes signals on", True, reload=True),
    _row("init-path", Text("PATH"), "", "the init's program", "/usr/bin/tini", ignored="Cove's init is cove-init"),
    _row(
        "no-new-privileges",
        _SWITCH,
        False,
        "let no program of a container gain privileges, unless it says otherwise",
        True,
    ),
    _row(
        "seccomp-profile",
        Text("PATH"),
        "",
        "filter system calls by the profile at PATH, or not at all: unconfined; builtin is the default",
        "/etc/cove/seccomp.json",
    ),
    _row(
        "selinux-enabled",
        _SWITCH,
        False,
        "label processes and files",
        True,
        refused="Cove sets SELinux labels where a container asks for them, and makes none up",
    ),
    _row(
        "cgroup-parent",
        Text("NAME"),
        "",
        "put containers below the cgroup NAME; with systemd's driver a slice",
        "team.slice",
    ),
    _row(
        "exec-opts",
        Words("KEY=VALUE"),
        (),
        "native.cgroupdriver=systemd has systemd make a scope for each container, native.cgroupdriver=cgroupfs has "
        "the daemon make cgroups itself (the default)",
        ["native.cgroupdriver=systemd"],
        flag="exec-opt",
    ),
    _row(
        "oom-score-adjust",
        Number("NUMBER", -1000, 1000),
        0,
        "the daemon's own score for the out-of-memory killer",
        -500,
        ignored="the service manager sets it: OOMScoreAdjust= of systemd.exec(5)",
    ),
    _row(
        "userns-remap",
        Text("USER[:GROUP]"),
        "",
        "run containers in user namespaces of their own, with the subordinate ids of USER (/etc/subuid, /etc/subgid), "
        "or of cove for the word default; --userns=host exempts one",
        "default",
    ),
    _row(
        "default-runtime",
        Choice("NAME", ("cove", "runc", "io.containerd.runc.v2")),
        "cove",
        "the runtime: cove, for which runc is another name",
        "cove",
    ),
    _row(
        "runtimes",
        Objects("NAME=PATH"),
        {},
        "further runtimes",
        {"crun": {"path": "/usr/bin/crun"}},
        flag="add-runtime",
        refused="containers run by cove-init; bin/cove-runtime offers Cove to other engines instead",
    ),
    _row("cpu-rt-period", Number("US", 0, 1_000_000), 0, "real-time period of the parent cgroup", 950_000,
         refused="set it for a container: --cpu-rt-period"),
    _row("cpu-rt-runtime", Number("US", 0, 1_000_000), 0, "real-time runtime of the parent cgroup", 900_000,
         refused="set it for a container: --cpu-rt-runtime"),
    _row(
        "storage-driver",
        Choice("NAME", ("", "overlay2", "overlayfs")),
        "",
        "the layers' file system: overlay2",
        "overlay2",
        short="s",
    ),
    _row(
        "storage-opts",
        Words("KEY=VALUE"),
        (),
        "cove.size=SIZE limits each writable layer where a container names no size",
        ["cove.size=10g"],
        flag="storage-opt",
        reload=True,
    ),
    _row(
        "cdi-spec-dirs",
        Words("PATH", kinds.check_path),
        ("/etc/cdi", "/var/run/cdi"),
        "read CDI device specifications from PATH",
        ["/etc/cdi"],
        flag="cdi-spec-dir",
    ),
)  # fmt: skip

_NETWORKS = _rows(
    "Networks",
    _row("bridge", Text("NAME"), "", "name the default bridge NAME", "cove0", short="b"),
    _row(
        "bip",
        Text("ADDRESS/BITS", kinds.optional(kinds.check_interface)),
        "",
        "address and subnet of the default bridge; without it one that is free",
        "10.88.0.1/16",
        flag_aliases=("subnet",),
        aliases=("subnet",),
    ),
    _row(
        "bip6",
        Text("ADDRESS/BITS", kinds.optional(kinds.check_interface)),
        "",
        "IPv6 address and subnet of the default bridge; without it one that is free",
        "fd00:88::1/64",
        flag_aliases=("subnet6",),
        aliases=("subnet6",),
    ),
    _row("ipv6", _SWITCH, True, "give the default bridge IPv6, where the kernel has it", False),
    _row(
        "fixed-cidr",
        Text("CIDR", kinds.optional(kinds.check_network)),
        "",
        "give out addresses of this part of the default bridge's subnet",
        "10.88.1.0/24",
    ),
    _row(
        "fixed-cidr-v6",
        Text("CIDR", kinds.optional(kinds.check_network)),
        "",
        "the same for IPv6",
        "fd00:88::/80",
    ),
    _row(
        "default-gateway",
        Text("ADDRESS", kinds.optional(kinds.check_address)),
        "",
        "default route of containers on the default bridge",
        "10.88.0.254",
        refused="the bridge is the gateway; give it an address by bip",
    ),
    _row(
        "default-gateway-v6",
        Text("ADDRESS", kinds.optional(kinds.check_address)),
        "",
        "the same for IPv6",
        "fd00:88::254",
        refused="the bridge is the gateway; give it an address by bip6",
    ),
    _row("mtu", Number("BYTES", 0, 65_535), 0, "largest packet on bridges; 0 takes the default route's", 1400),
    _row(
        "icc",
        _SWITCH,
        True,
        "let containers on the default bridge reach each other",
        False,
    ),
    _row(
        "ip",
        Text("ADDRESS", kinds.optional(kinds.check_address)),
        "",
        "publish ports at this address of the host where -p names none; by default at all",
        "127.0.0.1",
        reload=True,
    ),
    _row("ip-masq", _SWITCH, True, "give packets from the default bridge the host's address", False),
    _row(
        "iptables",
        _SWITCH,
        True,
        "write packet filter rules",
        False,
        refused="networks and published ports are rules of Cove's own nftables table, which leaves others alone",
    ),
    _row(
        "ip6tables",
        _SWITCH,
        True,
        "write packet filter rules for IPv6",
        False,
        refused="networks and published ports are rules of Cove's own nftables table, which leaves others alone",
    ),
    _row(
        "ip-forward",
        _SWITCH,
        True,
        "switch forwarding on",
        False,
        refused="bridge networks need the kernel's forwarding; use --network none or host for containers without",
    ),
    _row(
        "ip-forward-no-drop",
        _SWITCH,
        True,
        "leave the policy of the host's FORWARD chain alone",
        True,
        ignored="Cove never changes a chain that isn't its own",
    ),
    _row(
        "userland-proxy",
        _SWITCH,
        True,
        "serve published ports by a process where rules can't",
        False,
        ignored="rules serve published ports; only [::1] needs the daemon's help",
    ),
    _row("userland-proxy-path", Text("PATH"), "", "the proxy's program", "/usr/bin/docker-proxy",
         ignored="there is no proxy program"),
    _row(
        "firewall",
        Choice("POLICY", ("auto", "docker", "host")),
        "auto",
        "whether the host's own INPUT rules decide on published ports: host, docker (they don't), or auto",
        "host",
        own=True,
    ),
    _row(
        "firewall-backend",
        Choice("NAME", ("", "nftables", "iptables")),
        "",
        "the packet filter",
        "nftables",
        ignored="Cove speaks to nftables",
    ),
    _row(
        "allow-direct-routing",
        _SWITCH,
        False,
        "let other hosts reach published ports at containers' own addresses",
        True,
        refused="bridge networks are closed to other hosts but for their published ports",
    ),
    _row(
        "bridge-accept-fwmark",
        Text("MARK[/MASK]"),
        "",
        "accept packets with this firewall mark",
        "0x1/0x1",
        refused="Cove's table knows no marks of others",
    ),
    _row(
        "default-address-pools",
        Pools("base=CIDR,size=BITS"),
        (),
        "take networks' subnets from these pools",
        [{"base": "10.200.0.0/16", "size": 24}],
        flag="default-address-pool",
    ),
    _row(
        "default-network-opts",
        Objects("DRIVER=NAME=VALUE"),
        {},
        "options of new networks, by driver",
        {"bridge": {"com.docker.network.driver.mtu": "1400"}},
        flag="default-network-opt",
    ),
    _row(
        "dns",
        Words("ADDRESS", kinds.check_address),
        (),
        "have containers ask these name servers; by default the host's",
        ["9.9.9.9"],
        reload=True,
    ),
    _row("dns-opts", Words("OPTION"), (), "options of containers' resolvers", ["ndots:2"], flag="dns-opt", reload=True),
    _row("dns-search", Words("DOMAIN"), (), "search these domains", ["example.com"], reload=True),
    _row(
        "host-gateway-ips",
        Words("ADDRESS", kinds.check_address),
        (),
        "what host-gateway stands for in --add-host; by default the default bridge's addresses",
        ["192.168.1.1"],
        flag="host-gateway-ip",
        reload=True,
    ),
    _row(
        "network-pool",
        Number("N", 0, 1_000),
        4,
        "keep N network namespaces ready",
        8,
        own=True,
    ),
    _row(
        "rootless-network",
        Choice("NAME", ("auto", "pasta", "slirp4netns", "none")),
        "auto",
        "connect a daemon that an ordinary user starts by NAME: pasta, slirp4netns, none, or auto for the first that "
        "is installed",
        "pasta",
        own=True,
    ),
    _row("network-control-plane-mtu", Number("BYTES", 0, 65_535), 1500, "MTU of the control plane", 1400,
         ignored=_NO_SWARM),
    _row("network-diagnostic-port", Number("PORT", 0, 65_535), 0, "port of a diagnostic server", 2000,
         refused="there is no diagnostic server; `cove plan` and GET /cove/v1 tell what there is"),
)  # fmt: skip

_REGISTRIES = _rows(
    "Registries and proxies",
    _row("dedupe", _SWITCH, False,
         "have equal files of layers share their place on the disk after each load, pull and build", True,
         reload=True, own=True),
    _row("image-policy", _PATH, "", "let the policy of the file PATH say which images may be pulled and run",
         "/etc/cove/policy.json", reload=True, own=True),
    _row("registry-mirrors", Words("[HOST=]URL"), (), "ask these first, for Docker Hub or HOST",
         ["https://mirror.example.com"], flag="registry-mirror", reload=True),
    _row("insecure-registries", Words("HOST"), (), "go without TLS, or with a certificate of nobody, to these",
         ["registry.example.com:5000"], flag="insecure-registry", reload=True),
    _row("max-concurrent-downloads", Number("N", 1, 1_000), 3, "layers that are pulled at a time", 5, reload=True),
    _row("max-concurrent-uploads", Number("N", 1, 1_000), 5, "layers of a push at a time", 5, reload=True),
    _row("max-download-attempts", Number("N", 1, 1_000), 5, "attempts at a layer, in a row without a byte", 5,
         reload=True),
    _row("http-proxy", Text("URL"), "", "proxy of outgoing connections", "http://proxy:3128", ignored=_NO_PROXY),
    _row("https-proxy", Text("URL"), "", "proxy of outgoing connections", "http://proxy:3128", ignored=_NO_PROXY),
    _row("no-proxy", Text("HOSTS"), "", "hosts without the proxy", "localhost", ignored=_NO_PROXY),
    _row("proxies", Pairs("NAME=VALUE"), {}, "proxies of outgoing connections", {"http-proxy": "http://proxy:3128"},
         ignored=_NO_PROXY),
)  # fmt: skip

_OTHERS = _rows(
    "dockerd's other parts",
    _row("authorization-plugins", Words("NAME"), (), "ask these plugins about each request", ["opa"],
         flag="authorization-plugin", refused="a plugin that is left out would let through what it should stop"),
    _row("containerd", Text("PATH"), "", "containerd's socket", "/run/containerd/containerd.sock",
         ignored=_NO_CONTAINERD),
    _row("containerd-namespace", Text("NAME"), "moby", "containerd's namespace", "moby", ignored=_NO_CONTAINERD),
    _row("containerd-plugin-namespace", Text("NAME"), "plugins.moby", "containerd's namespace", "plugins.moby",
         flag="containerd-plugins-namespace", ignored=_NO_CONTAINERD),
    _row("cri-containerd", _SWITCH, False, "start containerd with CRI", True, ignored=_NO_CONTAINERD),
    _row("nri-opts", Objects("KEY=VALUE"), {}, "node resource interface", {}, refused="there are no NRI plugins"),
    _row("builder", BuilderSettings("-"), DEFAULT_BUILD_CACHE, "what builds may keep that no image has",
         {"gc": {"defaultKeepStorage": "10GB"}}, reload=True),
    _row("min-api-version", Text("VERSION"), "1.24", "oldest API version", "1.24", ignored="1.24 and newer are served"),
    _row("resolv-conf", Text("PATH"), "", "resolver configuration of the host", "/etc/resolv.conf",
         ignored="the host's is read"),
    _row("rootless", _SWITCH, False, "run rootless", True, ignored="an ordinary user's daemon is rootless"),
    _row("swarm-default-advertise-addr", Text("ADDRESS"), "", "address in a swarm", "192.0.2.1", ignored=_NO_SWARM),
    _row("swarm-raft-election-tick", Number("N", 0, 1_000), 0, "swarm's elections", 10, ignored=_NO_SWARM),
    _row("swarm-raft-heartbeat-tick", Number("N", 0, 1_000), 0, "swarm's heartbeat", 1, ignored=_NO_SWARM),
    _row("node-generic-resources", Words("NAME=VALUE"), (), "resources in a swarm", ["gpu=1"],
         flag="node-generic-resource", ignored=_NO_SWARM),
    _row("native", Text("FILE"), "", "use FILE as cove-init", "/usr/libexec/cove-init", own=True),
)  # fmt: skip

KEYS: tuple[Key, ...] = (*_PLACES, *_MESSAGES, *_LIFE, *_CONTAINERS, *_NETWORKS, *_REGISTRIES, *_OTHERS)
BY_NAME: Mapping[str, Key] = {name: key for key in KEYS for name in (key.name, *key.aliases)}
assert len(BY_NAME) == sum(1 + len(key.aliases) for key in KEYS), "a name has two keys"
