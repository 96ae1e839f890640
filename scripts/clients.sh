#!/bin/sh
# Build the clients that tests/clients runs against Cove (docker compose, act, ...) from the package registries, at
# the versions that tests/clients/programs pins. setup.sh test calls it. What can't be had here is told, and its
# tests are skipped: Go 1.26 or Node.js may be missing, or a registry may refuse a module.
#   COVE_CACHE   where they are kept (default: /var/cache/cove)
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m tests.clients.toolbox
