"""What is counted while the daemon works: plain numbers, which whoever does the work adds to. No I/O."""

from __future__ import annotations

from cove.metrics.exposition import Histogram

# the API's routes that dockerd times as actions of containers (moby, daemon/internal/metrics)
ACTIONS = {
    ("POST", "/containers/create"): "create",
    ("POST", "/containers/{name}/start"): "start",
    ("DELETE", "/containers/{name}"): "delete",
    ("GET", "/containers/{name}/changes"): "changes",
    ("POST", "/commit"): "commit",
}


class Meters:
    """One daemon's counters since its start."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}  # by method, route and status
        self.request_seconds: dict[tuple[str, str], list[float]] = {}  # sum and number
        self.actions = {action: Histogram() for action in ACTIONS.values()}
        self.starts = Histogram()  # seconds from the decision to the running process, restarts too
        self.starts_failed = 0
        self.exec_starts = Histogram()
        self.exec_starts_failed = 0
        self.health_checks = 0
        self.health_checks_failed = 0
        self.loop_lag = Histogram()
        self.loop_lag_max_s = 0.0  # since the last scrape

    def request(self, method: str, route: str, status: int, elapsed_s: float) -> None:
        """Count an answered request; a route that isn't one of the API's comes as "-"."""
        key = method if route != "-" else "-", route, status
        self.requests[key] = self.requests.get(key, 0) + 1
        seconds = self.request_seconds.setdefault(key[:2], [0.0, 0.0])
        seconds[0] += elapsed_s
        seconds[1] += 1
        if status < 300 and (action := ACTIONS.get((method, route))) is not None:
            self.actions[action].observe(elapsed_s)

    def lag(self, seconds: float) -> None:
        self.loop_lag.observe(seconds)
        self.loop_lag_max_s = max(self.loop_lag_max_s, seconds)
