"""Networks: create, list, remove, connect, disconnect."""

from __future__ import annotations

from cove.cli import output, values
from cove.cli.client import filters, query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.cli.run import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


def run_ls(client: Client, options: Options) -> int:
    """cove network ls"""
    whole = options.on("no-trunc")
    networks = client.get("/networks" + query({"filters": filters(options.all("filter"))}))
    rows = [
        {
            "ID": output.short_id(network["Id"], whole),
            "Name": network["Name"],
            "Driver": network["Driver"],
            "Scope": network.get("Scope", "local"),
            "IPv6": "true" if network.get("EnableIPv6") else "false",
            "Internal": "true" if network.get("Internal") else "false",
            "Labels": output.key_values(network.get("Labels")),
            "CreatedAt": network.get("Created", ""),
        }
        for network in sorted(networks, key=lambda network: str(network["Name"]))
    ]
    columns = (("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE"))
    output.print_rows(rows, columns, format=options.text("format"), quiet="ID" if options.on("quiet") else "")
    return 0


def build_network(options: Options) -> dict[str, Any]:
    """The body of POST /networks/create; subnets, gateways and ranges belong together in the order given."""
    gateways, ranges = options.all("gateway"), options.all("ip-range")
    subnets = options.all("subnet")
    for flag, given in (("gateway", gateways), ("ip-range", ranges)):
        if len(given) > len(subnets):
            raise CliError(f"--{flag} {given[-1]}: expected a --subnet for it, e.g. --subnet 172.28.0.0/16")
    pools: list[dict[str, Any]] = []
    for position, subnet in enumerate(subnets):
        pool: dict[str, Any] = {"Subnet": subnet}
        if position < len(gateways):
            pool["Gateway"] = gateways[position]
        if position < len(ranges):
            pool["IPRange"] = ranges[position]
        pools.append(pool)
    for text in options.all("aux-address"):
        name, address = values.split_pair("aux-address", text, "router=172.28.0.9")
        _pool_of(address, pools).setdefault("AuxiliaryAddresses", {})[name] = address
    return {
        "Name": options.args[0],
        "Driver": options.text("driver", "bridge"),
        "Internal": options.on("internal"),
        "Attachable": options.on("attachable"),
        "EnableIPv4": options.on("ipv4", True),
        "EnableIPv6": options.on("ipv6"),
        "IPAM": {
            "Driver": options.text("ipam-driver", "default"),
            "Config": pools,
            "Options": dict(values.split_pair("ipam-opt", text, "a=b") for text in options.all("ipam-opt")),
        },
        "Options": dict(values.split_pair("opt", text, "mtu=1400") for text in options.all("opt")),
        "Labels": values.collect_labels(options.all("label"), ()),
    }


def _pool_of(address: str, pools: list[dict[str, Any]]) -> dict[str, Any]:
    import ipaddress

    try:
        found = ipaddress.ip_address(address)
        return next(pool for pool in pools if found in ipaddress.ip_network(pool["Subnet"]))
    except (ValueError, StopIteration):
        raise CliError(
            f"--aux-address {address}: expected an address of one of the subnets, e.g. --subnet 172.28.0.0/16 "
            "--aux-address router=172.28.0.9"
        ) from None


def run_create(client: Client, options: Options) -> int:
    """cove network create"""
    print(client.post("/networks/create", build_network(options))["Id"])
    return 0


def run_rm(client: Client, options: Options) -> int:
    """cove network rm"""
    status = 0
    for name in options.args:
        try:
            client.delete(f"/networks/{quote(name)}")
        except ApiError as error:
            complain(f"error: {error}")
            status = 0 if options.on("force") and error.http == 404 else 1
        else:
            print(name)
    return status


def run_connect(client: Client, options: Options) -> int:
    """cove network connect"""
    network, container = options.args
    endpoint: dict[str, Any] = {}
    ipam: dict[str, Any] = {}
    for flag, name in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        if options.text(flag):
            ipam[name] = options.text(flag)
    if options.all("link-local-ip"):
        ipam["LinkLocalIPs"] = options.all("link-local-ip")
    if ipam:
        endpoint["IPAMConfig"] = ipam
    if options.all("alias"):
        endpoint["Aliases"] = options.all("alias")
    if options.all("link"):
        endpoint["Links"] = options.all("link")
    if options.all("driver-opt"):
        endpoint["DriverOpts"] = dict(
            values.split_pair("driver-opt", text, "com.docker.network.endpoint.ifname=lan0")
            for text in options.all("driver-opt")
        )
    if options.given.get("gw-priority"):
        endpoint["GwPriority"] = options.given["gw-priority"]
    client.post(f"/networks/{quote(network)}/connect", {"Container": container, "EndpointConfig": endpoint})
    return 0


