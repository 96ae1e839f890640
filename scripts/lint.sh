#!/bin/sh
# Lint: style, format, types, and which room may import which. Needs setup.sh test.
set -u
cd "$(dirname "$0")/.." || exit 1
bin=.venv/bin
failed=0

check() {
	echo "== $*"
	"$@" || failed=1
}

check $bin/ruff check .
check $bin/ruff format --check .
check $bin/mypy --strict
check $bin/lint-imports --no-logo
exit $failed
