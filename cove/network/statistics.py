"""Counters of a container's interfaces, as `docker stats` shows them."""

from __future__ import annotations

from cove.network.model import InterfaceStatistics


def parse_interfaces(text: str) -> list[InterfaceStatistics]:
    """The content of /proc/PID/net/dev (proc_net(5)), without the loopback."""
    found = []
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if not colon or len(fields) < 12 or name.strip() == "lo":
            continue
        numbers = [int(field) for field in fields]
        found.append(
            InterfaceStatistics(
                name=name.strip(),
                rx_bytes=numbers[0],
                rx_packets=numbers[1],
                rx_errors=numbers[2],
                rx_dropped=numbers[3],
                tx_bytes=numbers[8],
                tx_packets=numbers[9],
                tx_errors=numbers[10],
                tx_dropped=numbers[11],
            )
        )
    return found


def read_interfaces(pid: int) -> list[InterfaceStatistics]:
    """The counters of a process's network namespace; none when the process is gone."""
    try:
        with open(f"/proc/{pid}/net/dev") as file:
            return parse_interfaces(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return []
