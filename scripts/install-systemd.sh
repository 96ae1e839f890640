#!/bin/sh
# Install the systemd units for this checkout and enable the socket.
#   DESTDIR   install below this directory and enable nothing (packaging)
set -eu
cd "$(dirname "$0")/.."
units=${DESTDIR:-}/etc/systemd/system
if [ -z "${DESTDIR:-}" ]; then
	[ "$(id -u)" = 0 ] || {
		echo "install-systemd: it needs root, to write $units; run it with sudo" >&2
		exit 1
	}
	[ -d /run/systemd/system ] || {
		echo "install-systemd: systemd doesn't run here; 'cove daemon' starts the daemon by hand" >&2
		exit 1
	}
	sh scripts/setup.sh run
fi
mkdir -p "$units"
for unit in cove.socket cove.service; do
	sed "s|@COVE_ROOT@|$PWD|g" "systemd/$unit" >"$units/$unit"
	chmod 644 "$units/$unit"
done
[ -z "${DESTDIR:-}" ] || exit 0
systemctl daemon-reload
systemctl enable --now cove.socket
systemctl enable cove.service
echo "install-systemd: cove.socket listens; the first connection starts the daemon"