def run_disconnect(client: Client, options: Options) -> int:
    """cove network disconnect"""
    network, container = options.args
    body = {"Container": container, "Force": options.on("force")}
    client.post(f"/networks/{quote(network)}/disconnect", body)
    return 0


COMMANDS = {
    "network ls": Command(
        "network ls",
        run_ls,
        "[OPTIONS]",
        "List networks.",
        flags=(
            ("f", "filter", "list", "NAME=VALUE", "Only those that match, e.g. driver=bridge"),
            ("q", "quiet", "bool", "", "Print ids only"),
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Name}}'"),
            ("", "no-trunc", "bool", "", "Show everything in full"),
        ),
        example="cove network ls",
    ),
    "network create": Command(
        "network create",
        run_create,
        "[OPTIONS] NAME",
        "Create a network and print its id.",
        flags=(
            ("d", "driver", "str", "NAME", "Make it by this driver (default: bridge)"),
            ("", "subnet", "list", "CIDR", "Use this subnet, e.g. 172.28.0.0/16 (default: a free one)"),
            ("", "gateway", "list", "ADDRESS", "The subnet's gateway, e.g. 172.28.0.1"),
            ("", "ip-range", "list", "CIDR", "Give out addresses of this part only"),
            (
                "",
                "aux-address",
                "list",
                "NAME=ADDRESS",
                "Never give this address out, e.g. router=172.28.0.9",
            ),
            ("", "ipv4", "bool", "", "Use IPv4; --ipv4=false: IPv6 alone (default: true)"),
            ("", "ipv6", "bool", "", "Use IPv6 too"),
            ("", "internal", "bool", "", "No way out of the network"),
            ("", "attachable", "bool", "", "Let containers be connected by hand"),
            ("", "ipam-driver", "str", "NAME", "Give out addresses by this driver (default: default)"),
            ("", "ipam-opt", "list", "NAME=VALUE", "Set an option of that driver"),
            ("o", "opt", "list", "NAME=VALUE", "Set an option of the driver"),
            ("", "label", "list", "NAME=VALUE", "Label the network, e.g. tier=db"),
        ),
        needed=1,
        example="cove network create --subnet 172.28.0.0/16 backend",
    ),
    "network rm": Command(
        "network rm",
        run_rm,
        "[OPTIONS] NETWORK...",
        "Remove networks that no container uses.",
        flags=(("f", "force", "bool", "", "Be content where there is no such network"),),
        needed=1,
        most=-1,
        example="cove network rm backend",
    ),
    "network connect": Command(
        "network connect",
        run_connect,
        "[OPTIONS] NETWORK CONTAINER",
        "Connect a container to another network.",
        flags=(
            ("", "ip", "str", "ADDRESS", "Take this IPv4 address, e.g. 172.28.0.10"),
            ("", "ip6", "str", "ADDRESS", "Take this IPv6 address"),
            ("", "alias", "list", "NAME", "Answer to another name on the network"),
            ("", "driver-opt", "list", "NAME=VALUE", "Set an option of the driver for this container"),
            ("", "gw-priority", "int", "NUMBER", "The highest one gives the default route (default: 0)"),
            ("", "link", "list", "CONTAINER:NAME", "Know another container by a name of its own"),
            ("", "link-local-ip", "list", "ADDRESS", "Take this address too, e.g. 169.254.8.8"),
        ),
        needed=2,
        example="cove network connect backend web",
    ),
    "network disconnect": Command(
        "network disconnect",
        run_disconnect,
        "[OPTIONS] NETWORK CONTAINER",
        "Disconnect a container from a network.",
        flags=(("f", "force", "bool", "", "Forget it even where the container is gone"),),
        needed=2,
        example="cove network disconnect backend web",
    ),
}
