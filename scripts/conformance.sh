#!/bin/sh
# Run the OCI runtime specification's conformance programs (tests/conformance/go.mod pins them):
#   conformance.sh [--compare] [RUNTIME [PROGRAM ...]]
# RUNTIME is bin/cove-runtime unless given; --compare runs Debian's runc beside it. Needs root and Go 1.21.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m tests.conformance "$@"
