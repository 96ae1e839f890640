"""The daemon: puts the rooms together, listens, reloads, and leaves without taking a container along."""

from cove.daemon.names import DEFAULT_RUN_DIR, plan_names

__all__ = ["DEFAULT_RUN_DIR", "plan_names"]
