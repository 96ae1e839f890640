#!/bin/sh
# The whole test suite: setup, lint, unit, system, clients. Arguments choose sections:
#   test.sh [lint] [unit] [system] [clients]
# Needs nothing of its caller: no terminal, no HOME, any working directory.
set -eu
cd "$(dirname "$0")/.."
exec </dev/null
export HOME="${HOME:-/root}" PATH="${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin" LC_ALL=C.UTF-8
sh scripts/setup.sh test
exec .venv/bin/python scripts/run_tests.py "$@"
